//! Element types of weights and their conversion to f32.

use std::fmt;

use half::{bf16, f16};

/// The type of a tensor's elements, little-endian in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum DType {
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// 8-bit float with 4 exponent bits, no infinities (OCP OFP8 E4M3, `float8_e4m3fn`).
    F8E4M3,
    /// 8-bit float with 5 exponent bits (OCP OFP8 E5M2).
    F8E5M2,
    /// 8-bit power of two, a block scale (OCP MX E8M0).
    F8E8M0,
    /// Signed 64-bit.
    I64,
    /// Signed 32-bit.
    I32,
    /// Signed 16-bit.
    I16,
    /// Signed 8-bit.
    I8,
    /// Unsigned 64-bit.
    U64,
    /// Unsigned 32-bit.
    U32,
    /// Unsigned 16-bit.
    U16,
    /// Unsigned 8-bit; also packed quantised data.
    U8,
    /// One byte, zero or not.
    Bool,
    /// Two binary32: real and imaginary part.
    C64,
    /// GGML: blocks of 32 with a scale, 4 bits.
    Q4_0,
    /// GGML: blocks of 32 with a scale and a least value, 4 bits.
    Q4_1,
    /// GGML: blocks of 32 with a scale, 5 bits.
    Q5_0,
    /// GGML: blocks of 32 with a scale and a least value, 5 bits.
    Q5_1,
    /// GGML: blocks of 32 with a scale, 8 bits.
    Q8_0,
    /// GGML: blocks of 32 with a scale and a sum, 8 bits.
    Q8_1,
    /// GGML: blocks of 256 in groups of 16 with scales and least values, 2 bits.
    Q2K,
    /// GGML: blocks of 256 in groups of 16 with scales, 3 bits.
    Q3K,
    /// GGML: blocks of 256 in groups of 32 with scales and least values, 4 bits.
    Q4K,
    /// GGML: blocks of 256 in groups of 32 with scales and least values, 5 bits.
    Q5K,
    /// GGML: blocks of 256 in groups of 16 with scales, 6 bits.
    Q6K,
    /// GGML: blocks of 32 with a scale, 4 bits that stand for uneven steps.
    Iq4Nl,
    /// GGML: blocks of 256 in groups of 32 with scales, 4 bits that stand for uneven steps.
    Iq4Xs,
    /// GPTQ and AWQ: 4 bits, eight to a word, whose scales and zeros are apart ([`Groups`](super::Groups)).
    Int4Groups,
    /// GPTQ: 8 bits, four to a word, whose scales and zeros are apart.
    Int8Groups,
}

/// GGML's types that nothing here reads, by number.
const UNREAD: [(u32, &str); 15] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

/// Turns the bytes of one element into an f32.
pub(super) type Decode = fn(&[u8]) -> f32;

