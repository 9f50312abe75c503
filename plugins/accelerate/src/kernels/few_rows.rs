//! A few rows times a matrix: `out = x Wᵀ` for decode steps.
//!
//! Each row of `W` is read from memory once and multiplied with every row of `x`, which stays in
//! the cache. Four rows of `W` and two of `x` at a time share each other's loads.

use std::convert::Infallible;

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{ARCH, PARALLEL_WORK, dot};
use crate::matrix::HalfType;

/// `out[i, j] = x[i] · w[j]` for `x` `[m, k]`, `w` `[n, k]`, `out` `[m, n]`; `m` and `k` at least 1.
pub(crate) fn few_rows(x: &[f32], w: &[f32], out: &mut [f32], m: usize, k: usize) {
    let n = out.len() / m;
    assert!(x.len() == m * k && w.len() == n * k && out.len() == m * n, "few_rows: lengths");
    let times = FewRows::new(x, None, m, k);
    let done = in_parts(out, m, k, |first, out| {
        times.full(&w[first * k..][..out.len() / m * k], out);
        Ok::<_, Infallible>(())
    });
    match done {
        Ok(()) => {}
    }
}

/// [`few_rows`] for a matrix of 16 bits: four of its rows at a time become f32, in the cache.
pub(crate) fn few_rows_of_half(
    x: &[f32],
    (w, form): (&[u16], HalfType),
    out: &mut [f32],
    m: usize,
    k: usize,
) {
    let n = out.len() / m;
    assert!(x.len() == m * k && w.len() == n * k && out.len() == m * n, "few_rows: lengths");
    let times = FewRows::new(x, Some(form), m, k);
    let done = in_parts(out, m, k, |first, out| {
        times.half((&w[first * k..][..out.len() / m * k], form), out);
        Ok::<_, Infallible>(())
    });
    match done {
        Ok(()) => {}
    }
}

/// Lets `each` compute parts of `out` `[m, n]`, the product of `m` rows with the `n` rows of a matrix of
/// `k` columns. It is called on several threads with a row of the matrix and a part `[rows, m]`, for what
/// comes of the rows from that one on: fours of them, but for the last.
///
/// # Errors
/// What `each` says.
pub(crate) fn in_parts<E: Send>(
    out: &mut [f32],
    m: usize,
    k: usize,
    each: impl Fn(usize, &mut [f32]) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let n = out.len() / m;
    let mut columns = if m == 1 { Vec::new() } else { vec![0.0f32; n * m] };
    let by_column = if m == 1 { &mut *out } else { &mut columns };
    let n_threads = rayon::current_num_threads();
    if n_threads == 1 || n * k * m < PARALLEL_WORK {
        each(0, by_column)?;
    } else {
        // Some more parts than threads, so that a late thread costs little; whole groups of four.
        let part = n.div_ceil(n_threads * 4).next_multiple_of(4);
        let parts = by_column.par_chunks_mut(part * m).enumerate();
        parts.try_for_each(|(idx, out)| each(idx * part, out))?;
    }
    if m > 1 {
        turn(&columns, out, m);
    }
    Ok(())
}

/// `[n, m]` to `[m, n]`.
fn turn(columns: &[f32], out: &mut [f32], m: usize) {
    let n = out.len() / m;
    for (i, row) in out.chunks_exact_mut(n).enumerate() {
        row.iter_mut().zip(columns.chunks_exact(m)).for_each(|(y, column)| *y = column[i]);
    }
}

/// A few rows, ready to be multiplied with rows of a matrix on any thread.
pub(crate) struct FewRows<'a> {
    /// `[m, k]`.
    x: &'a [f32],
    /// `[m, 2, k / 2]`: what goes with the even and with the odd numbers of a row of bf16.
    halves: Vec<f32>,
    m: usize,
    k: usize,
}

impl<'a> FewRows<'a> {
    /// `x` `[m, k]`, for a matrix of this form, f32 by default.
    pub(crate) fn new(x: &'a [f32], form: Option<HalfType>, m: usize, k: usize) -> Self {
        let halves = match form {
            Some(HalfType::Bf16) => x.chunks_exact(k).flat_map(halves_of).collect(),
            _ => Vec::new(),
        };
        Self { x, halves, m, k }
    }

