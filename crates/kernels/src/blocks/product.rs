//! The inner loops: blocks straight from the file for one row, and unpacked ones for several.
//!
//! Both do the same with the same numbers in the same order, so that a row's sums have the same bits.

use super::GROUP;
use super::format::{Format, Rest, Weights};
use super::quantise::Row;
use crate::vector::Simd;

/// Columns that are multiplied at once.
pub(super) const COLUMNS: usize = 4;

/// Rows that are multiplied at once with unpacked blocks.
pub(super) const ROWS: usize = 2;

/// Sums of a row and `COLUMNS` columns: 8 lanes each.
pub(super) type Sums = [[f32; 8]; COLUMNS];

/// Adds a group's products.
#[inline(always)]
fn join<S: Simd, F: Format>(
    s: S,
    weights: &Weights<S>,
    (x, scale): (S::B, S::Eight),
    t: S::Eight,
) -> S::Eight {
    let dot = match F::HAS_SCALES {
        true => s.dot_scaled(weights.bytes, x, weights.scales),
        false => s.dot(weights.bytes, x),
    };
    // The only group has nothing to be added to.
    if F::GROUPS == 1 { s.mul_eight(dot, scale) } else { s.fma_eight(dot, scale, t) }
}

/// Adds a block's sum of products and its least values.
///
/// # Safety
/// `totals` can be read, one a group for each of the format's least values.
#[inline(always)]
unsafe fn close<S: Simd, F: Format>(
    s: S,
    (t, rest): (S::Eight, &Rest<S>),
    totals: *const f32,
    sum: S::Eight,
) -> S::Eight {
    let mut sum = s.fma_eight(t, rest.d, sum);
    for (idx, least) in rest.least.iter().enumerate().take(F::LEAST) {
        // SAFETY: the caller vouches for them.
        let totals = unsafe {
            match F::GROUPS {
                1 => s.eight(0.125 * *totals),
                _ => s.load_eight(totals.add(8 * idx)),
            }
        };
        sum = s.fma_eight(*least, totals, sum);
    }
    sum
}

/// A group's bytes, and its scale 8 times.
///
/// # Safety
/// The row has this group.
#[inline(always)]
unsafe fn group<S: Simd>(s: S, row: &Row, idx: usize) -> (S::B, S::Eight) {
    // SAFETY: the caller says so.
    unsafe { (s.load_bytes_32(row.bytes.add(idx * GROUP)), s.eight(*row.scales.add(idx))) }
}

/// The totals of a block.
#[inline(always)]
fn totals<F: Format>(row: &Row, block_idx: usize) -> *const f32 {
    row.totals.wrapping_add(block_idx * F::LEAST * F::GROUPS)
}

/// One row times `N` columns of `n_blocks`; columns that lie one after the other are read as one stream.
///
/// # Safety
/// The row and each column have as many blocks.
#[inline(always)]
unsafe fn few<S: Simd, F: Format, const N: usize>(
    s: S,
    (columns, n_blocks): ([*const u8; N], usize),
    row: &Row,
) -> [f32; N] {
    // Where the next columns begin, if that is near.
    let ahead = match N * n_blocks * F::BYTES {
        next if N > 1 && next <= FAR => next,
        _ => AHEAD,
    };
    let mut sums = [s.eight(0.0); N];
    for block_idx in 0..n_blocks {
        for (column, sum) in columns.iter().zip(&mut sums) {
            let at = column.wrapping_add(block_idx * F::BYTES);
            for line in 0..F::BYTES.div_ceil(64) {
                s.prefetch(at.wrapping_add(ahead + 64 * line));
            }
            // SAFETY: the caller says that the column has this block.
            let block = unsafe { std::slice::from_raw_parts(at, F::BYTES) };
            let mut t = s.eight(0.0);
            let rest = F::unpack(s, block, |idx, weights| {
                // SAFETY: the caller says that the row has this block.
                let x = unsafe { group(s, row, block_idx * F::GROUPS + idx) };
                t = join::<S, F>(s, &weights, x, t);
            });
            // SAFETY: as above.
            *sum = unsafe { close::<S, F>(s, (t, &rest), totals::<F>(row, block_idx), *sum) };
        }
    }
    let mut floats = [0.0; N];
    for (sum, float) in sums.into_iter().zip(&mut floats) {
        *float = s.sum_eight(sum);
    }
    floats
}

/// Bytes ahead that are asked for.
const AHEAD: usize = 1024;

/// Bytes ahead that the first-level cache keeps until they are read.
const FAR: usize = 8192;

