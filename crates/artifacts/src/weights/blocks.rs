//! GGML's block types: a few numbers that share a scale, as the f32 that they stand for.
//!
//! A block of 32 has one scale `d` (and, in the `_1` types, a least value `m`); a block of 256 (the
//! K types) has scales of scales. Each value is computed as GGML's reference does, in f32 and in the
//! same order, so that the results are equal to the last bit. Source: ggml's `ggml-quants.c`, and
//! the `gguf` package's `quants.py`, which the tests compare with.

use half::f16;

use super::dtype::DType;

/// Elements of a K type's block.
const K: usize = 256;

/// Turns the bytes of one block into its elements.
pub(super) type DecodeBlock = fn(&[u8], &mut [f32]);

impl DType {
    /// The conversion of one block, for types whose elements share scales.
    pub(super) fn decode_block(self) -> Option<DecodeBlock> {
        Some(match self {
            Self::Q4_0 => q4_0,
            Self::Q4_1 => q4_1,
            Self::Q5_0 => q5_0,
            Self::Q5_1 => q5_1,
            Self::Q8_0 => |block, out| q8(&block[2..], half(block, 0), out),
            Self::Q8_1 => |block, out| q8(&block[4..], half(block, 0), out),
            Self::Q2K => q2_k,
            Self::Q3K => q3_k,
            Self::Q4K => q4_k,
            Self::Q5K => q5_k,
            Self::Q6K => q6_k,
            Self::Iq4Nl => iq4_nl,
            Self::Iq4Xs => iq4_xs,
            _ => return None,
        })
    }
}

/// The binary16 at a byte of a block.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The lower and the upper four bits of 16 bytes are the first and the second 16 elements.
fn nibbles(packed: &[u8], out: &mut [f32], value: impl Fn(usize, u8) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for (idx, ((low, high), byte)) in low.iter_mut().zip(high).zip(packed).enumerate() {
        *low = value(idx, byte & 0xf);
        *high = value(idx + 16, byte >> 4);
    }
}

fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    nibbles(&block[2..], out, |_, q| d * (f32::from(q) - 8.0));
}

fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    nibbles(&block[4..], out, |_, q| d * f32::from(q) + m);
}

/// The fifth bits of 32 elements, lowest first.
fn fifth_bits(block: &[u8], at: usize) -> impl Fn(usize, u8) -> f32 {
    let bits = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    move |idx, q| f32::from(q | ((bits >> idx & 1) as u8) << 4)
}

fn q5_0(block: &[u8], out: &mut [f32]) {
    let (d, join) = (half(block, 0), fifth_bits(block, 2));
    nibbles(&block[6..], out, |idx, q| d * (join(idx, q) - 16.0));
}

fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m, join) = (half(block, 0), half(block, 2), fifth_bits(block, 4));
    nibbles(&block[8..], out, |idx, q| d * join(idx, q) + m);
}

/// 32 signed bytes.
fn q8(packed: &[u8], d: f32, out: &mut [f32]) {
    for (value, byte) in out.iter_mut().zip(packed) {
        *value = f32::from(byte.cast_signed()) * d;
    }
}

/// Element `idx` of 256 that have two bits each, four to a byte: 32 bytes hold 128, and each pair of
/// bits of them 32 in a row.
fn two_bits(packed: &[u8], idx: usize) -> u8 {
    let (half, shift, byte) = (idx / 128, idx % 128 / 32 * 2, idx % 32);
    packed[half * 32 + byte] >> shift & 3
}

/// Scales of 4 bits, least values of 4 bits, 2 bits an element.
fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, packed) = (&block[..16], &block[16..80]);
    let (d, d_min) = (half(block, 80), half(block, 82));
    for (group, (scale, values)) in scales.iter().zip(out.chunks_exact_mut(16)).enumerate() {
        let (d, m) = (d * f32::from(scale & 0xf), d_min * f32::from(scale >> 4));
        for (idx, value) in values.iter_mut().enumerate() {
            *value = d * f32::from(two_bits(packed, group * 16 + idx)) - m;
        }
    }
}

