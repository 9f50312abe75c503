//! What each format's blocks hold, as bytes to multiply and what their products are scaled by.

use crate::vector::Simd;
use crate::vector::bytes::Bytes;

/// 32 weights as bytes.
pub(super) struct Weights<S: Bytes> {
    pub(super) bytes: S::B,
    /// For each two bytes an i16, where the format has scales within a block.
    pub(super) scales: S::B,
}

/// What joins at the end of a block.
pub(super) struct Rest<S: Bytes> {
    /// The block's scale, 8 times.
    pub(super) d: S::Eight,
    /// What the sums of activations are multiplied by; `LEAST` of them count.
    pub(super) least: [S::Eight; 2],
}

/// A format of blocks.
///
/// An element is `d * scale * byte + least`. The block's share of a column's sum is, in this order and
/// whatever the path,
///
/// ```text
/// t = sum over groups of 32 of (scale of x * dot(bytes * scales, x))        8 lanes, fused
/// sum += d * t;  sum += least * total of x, for 8 totals at once
/// ```
///
/// A block of 32 has one total, an eighth of which each lane takes.
pub(super) trait Format {
    /// Elements of a block.
    const LEN: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// Whether groups have scales; bytes are unsigned then.
    const HAS_SCALES: bool;
    /// Vectors of least values.
    const LEAST: usize;

    /// Gives each group of 32 to `each`.
    fn unpack<S: Simd>(s: S, block: &[u8], each: impl FnMut(usize, Weights<S>)) -> Rest<S>;

    /// Groups of 32 in a block.
    const GROUPS: usize = Self::LEN / 32;
    /// Vectors of 32 bytes that an unpacked group is.
    const GROUP_VECTORS: usize = if Self::HAS_SCALES { 2 } else { 1 };
    /// Bytes of an unpacked block: the groups, the least values, the scale.
    const UNPACKED: usize = (Self::GROUPS * Self::GROUP_VECTORS + Self::LEAST + 1) * 32;
}

/// The binary16 at a byte of a block.
#[inline(always)]
fn half<S: Bytes>(s: S, block: &[u8], at: usize) -> f32 {
    s.half(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// The 32 bits at a byte of a block.
#[inline(always)]
fn word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// The 64 bits at a byte of a block.
#[inline(always)]
fn long(block: &[u8], at: usize) -> u64 {
    u64::from(word(block, at)) | u64::from(word(block, at + 4)) << 32
}

/// `d`, 32 signed bytes.
pub(super) struct Q8Zero;

impl Format for Q8Zero {
    const LEN: usize = 32;
    const BYTES: usize = 34;
    const HAS_SCALES: bool = false;
    const LEAST: usize = 0;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, block: &[u8], mut each: impl FnMut(usize, Weights<S>)) -> Rest<S> {
        let bytes = s.bytes(&block[2..]);
        each(0, Weights { bytes, scales: bytes });
        rest_of_32(s, half(s, block, 0), 0.0)
    }
}

/// `d`, 16 bytes whose low and high halves, less 8, are the first and the second 16 elements.
pub(super) struct Q4Zero;

impl Format for Q4Zero {
    const LEN: usize = 32;
    const BYTES: usize = 18;
    const HAS_SCALES: bool = false;
    const LEAST: usize = 0;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, block: &[u8], mut each: impl FnMut(usize, Weights<S>)) -> Rest<S> {
        let bytes = s.less(s.nibbles(&block[2..]), 8);
        each(0, Weights { bytes, scales: bytes });
        rest_of_32(s, half(s, block, 0), 0.0)
    }
}

/// `d`, the zero, 16 bytes whose low and high halves, less the zero, are the first and the second 16
/// elements.
pub(super) struct Group4;

impl Format for Group4 {
    const LEN: usize = 32;
    const BYTES: usize = 19;
    const HAS_SCALES: bool = false;
    const LEAST: usize = 0;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, block: &[u8], mut each: impl FnMut(usize, Weights<S>)) -> Rest<S> {
        let bytes = s.less(s.nibbles(&block[3..]), block[2]);
        each(0, Weights { bytes, scales: bytes });
        rest_of_32(s, half(s, block, 0), 0.0)
    }
}

/// `d`, the zero, 32 unsigned bytes; elements are less the zero. Bytes are signed less 128, and what
/// that leaves is a least value: a small whole number of `d`, which f32 holds exactly.
pub(super) struct Group8;