/// One row times `COLUMNS` columns of `n_blocks`.
///
/// A large block's products are a sum of their own, so that blocks overlap, and columns needn't: they
/// are read one after the other. A small block's sum waits for the one before, so two columns do.
///
/// # Safety
/// The row and each column have as many blocks.
#[inline(always)]
pub(super) unsafe fn one<S: Simd, F: Format>(
    s: S,
    (columns, n_blocks): ([*const u8; COLUMNS], usize),
    row: &Row,
) -> [f32; COLUMNS] {
    let mut sums = [0.0; COLUMNS];
    if F::GROUPS > 1 {
        for (column, sum) in columns.iter().zip(&mut sums) {
            // SAFETY: the caller vouches for what is read.
            [*sum] = unsafe { few::<S, F, 1>(s, ([*column], n_blocks), row) };
        }
    } else {
        let (columns, _) = columns.as_chunks::<2>();
        for (columns, sums) in columns.iter().zip(sums.as_chunks_mut().0) {
            // SAFETY: as above.
            *sums = unsafe { few::<S, F, 2>(s, (*columns, n_blocks), row) };
        }
    }
    sums
}

/// Unpacks a block to vectors of 32 bytes: the groups with their scales, the least values, the scale.
///
/// # Safety
/// `F::UNPACKED` bytes can be written.
#[inline(always)]
pub(super) unsafe fn unpack<S: Simd, F: Format>(s: S, block: &[u8], to: *mut u8) {
    let rest = F::unpack(s, block, |idx, weights| {
        let at = to.wrapping_add(idx * F::GROUP_VECTORS * 32);
        // SAFETY: the caller vouches for the memory.
        unsafe {
            s.store_bytes_32(at, weights.bytes);
            if F::HAS_SCALES {
                s.store_bytes_32(at.add(32), weights.scales);
            }
        }
    });
    let at = to.wrapping_add(F::GROUPS * F::GROUP_VECTORS * 32).cast::<f32>();
    for (idx, least) in rest.least.iter().enumerate().take(F::LEAST) {
        // SAFETY: as above.
        unsafe { s.store_eight(at.add(8 * idx), *least) };
    }
    // SAFETY: as above.
    unsafe { s.store_eight(at.add(8 * F::LEAST), rest.d) };
}

/// `R` rows times `COLUMNS` unpacked columns of `n_blocks`, added to `sums`, `[R]`.
///
/// # Safety
/// The rows have as many blocks, and `tile` `[n_blocks, COLUMNS]` of `F::UNPACKED` bytes.
#[inline(always)]
pub(super) unsafe fn some<S: Simd, F: Format, const R: usize>(
    s: S,
    (tile, n_blocks): (*const u8, usize),
    rows: &[Row; R],
    sums: *mut Sums,
) {
    let at =
        |row: usize, column: usize| sums.wrapping_add(row).cast::<f32>().wrapping_add(8 * column);
    let mut all = [[s.eight(0.0); COLUMNS]; R];
    for (row, all) in all.iter_mut().enumerate() {
        for (column, sum) in all.iter_mut().enumerate() {
            // SAFETY: the caller vouches for the sums.
            *sum = unsafe { s.load_eight(at(row, column)) };
        }
    }
    for block_idx in 0..n_blocks {
        let blocks: [*const u8; COLUMNS] = std::array::from_fn(|column| {
            tile.wrapping_add((block_idx * COLUMNS + column) * F::UNPACKED)
        });
        let mut t = [[s.eight(0.0); COLUMNS]; R];
        for idx in 0..F::GROUPS {
            // SAFETY: the caller says that the rows have this block.
            let x =
                rows.each_ref().map(|row| unsafe { group(s, row, block_idx * F::GROUPS + idx) });
            for (column, block) in blocks.iter().enumerate() {
                let from = block.wrapping_add(idx * F::GROUP_VECTORS * 32);
                // SAFETY: the caller vouches for the tile.
                let weights = unsafe {
                    let bytes = s.load_bytes_32(from);
                    let scales = match F::HAS_SCALES {
                        true => s.load_bytes_32(from.add(32)),
                        false => bytes,
                    };
                    Weights { bytes, scales }
                };
                for (t, x) in t.iter_mut().zip(&x) {
                    t[column] = join::<S, F>(s, &weights, *x, t[column]);
                }
            }
        }
        for (column, block) in blocks.iter().enumerate() {
            let from = block.wrapping_add(F::GROUPS * F::GROUP_VECTORS * 32).cast::<f32>();
            // SAFETY: the caller vouches for the tile, which has vectors of least values, then the scale.
            let rest = unsafe {
                let d = s.load_eight(from.add(8 * F::LEAST));
                let least = |idx: usize| s.load_eight(from.add(8 * idx.min(F::LEAST)));
                Rest { d, least: [least(0), least(1)] }
            };
            for ((t, all), row) in t.iter().zip(&mut all).zip(rows) {
                let totals = totals::<F>(row, block_idx);
                // SAFETY: the caller says that the rows have this block.
                all[column] = unsafe { close::<S, F>(s, (t[column], &rest), totals, all[column]) };
            }
        }
    }
    for (row, all) in all.iter().enumerate() {
        for (column, sum) in all.iter().enumerate() {
            // SAFETY: the caller vouches for the sums.
            unsafe { s.store_eight(at(row, column), *sum) };
        }
    }
}