    /// Times rows `w` `[n, k]`: `out` `[n, m]`.
    pub(crate) fn full(&self, w: &[f32], out: &mut [f32]) {
        let Self { x, m, k, .. } = *self;
        ARCH.dispatch(Block { x, w, out, m, k });
    }

    /// The same for rows of 16 bits.
    pub(crate) fn half(&self, (w, form): (&[u16], HalfType), out: &mut [f32]) {
        let Self { x, ref halves, m, k } = *self;
        if form == HalfType::Bf16
            && k.is_multiple_of(2)
            && let Ok(w) = bytemuck::try_cast_slice::<u16, u32>(w)
        {
            return ARCH.dispatch(PairsBlock { x: halves, w, out, m, k });
        }
        let mut wide = vec![0.0f32; 4 * k];
        for (w, out) in w.chunks(4 * k).zip(out.chunks_mut(4 * m)) {
            let wide = &mut wide[..w.len()];
            widen(form, w, wide);
            ARCH.dispatch(Block { x, w: wide, out, m, k });
        }
    }
}

/// The elements of even number, and then those of odd number.
fn halves_of(row: &[f32]) -> impl Iterator<Item = f32> {
    row.iter().copied().step_by(2).chain(row.iter().copied().skip(1).step_by(2))
}

/// [`Block`] for a matrix of bf16 in pairs: a pair's first number is the lower half of 32 bits, which
/// become its f32 by a shift, and the second the upper one, whose f32 the bits are without the lower.
struct PairsBlock<'a> {
    /// `[m, 2, k / 2]`.
    x: &'a [f32],
    w: &'a [u32],
    out: &'a mut [f32],
    m: usize,
    k: usize,
}

impl WithSimd for PairsBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, w, out, m, k } = self;
        let half = k / 2;
        let (mut groups, mut outs) = (w.chunks_exact(4 * half), out.chunks_exact_mut(4 * m));
        for (group, out) in groups.by_ref().zip(outs.by_ref()) {
            let mut pairs = x.chunks_exact(2 * k);
            let mut j = 0;
            for pair in pairs.by_ref() {
                let (a, b) = pair.split_at(k);
                let sums = four_pairs_by::<S, 2>(simd, group, [a, b]);
                for (row, [a, b]) in sums.into_iter().enumerate() {
                    (out[row * m + j], out[row * m + j + 1]) = (a, b);
                }
                j += 2;
            }
            if j < m {
                let sums = four_pairs_by::<S, 1>(simd, group, [pairs.remainder()]);
                for (row, [sum]) in sums.into_iter().enumerate() {
                    out[row * m + j] = sum;
                }
            }
        }
        let rest = groups.remainder().chunks_exact(half);
        for (w, out) in rest.zip(outs.into_remainder().chunks_exact_mut(m)) {
            for (y, x) in out.iter_mut().zip(x.chunks_exact(k)) {
                *y = dot_pairs(w, x);
            }
        }
    }
}

