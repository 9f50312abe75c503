//! How each format's blocks join sums.

use super::GROUP;
use crate::vector::Simd;
use crate::vector::bytes::Bytes;

/// A row of activations: signed bytes, and for each 32 a scale and the scaled sum.
pub(super) struct Activations<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) scales: &'a [f32],
    pub(super) totals: &'a [f32],
}

impl Activations<'_> {
    #[inline(always)]
    fn group<S: Bytes>(&self, s: S, idx: usize) -> S::B {
        s.bytes(&self.bytes[idx * GROUP..(idx + 1) * GROUP])
    }
}

/// The binary16 at a byte of a block.
#[inline(always)]
fn half<S: Bytes>(s: S, block: &[u8], at: usize) -> f32 {
    s.half(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// A format of blocks.
pub(super) trait Format {
    /// Elements of a block.
    const LEN: usize;
    /// Bytes of a block.
    const BYTES: usize;

    /// Adds a block's products with the rows, from their group `at` on.
    fn add<S: Simd, const R: usize>(
        s: S,
        block: &[u8],
        rows: &[Activations<'_>; R],
        to: (usize, &mut [S::Eight; R]),
    );
}

/// Adds the products of 32 weights, whose halves have scales.
#[inline(always)]
fn join<S: Simd, const R: usize>(
    s: S,
    (weights, low, high): (S::B, f32, f32),
    rows: &[Activations<'_>; R],
    (at, sums): (usize, &mut [S::Eight; R]),
) {
    for (row, sum) in rows.iter().zip(sums) {
        let scale = row.scales[at];
        let scale = s.halves(low * scale, high * scale);
        *sum = s.fma_eight(s.dot(weights, row.group(s, at)), scale, *sum);
    }
}

/// `d`, 32 signed bytes.
pub(super) struct Q8Zero;

impl Format for Q8Zero {
    const LEN: usize = 32;
    const BYTES: usize = 34;

    #[inline(always)]
    fn add<S: Simd, const R: usize>(
        s: S,
        block: &[u8],
        rows: &[Activations<'_>; R],
        to: (usize, &mut [S::Eight; R]),
    ) {
        let d = half(s, block, 0);
        join(s, (s.bytes(&block[2..]), d, d), rows, to);
    }
}

/// `d`, 16 bytes whose low and high halves, less 8, are the first and the second 16 elements.
pub(super) struct Q4Zero;

impl Format for Q4Zero {
    const LEN: usize = 32;
    const BYTES: usize = 18;

    #[inline(always)]
    fn add<S: Simd, const R: usize>(
        s: S,
        block: &[u8],
        rows: &[Activations<'_>; R],
        to: (usize, &mut [S::Eight; R]),
    ) {
        let d = half(s, block, 0);
        join(s, (s.less(s.nibbles(&block[2..]), 8), d, d), rows, to);
    }
}

/// Eight scales and eight least values of 6 bits in 12 bytes, times those of the block.
#[inline(always)]
fn scales_and_least<S: Simd>(s: S, block: &[u8]) -> ([f32; 8], [f32; 8]) {
    let (d, least, packed) = (half(s, block, 0), half(s, block, 2), &block[4..16]);
    let scale = |group: usize| match group {
        0..4 => packed[group] & 0x3f,
        _ => packed[group + 4] & 0xf | packed[group - 4] >> 2 & 0x30,
    };
    let low = |group: usize| match group {
        0..4 => packed[group + 4] & 0x3f,
        _ => packed[group + 4] >> 4 | packed[group] >> 2 & 0x30,
    };
    (
        std::array::from_fn(|group| d * f32::from(scale(group))),
        std::array::from_fn(|group| -least * f32::from(low(group))),
    )
}

/// Takes the least values' products with the sums of activations.
#[inline(always)]
fn join_least<S: Simd, const R: usize>(
    s: S,
    least: &[f32; 8],
    rows: &[Activations<'_>; R],
    (at, sums): (usize, &mut [S::Eight; R]),
) {
    let least = s.load_eight(least);
    for (row, sum) in rows.iter().zip(sums) {
        *sum = s.fma_eight(least, s.load_eight(&row.totals[at..at + 8]), *sum);
    }
}

/// `d`, `d` of least values, 12 bytes of scales, 128 bytes of which 32 hold 64 elements, the low
/// halves first.
pub(super) struct Q4K;

impl Format for Q4K {
    const LEN: usize = 256;
    const BYTES: usize = 144;

    #[inline(always)]
    fn add<S: Simd, const R: usize>(
        s: S,
        block: &[u8],
        rows: &[Activations<'_>; R],
        (at, sums): (usize, &mut [S::Eight; R]),
    ) {
        let (scales, least) = scales_and_least(s, block);
        for (idx, packed) in block[16..144].chunks_exact(32).enumerate() {
            let packed = s.bytes(packed);
            let (low, high) = (s.and(packed, 0xf), s.and(s.down(packed, 4), 0xf));
            let (first, second) = (scales[2 * idx], scales[2 * idx + 1]);
            join(s, (low, first, first), rows, (at + 2 * idx, sums));
            join(s, (high, second, second), rows, (at + 2 * idx + 1, sums));
        }
        join_least(s, &least, rows, (at, sums));
    }
}

/// As `Q4K`, with 32 bytes of fifth bits before: bit `g` of byte `i` belongs to element `32 g + i`.
pub(super) struct Q5K;

impl Format for Q5K {
    const LEN: usize = 256;
    const BYTES: usize = 176;

    #[inline(always)]
    fn add<S: Simd, const R: usize>(
        s: S,
        block: &[u8],
        rows: &[Activations<'_>; R],
        (at, sums): (usize, &mut [S::Eight; R]),
    ) {
        let (scales, least) = scales_and_least(s, block);
        let fifths = s.bytes(&block[16..48]);
        let fifth = |group: usize| {
            let moved = if group < 4 { s.up(fifths, 4 - group) } else { s.down(fifths, group - 4) };
            s.and(moved, 0x10)
        };
        for (idx, packed) in block[48..176].chunks_exact(32).enumerate() {
            let packed = s.bytes(packed);
            let low = s.or(s.and(packed, 0xf), fifth(2 * idx));
            let high = s.or(s.and(s.down(packed, 4), 0xf), fifth(2 * idx + 1));
            let (first, second) = (scales[2 * idx], scales[2 * idx + 1]);
            join(s, (low, first, first), rows, (at + 2 * idx, sums));
            join(s, (high, second, second), rows, (at + 2 * idx + 1, sums));
        }
        join_least(s, &least, rows, (at, sums));
    }
}

/// Four low bits of each element in 128 bytes, of which 64 hold 128; two high bits in 64 bytes, of which
/// 32 hold 128; 16 signed scales, `d`. Elements are less 32.
pub(super) struct Q6K;

impl Format for Q6K {
    const LEN: usize = 256;
    const BYTES: usize = 210;

    #[inline(always)]
    fn add<S: Simd, const R: usize>(
        s: S,
        block: &[u8],
        rows: &[Activations<'_>; R],
        (at, sums): (usize, &mut [S::Eight; R]),
    ) {
        let d = half(s, block, 208);
        let scale = |idx: usize| d * f32::from(block[192 + idx].cast_signed());
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
                let weights = s.less(s.or(four, s.and(two, 0x30)), 32);
                let idx = part * 4 + group;
                let scales = (weights, scale(2 * idx), scale(2 * idx + 1));
                join(s, scales, rows, (at + idx, sums));
            }
        }
    }
}
