//! The metadata of a GGUF file: keys with typed values, read where they lie.

use std::borrow::Cow;
use std::str;

/// Most levels of arrays in arrays.
const MAX_NESTING: u32 = 4;

/// Longest key, in bytes; the format allows 65,535.
const MAX_KEY_BYTES: u64 = 65_535;

/// Reads numbers and texts from the start of a file on. What goes beyond its end is an error.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// What is wrong, as the rest of a sentence.
pub(super) type Broken = String;

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// How many bytes were read.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// How many bytes are left.
    pub(super) fn rest(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], Broken> {
        if n > self.rest() {
            return Err(format!(
                "is cut off or broken: {n} bytes should follow byte {}, {} do",
                self.at,
                self.rest()
            ));
        }
        let slice = &self.bytes[self.at..self.at + n as usize];
        self.at += n as usize;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Broken> {
        let bytes = self.take(N as u64)?;
        Ok(bytes.try_into().expect("take gives as many bytes as were asked for"))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Broken> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Broken> {
        self.array().map(u64::from_le_bytes)
    }

    /// The bytes of a text, whatever they are.
    fn raw_text(&mut self) -> Result<&'a [u8], Broken> {
        let n = self.u64()?;
        self.take(n)
    }

    /// A name of a key or tensor.
    pub(super) fn name(&mut self) -> Result<&'a str, Broken> {
        let start = self.at;
        let n = self.u64()?;
        if n > MAX_KEY_BYTES {
            return Err(format!("has a name of {n} bytes at byte {start}, which is too long"));
        }
        let bytes = self.take(n)?;
        str::from_utf8(bytes).map_err(|_| format!("has a name at byte {start} that is no UTF-8"))
    }

    /// A value of a type.
    pub(super) fn value(&mut self, kind: Kind, depth: u32) -> Result<Value<'a>, Broken> {
        Ok(match kind {
            Kind::U8 => Value::Unsigned(u64::from(u8::from_le_bytes(self.array()?))),
            Kind::I8 => Value::Signed(i64::from(i8::from_le_bytes(self.array()?))),
            Kind::U16 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array()?))),
            Kind::I16 => Value::Signed(i64::from(i16::from_le_bytes(self.array()?))),
            Kind::U32 => Value::Unsigned(u64::from(self.u32()?)),
            Kind::I32 => Value::Signed(i64::from(i32::from_le_bytes(self.array()?))),
            Kind::U64 => Value::Unsigned(self.u64()?),
            Kind::I64 => Value::Signed(i64::from_le_bytes(self.array()?)),
            Kind::F32 => Value::Float(shortest(f32::from_le_bytes(self.array()?))),
            Kind::F64 => Value::Float(f64::from_le_bytes(self.array()?)),
            Kind::Bool => Value::Bool(self.array::<1>()?[0] != 0),
            Kind::Text => Value::Text(self.raw_text()?),
            Kind::Array => Value::Array(self.nested(depth)?),
        })
    }

    /// An array; its items are walked once, so that later readers find them whole.
    fn nested(&mut self, depth: u32) -> Result<Array<'a>, Broken> {
        if depth == MAX_NESTING {
            return Err(format!("nests arrays deeper than {MAX_NESTING} levels"));
        }
        let kind = Kind::read(self)?;
        let n = self.u64()?;
        let least = n.checked_mul(kind.least_bytes()).filter(|least| *least <= self.rest());
        if least.is_none() {
            return Err(format!(
                "is cut off or broken: it claims an array of {n} items, {} bytes are left",
                self.rest()
            ));
        }
        let start = self.at;
        match kind {
            Kind::Text | Kind::Array => {
                for _ in 0..n {
                    self.value(kind, depth + 1)?;
                }
            }
            _ => drop(self.take(n * kind.least_bytes())?),
        }
        Ok(Array { kind, n: n as usize, bytes: &self.bytes[start..self.at] })
    }
}

/// An f32 as the decimal number that was meant: `1e-5`, not 9.999999747378752e-6.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

/// The types of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    /// The number of a type, which is its place here.
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::Text,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self, Broken> {
        let number = cursor.u32()?;
        Self::ALL
            .get(number as usize)
            .copied()
            .ok_or_else(|| format!("has a value of type {number}, there are 0 to 12"))
    }

    /// The size of a value; of a text or an array, the least that one takes.
    fn least_bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::Text => 8,
            Self::Array => 12,
        }
    }
}

/// A value of the metadata.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    /// What should be UTF-8.
    Text(&'a [u8]),
    Array(Array<'a>),
}

impl<'a> Value<'a> {
    pub(super) fn as_u64(self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(value),
            Self::Signed(value) => value.try_into().ok(),
            _ => None,
        }
    }

    pub(super) fn as_f64(self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(value).filter(|value| value.is_finite()),
            Self::Unsigned(value) => Some(value as f64),
            Self::Signed(value) => Some(value as f64),
            _ => None,
        }
    }

    pub(super) fn as_bool(self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    pub(super) fn as_str(self) -> Option<&'a str> {
        match self {
            Self::Text(bytes) => str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// A text, whatever is no UTF-8 replaced.
    pub(super) fn as_lossy_text(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(bytes) => Some(String::from_utf8_lossy(bytes)),
            _ => None,
        }
    }

    pub(super) fn as_array(self) -> Option<Array<'a>> {
        match self {
            Self::Array(array) => Some(array),
            _ => None,
        }
    }
}

/// An array of values of one type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Array<'a> {
    kind: Kind,
    n: usize,
    /// The items, one after another; all are there.
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// How many items there are.
    pub(super) fn len(&self) -> usize {
        self.n
    }

    /// The items.
    pub(super) fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (mut cursor, kind) = (Cursor::new(self.bytes), self.kind);
        // Reading can't fail: the items were walked when the array was read.
        (0..self.n).map_while(move |_| cursor.value(kind, 0).ok())
    }

    /// The bytes of an array of bytes.
    pub(super) fn as_bytes(&self) -> Option<&'a [u8]> {
        matches!(self.kind, Kind::U8 | Kind::I8).then_some(self.bytes)
    }
}