/// [`four_by`] for rows of pairs; `x` as [`PairsBlock`] has it.
#[inline(always)]
fn four_pairs_by<S: Simd, const N: usize>(simd: S, group: &[u32], x: [&[f32]; N]) -> [[f32; N]; 4] {
    let half = group.len() / 4;
    let (a, rest) = group.split_at(half);
    let (b, rest) = rest.split_at(half);
    let (c, d) = rest.split_at(half);
    let ((a, a_tail), (b, b_tail)) = (S::as_simd_u32s(a), S::as_simd_u32s(b));
    let ((c, c_tail), (d, d_tail)) = (S::as_simd_u32s(c), S::as_simd_u32s(d));
    let n = a.len();
    let rows = [a, &b[..n], &c[..n], &d[..n]];
    let mut evens: [&[S::f32s]; N] = [&[]; N];
    let mut odds: [&[S::f32s]; N] = [&[]; N];
    for row in 0..N {
        let (even, odd) = x[row].split_at(half);
        (evens[row], odds[row]) = (&S::as_simd_f32s(even).0[..n], &S::as_simd_f32s(odd).0[..n]);
    }
    let (upper, shift) = (simd.splat_u32s(0xffff_0000), simd.splat_u32s(16));
    let mut sums = [[simd.splat_f32s(0.0); N]; 4];
    for i in 0..n {
        for w in 0..4 {
            let bits = rows[w][i];
            let even = simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(bits, shift));
            let odd = simd.transmute_f32s_u32s(simd.and_u32s(bits, upper));
            for row in 0..N {
                sums[w][row] = simd.mul_add_e_f32s(evens[row][i], even, sums[w][row]);
                sums[w][row] = simd.mul_add_e_f32s(odds[row][i], odd, sums[w][row]);
            }
        }
    }
    let tails = [a_tail, b_tail, c_tail, d_tail];
    let mut out = [[0.0f32; N]; 4];
    for w in 0..4 {
        for row in 0..N {
            let (even, odd) = x[row].split_at(half);
            let first = half - tails[w].len();
            let tail = sum_of_pairs(tails[w], &even[first..], &odd[first..]);
            out[w][row] = simd.reduce_sum_f32s(sums[w][row]) + tail;
        }
    }
    out
}

/// A row of pairs times a row of x as [`PairsBlock`] has it.
#[inline(always)]
fn dot_pairs(w: &[u32], x: &[f32]) -> f32 {
    let (even, odd) = x.split_at(w.len());
    sum_of_pairs(w, even, odd)
}

#[inline(always)]
fn sum_of_pairs(w: &[u32], even: &[f32], odd: &[f32]) -> f32 {
    let pairs = w.iter().zip(even.iter().zip(odd));
    let each = |(bits, (even, odd)): (&u32, (&f32, &f32))| {
        f32::from_bits(bits << 16) * even + f32::from_bits(bits & 0xffff_0000) * odd
    };
    pairs.map(each).sum()
}

/// Numbers of 16 bits as f32; the shorter length counts.
pub(crate) fn widen(form: HalfType, bits: &[u16], out: &mut [f32]) {
    let n = bits.len().min(out.len());
    let (bits, out) = (&bits[..n], &mut out[..n]);
    match form {
        HalfType::F16 => bits.reinterpret_cast::<f16>().convert_to_f32_slice(out),
        HalfType::Bf16 => ARCH.dispatch(WidenBf16 { bits, out }),
    }
}

struct WidenBf16<'a> {
    bits: &'a [u16],
    out: &'a mut [f32],
}

impl WithSimd for WidenBf16<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (value, bits) in self.out.iter_mut().zip(self.bits) {
            *value = f32::from_bits(u32::from(*bits) << 16);
        }
    }
}

/// `out[j, i] = x[i] · w[j]` on one thread.
struct Block<'a> {
    x: &'a [f32],
    w: &'a [f32],
    out: &'a mut [f32],
    m: usize,
    k: usize,
}

impl WithSimd for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, w, out, m, k } = self;
        let (mut groups, mut outs) = (w.chunks_exact(4 * k), out.chunks_exact_mut(4 * m));
        for (group, out) in groups.by_ref().zip(outs.by_ref()) {
            let mut pairs = x.chunks_exact(2 * k);
            let mut j = 0;
            for pair in pairs.by_ref() {
                let (a, b) = pair.split_at(k);
                let sums = four_by::<S, 2>(simd, group, [a, b]);
                for (row, [a, b]) in sums.into_iter().enumerate() {
                    (out[row * m + j], out[row * m + j + 1]) = (a, b);
                }
                j += 2;
            }
            if j < m {
                let sums = four_by::<S, 1>(simd, group, [pairs.remainder()]);
                for (row, [sum]) in sums.into_iter().enumerate() {
                    out[row * m + j] = sum;
                }
            }
        }
        let rest = groups.remainder().chunks_exact(k);
        for (w, out) in rest.zip(outs.into_remainder().chunks_exact_mut(m)) {
            for (y, x) in out.iter_mut().zip(x.chunks_exact(k)) {
                *y = dot(w, x);
            }
        }
    }
}