impl DType {
    /// How many elements lie together in one block: 1 for types whose elements stand alone.
    pub fn block_len(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::Q8_0 | Self::Q8_1 | Self::Iq4Nl => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Iq4Xs => 256,
            Self::Int4Groups => 8,
            Self::Int8Groups => 4,
            _ => 1,
        }
    }

    /// Bytes of `n_elements` elements, which are whole blocks.
    pub fn bytes_for(self, n_elements: usize) -> usize {
        n_elements / self.block_len() * self.size()
    }

    /// Size of a block, in bytes: of an element, where they stand alone.
    pub fn size(self) -> usize {
        match self {
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q8_1 => 36,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Iq4Xs => 136,
            Self::F64 | Self::I64 | Self::U64 | Self::C64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::Int4Groups | Self::Int8Groups => 4,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::F8E4M3 | Self::F8E5M2 | Self::F8E8M0 | Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Whether the elements stand for floating-point numbers, whatever their width.
    pub fn is_float(self) -> bool {
        let alone = matches!(
            self,
            Self::F64 | Self::F32 | Self::F16 | Self::BF16 | Self::F8E4M3 | Self::F8E5M2
        );
        alone || self.block_len() > 1
    }

    /// The name in safetensors files; that in GGUF files for the types that only these have.
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E5M2 => "F8_E5M2",
            Self::F8E8M0 => "F8_E8M0",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
            Self::C64 => "C64",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q8_1 => "Q8_1",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Iq4Nl => "IQ4_NL",
            Self::Iq4Xs => "IQ4_XS",
            Self::Int4Groups => "INT4_GROUPS",
            Self::Int8Groups => "INT8_GROUPS",
        }
    }

    /// The type of a number in GGUF files. The error names what can't be read.
    pub(crate) fn from_ggml(number: u32) -> Result<Self, String> {
        Ok(match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            9 => Self::Q8_1,
            10 => Self::Q2K,
            11 => Self::Q3K,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            20 => Self::Iq4Nl,
            23 => Self::Iq4Xs,
            24 => Self::I8,
            25 => Self::I16,
            26 => Self::I32,
            27 => Self::I64,
            28 => Self::F64,
            30 => Self::BF16,
            _ => {
                let name = UNREAD.iter().find(|(n, _)| *n == number).map(|(_, name)| *name);
                let name = name.map_or_else(|| format!("number {number}"), str::to_owned);
                return Err(format!(
                    "its type {name} can't be read; quantise the model to Q4_K_M, Q8_0, F16 or the \
                     like"
                ));
            }
        })
    }

    /// The type of a safetensors name, if it is one whose elements are whole bytes.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        const ALL: [DType; 17] = [
            DType::F64,
            DType::F32,
            DType::F16,
            DType::BF16,
            DType::F8E4M3,
            DType::F8E5M2,
            DType::F8E8M0,
            DType::I64,
            DType::I32,
            DType::I16,
            DType::I8,
            DType::U64,
            DType::U32,
            DType::U16,
            DType::U8,
            DType::Bool,
            DType::C64,
        ];
        ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// The conversion of one element; `None` for complex numbers and for elements in blocks. Wider
    /// types are rounded to nearest.
    pub(super) fn decode(self) -> Option<Decode> {
        Some(match self {
            Self::F64 => |b| f64::from_le_bytes(array(b)) as f32,
            Self::F32 => |b| f32::from_le_bytes(array(b)),
            Self::F16 => |b| f16::from_le_bytes(array(b)).to_f32(),
            Self::BF16 => |b| bf16::from_le_bytes(array(b)).to_f32(),
            Self::F8E4M3 => |b| e4m3_to_f32(array::<1>(b)[0]),
            // E5M2 is the upper byte of a binary16.
            Self::F8E5M2 => |b| f16::from_le_bytes([0, array::<1>(b)[0]]).to_f32(),
            Self::F8E8M0 => |b| e8m0_to_f32(array::<1>(b)[0]),
            Self::I64 => |b| i64::from_le_bytes(array(b)) as f32,
            Self::I32 => |b| i32::from_le_bytes(array(b)) as f32,
            Self::I16 => |b| f32::from(i16::from_le_bytes(array(b))),
            Self::I8 => |b| f32::from(i8::from_le_bytes(array(b))),
            Self::U64 => |b| u64::from_le_bytes(array(b)) as f32,
            Self::U32 => |b| u32::from_le_bytes(array(b)) as f32,
            Self::U16 => |b| f32::from(u16::from_le_bytes(array(b))),
            Self::U8 => |b| f32::from(array::<1>(b)[0]),
            Self::Bool => |b| f32::from(u8::from(array::<1>(b)[0] != 0)),
            _ => return None,
        })
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The `N` bytes of an element; callers hand over slices of [`DType::size`] bytes.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the caller slices elements of this type's size")
}

fn e4m3_to_f32(bits: u8) -> f32 {
    let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(bits >> 3 & 0xf), f32::from(bits & 7));
    let magnitude = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    sign * magnitude
}

fn e8m0_to_f32(bits: u8) -> f32 {
    match bits {
        0xff => f32::NAN,
        // 2^-127 is below the normal range of an f32.
        0 => f32::from_bits(0x0040_0000),
        _ => f32::from_bits(u32::from(bits) << 23),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(dtype: DType, bytes: &[u8], expect: f32) {
        let found = dtype.decode().unwrap()(bytes);
        assert!(
            found == expect || found.is_nan() && expect.is_nan(),
            "{dtype} {bytes:x?}: {found}, expected {expect}"
        );
    }

    #[test]
    fn eight_bit_floats_match_their_specification() {
        check(DType::F8E4M3, &[0x7e], 448.0);
        check(DType::F8E4M3, &[0xfe], -448.0);
        check(DType::F8E4M3, &[0x7f], f32::NAN);
        check(DType::F8E4M3, &[0x01], 2f32.powi(-9));
        check(DType::F8E4M3, &[0x08], 2f32.powi(-6));
        check(DType::F8E4M3, &[0x38], 1.0);
        check(DType::F8E5M2, &[0x7b], 57344.0);
        check(DType::F8E5M2, &[0x7c], f32::INFINITY);
        check(DType::F8E5M2, &[0x01], 2f32.powi(-16));
        check(DType::F8E8M0, &[127], 1.0);
        check(DType::F8E8M0, &[0], 2f32.powi(-127));
        check(DType::F8E8M0, &[255], f32::NAN);
    }

    #[test]
    fn other_types_convert() {
        check(DType::F64, &1.5f64.to_le_bytes(), 1.5);
        check(DType::F16, &0x3555u16.to_le_bytes(), 0.333_251_95);
        check(DType::BF16, &0x3fc0u16.to_le_bytes(), 1.5);
        check(DType::I64, &(-3i64).to_le_bytes(), -3.0);
        check(DType::U16, &65535u16.to_le_bytes(), 65535.0);
        check(DType::I8, &[0xff], -1.0);
        check(DType::Bool, &[2], 1.0);
        assert!(DType::C64.decode().is_none());
        assert_eq!(DType::from_name("F8_E5M2"), Some(DType::F8E5M2));
        assert_eq!(DType::from_name("F4"), None);
    }
}