/// Scales of 6 bits, 3 bits an element, whose third bits lie apart and mean 0 where they are set.
fn q3_k(block: &[u8], out: &mut [f32]) {
    let (masks, packed, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half(block, 108);
    for (group, values) in out.chunks_exact_mut(16).enumerate() {
        let low = scales[group % 8] >> (group / 8 * 4) & 0xf;
        let high = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        let d = d * (f32::from(low | high << 4) - 32.0);
        for (idx, value) in values.iter_mut().enumerate() {
            let idx = group * 16 + idx;
            let third = masks[idx % 32] >> (idx / 32) & 1;
            let q = f32::from(two_bits(packed, idx)) - f32::from((third ^ 1) << 2);
            *value = d * q;
        }
    }
}

/// The scale and the least value, 6 bits each, of one of eight groups.
fn scale_and_min(packed: &[u8], group: usize) -> (f32, f32) {
    let idx = group % 4;
    let (d, m, both) = (packed[idx], packed[4 + idx], packed[8 + idx]);
    let (scale, min) = match group {
        0..4 => (d & 0x3f, m & 0x3f),
        _ => (both & 0xf | d >> 2 & 0x30, both >> 4 | m >> 2 & 0x30),
    };
    (f32::from(scale), f32::from(min))
}

/// Element `idx` of 256 that have four bits each: 32 bytes hold 64, the lower halves first.
fn four_bits(packed: &[u8], idx: usize) -> u8 {
    packed[idx / 64 * 32 + idx % 32] >> (idx % 64 / 32 * 4) & 0xf
}

/// Scales and least values of 6 bits, and elements that `value` unpacks.
fn groups_of_32(block: &[u8], out: &mut [f32], value: impl Fn(usize) -> u8) {
    let (d, d_min, scales) = (half(block, 0), half(block, 2), &block[4..16]);
    for (group, values) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(scales, group);
        let (d, m) = (d * scale, d_min * min);
        for (idx, out) in values.iter_mut().enumerate() {
            *out = d * f32::from(value(group * 32 + idx)) - m;
        }
    }
}

fn q4_k(block: &[u8], out: &mut [f32]) {
    let packed = &block[16..144];
    groups_of_32(block, out, |idx| four_bits(packed, idx));
}

fn q5_k(block: &[u8], out: &mut [f32]) {
    let (fifths, packed) = (&block[16..48], &block[48..176]);
    groups_of_32(block, out, |idx| {
        four_bits(packed, idx) | (fifths[idx % 32] >> (idx / 32) & 1) << 4
    });
}

/// Signed scales of 8 bits, 6 bits an element.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half(block, 208);
    for (group, (scale, values)) in scales.iter().zip(out.chunks_exact_mut(16)).enumerate() {
        let d = d * f32::from(scale.cast_signed());
        for (idx, value) in values.iter_mut().enumerate() {
            let idx = group * 16 + idx;
            // 64 bytes hold the lower bits of 128 elements.
            let four = low[idx / 128 * 64 + idx % 64] >> (idx % 128 / 64 * 4) & 0xf;
            *value = d * (f32::from(four | two_bits(high, idx) << 4) - 32.0);
        }
    }
}

/// What the four bits of the IQ4 types stand for: steps that are closer together near zero.
const STEPS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

fn iq4_nl(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    nibbles(&block[2..], out, |_, q| d * f32::from(STEPS[usize::from(q)]));
}

/// Groups of 32 with scales of 6 bits.
fn iq4_xs(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    let high = u16::from_le_bytes([block[2], block[3]]);
    let (low, packed) = (&block[4..8], &block[8..136]);
    let groups = out.chunks_exact_mut(32).zip(packed.chunks_exact(16));
    for (group, (values, packed)) in groups.enumerate() {
        let four = low[group / 2] >> (group % 2 * 4) & 0xf;
        let scale = four | ((high >> (group * 2) & 3) as u8) << 4;
        let d = d * (f32::from(scale) - 32.0);
        nibbles(packed, values, |_, q| d * f32::from(STEPS[usize::from(q)]));
    }
}

/// Elements of the largest block.
pub(super) const LARGEST: usize = K;