/// Four rows of `W`, one after the other in `group`, times `N` rows of `x`, all of one length.
#[inline(always)]
fn four_by<S: Simd, const N: usize>(simd: S, group: &[f32], x: [&[f32]; N]) -> [[f32; N]; 4] {
    let k = group.len() / 4;
    let (a, rest) = group.split_at(k);
    let (b, rest) = rest.split_at(k);
    let (c, d) = rest.split_at(k);
    let ((a, a_tail), (b, b_tail)) = (S::as_simd_f32s(a), S::as_simd_f32s(b));
    let ((c, c_tail), (d, d_tail)) = (S::as_simd_f32s(c), S::as_simd_f32s(d));
    let n = a.len();
    let (b, c, d) = (&b[..n], &c[..n], &d[..n]);
    let mut xs: [&[S::f32s]; N] = [&[]; N];
    let mut x_tails: [&[f32]; N] = [&[]; N];
    for row in 0..N {
        let (x, tail) = S::as_simd_f32s(x[row]);
        (xs[row], x_tails[row]) = (&x[..n], tail);
    }
    let mut sums = [[simd.splat_f32s(0.0); N]; 4];
    for i in 0..n {
        for row in 0..N {
            let x = xs[row][i];
            sums[0][row] = simd.mul_add_e_f32s(x, a[i], sums[0][row]);
            sums[1][row] = simd.mul_add_e_f32s(x, b[i], sums[1][row]);
            sums[2][row] = simd.mul_add_e_f32s(x, c[i], sums[2][row]);
            sums[3][row] = simd.mul_add_e_f32s(x, d[i], sums[3][row]);
        }
    }
    let tails = [a_tail, b_tail, c_tail, d_tail];
    let mut out = [[0.0f32; N]; 4];
    for w in 0..4 {
        for row in 0..N {
            let tail = dot(tails[w], x_tails[row]);
            out[w][row] = simd.reduce_sum_f32s(sums[w][row]) + tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_bits_match_plain_loops() {
        for (m, n, k) in [(1, 1, 1), (1, 7, 33), (3, 9, 16), (4, 130, 300), (2, 4, 6), (7, 66, 70)]
        {
            let x: Vec<f32> = (0..m * k).map(|i| (i % 7) as f32 - 3.0).collect();
            let w: Vec<f32> = (0..n * k).map(|i| (i % 5) as f32 - 2.0).collect();
            for form in [HalfType::F16, HalfType::Bf16] {
                let mut bits = vec![0; n * k];
                form.narrow(&w, &mut bits);
                let mut out = vec![f32::NAN; m * n];
                few_rows_of_half(&x, (&bits, form), &mut out, m, k);
                for i in 0..m {
                    for j in 0..n {
                        let expect: f32 = (0..k).map(|l| x[i * k + l] * w[j * k + l]).sum();
                        assert_eq!(out[i * n + j], expect, "{form:?} {m} {n} {k}: ({i}, {j})");
                    }
                }
            }
        }
    }

    #[test]
    fn matches_plain_loops() {
        for (m, n, k) in [(1, 1, 1), (1, 7, 33), (3, 9, 16), (4, 130, 300), (2, 4, 5), (7, 66, 70)]
        {
            let x: Vec<f32> = (0..m * k).map(|i| (i % 7) as f32 - 3.0).collect();
            let w: Vec<f32> = (0..n * k).map(|i| (i % 5) as f32 - 2.0).collect();
            let mut out = vec![f32::NAN; m * n];
            few_rows(&x, &w, &mut out, m, k);
            for i in 0..m {
                for j in 0..n {
                    let expect: f32 = (0..k).map(|l| x[i * k + l] * w[j * k + l]).sum();
                    assert_eq!(out[i * n + j], expect, "{m} {n} {k}: ({i}, {j})");
                }
            }
        }
    }
}