impl Format for Group8 {
    const LEN: usize = 32;
    const BYTES: usize = 35;
    const HAS_SCALES: bool = false;
    const LEAST: usize = 1;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, block: &[u8], mut each: impl FnMut(usize, Weights<S>)) -> Rest<S> {
        let bytes = s.less(s.bytes(&block[3..]), 128);
        each(0, Weights { bytes, scales: bytes });
        let d = half(s, block, 0);
        rest_of_32(s, d, d * (128.0 - f32::from(block[2])))
    }
}

/// What joins at the end of 32 elements with a least value.
#[inline(always)]
fn rest_of_32<S: Simd>(s: S, d: f32, least: f32) -> Rest<S> {
    Rest { d: s.eight(d), least: [s.eight(least), s.eight(0.0)] }
}

/// 32 bits to 32 bytes that have 16 where the bit is set.
#[inline(always)]
fn fifths<S: Simd>(s: S, bits: u32) -> S::B {
    s.and(s.spread(bits), 0x10)
}

/// `d`, the least value, 16 bytes whose low and high halves are the first and the second 16 elements.
pub(super) struct Q4One;

impl Format for Q4One {
    const LEN: usize = 32;
    const BYTES: usize = 20;
    const HAS_SCALES: bool = false;
    const LEAST: usize = 1;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, block: &[u8], mut each: impl FnMut(usize, Weights<S>)) -> Rest<S> {
        let bytes = s.nibbles(&block[4..]);
        each(0, Weights { bytes, scales: bytes });
        rest_of_32(s, half(s, block, 0), half(s, block, 2))
    }
}

/// `d`, 32 fifth bits, then as `Q4Zero`; elements are less 16.
pub(super) struct Q5Zero;

impl Format for Q5Zero {
    const LEN: usize = 32;
    const BYTES: usize = 22;
    const HAS_SCALES: bool = false;
    const LEAST: usize = 0;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, block: &[u8], mut each: impl FnMut(usize, Weights<S>)) -> Rest<S> {
        let bytes = s.or(s.nibbles(&block[6..]), fifths(s, word(block, 2)));
        let bytes = s.less(bytes, 16);
        each(0, Weights { bytes, scales: bytes });
        rest_of_32(s, half(s, block, 0), 0.0)
    }
}

/// `d`, the least value, 32 fifth bits, then as `Q4One`.
pub(super) struct Q5One;

impl Format for Q5One {
    const LEN: usize = 32;
    const BYTES: usize = 24;
    const HAS_SCALES: bool = false;
    const LEAST: usize = 1;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, block: &[u8], mut each: impl FnMut(usize, Weights<S>)) -> Rest<S> {
        let bytes = s.or(s.nibbles(&block[8..]), fifths(s, word(block, 4)));
        each(0, Weights { bytes, scales: bytes });
        rest_of_32(s, half(s, block, 0), half(s, block, 2))
    }
}

/// A scale of 8 bits lies in the upper half of 16: the lower half costs nothing, and this takes it away.
const BELOW: f32 = 1.0 / 256.0;

/// For `pick`: byte `low` of 16 to the upper halves of 8 i16, and byte `high` to 8 more.
const fn places(low: u8, high: u8) -> [u8; 32] {
    let mut places = [0x80; 32];
    let mut idx = 0;
    while idx < 8 {
        places[2 * idx + 1] = low;
        places[2 * idx + 17] = high;
        idx += 1;
    }
    places
}

/// One scale a group.
static WHOLE: [[u8; 32]; 8] = [
    places(0, 0),
    places(1, 1),
    places(2, 2),
    places(3, 3),
    places(4, 4),
    places(5, 5),
    places(6, 6),
    places(7, 7),
];

/// Two scales a group.
static HALVES: [[u8; 32]; 8] = [
    places(0, 1),
    places(2, 3),
    places(4, 5),
    places(6, 7),
    places(8, 9),
    places(10, 11),
    places(12, 13),
    places(14, 15),
];

/// Eight scales and eight least values of 6 bits in 12 bytes: the scales for `pick`, and what joins at
/// the end.
#[inline(always)]
fn scales_and_least<S: Simd>(s: S, block: &[u8]) -> (S::B, Rest<S>) {
    let [first, second, third] = [word(block, 4), word(block, 8), word(block, 12)];
    let upper = |packed: u32| packed >> 2 & 0x3030_3030;
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let scales = pair(first & 0x3f3f_3f3f, third & 0x0f0f_0f0f | upper(first));
    let least = pair(second & 0x3f3f_3f3f, third >> 4 & 0x0f0f_0f0f | upper(second));
    let least = s.mul_eight(s.eight_of(least), s.eight(-half(s, block, 2)));
    let rest = Rest { d: s.eight(half(s, block, 0) * BELOW), least: [least, s.eight(0.0)] };
    (s.twice(u128::from(scales)), rest)
}

/// `d`, `d` of least values, 12 bytes of scales, 128 bytes of which 32 hold 64 elements, the low
/// halves first.
pub(super) struct Q4K;

impl Format for Q4K {
    const LEN: usize = 256;
    const BYTES: usize = 144;
    const HAS_SCALES: bool = true;
    const LEAST: usize = 1;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, block: &[u8], mut each: impl FnMut(usize, Weights<S>)) -> Rest<S> {
        let (scales, rest) = scales_and_least(s, block);
        let mut give = |idx: usize, bytes: S::B| {
            each(idx, Weights { bytes, scales: s.pick(scales, &WHOLE[idx]) });
        };
        for idx in 0..4 {
            let packed = s.bytes(&block[16 + 32 * idx..]);
            give(2 * idx, s.and(packed, 0xf));
            give(2 * idx + 1, s.and(s.down(packed, 4), 0xf));
        }
        rest
    }
}

/// As `Q4K`, with 32 bytes of fifth bits before: bit `g` of byte `i` belongs to element `32 g + i`.
pub(super) struct Q5K;

impl Format for Q5K {
    const LEN: usize = 256;
    const BYTES: usize = 176;
    const HAS_SCALES: bool = true;
    const LEAST: usize = 1;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, block: &[u8], mut each: impl FnMut(usize, Weights<S>)) -> Rest<S> {
        let (scales, rest) = scales_and_least(s, block);
        let fifths = s.bytes(&block[16..48]);
        let mut give = |idx: usize, four: S::B| {
            let moved = if idx < 4 { s.up(fifths, 4 - idx) } else { s.down(fifths, idx - 4) };
            let bytes = s.or(four, s.and(moved, 0x10));
            each(idx, Weights { bytes, scales: s.pick(scales, &WHOLE[idx]) });
        };
        for idx in 0..4 {
            let packed = s.bytes(&block[48 + 32 * idx..]);
            give(2 * idx, s.and(packed, 0xf));
            give(2 * idx + 1, s.and(s.down(packed, 4), 0xf));
        }
        rest
    }
}

/// Four low bits of each element in 128 bytes, of which 64 hold 128; two high bits in 64 bytes, of which
/// 32 hold 128; 16 signed scales, `d`. Elements are less 32, which becomes least values.
pub(super) struct Q6K;

impl Format for Q6K {
    const LEN: usize = 256;
    const BYTES: usize = 210;
    const HAS_SCALES: bool = true;
    const LEAST: usize = 2;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, block: &[u8], mut each: impl FnMut(usize, Weights<S>)) -> Rest<S> {
        let d = half(s, block, 208);
        let packed = [long(block, 192), long(block, 200)];
        let scales = s.twice(u128::from(packed[0]) | u128::from(packed[1]) << 64);
        for part in 0..2 {
            let low = [s.bytes(&block[part * 64..]), s.bytes(&block[part * 64 + 32..])];
            let high = s.bytes(&block[128 + part * 32..]);
            for group in 0..4 {
                let four = low[group % 2];
                let four = s.and(if group < 2 { four } else { s.down(four, 4) }, 0xf);
                let two = match group {
                    0..2 => s.up(high, 4 - 2 * group),
                    _ => s.down(high, 2 * group - 4),
                };
                let idx = part * 4 + group;
                let bytes = s.or(four, s.and(two, 0x30));
                each(idx, Weights { bytes, scales: s.pick(scales, &HALVES[idx]) });
            }
        }
        let least = packed.map(|eight| s.mul_eight(s.eight_of(eight), s.eight(-32.0 * d)));
        Rest { d: s.eight(d * BELOW), least }
    }
}
