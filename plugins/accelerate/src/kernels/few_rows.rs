//! A few rows times a matrix: `out = x Wᵀ` for decode steps.
//!
//! Each row of `W` is read from memory once and multiplied with every row of `x`, which stays in
//! the cache. Four rows of `W` at a time share the loads of `x`.

use rayon::prelude::*;

use super::{ARCH, LANES, PARALLEL_WORK, dot, sum_lanes};

/// `out[i, j] = x[i] · w[j]` for `x` `[m, k]`, `w` `[n, k]`, `out` `[m, n]`; `m` and `k` at least 1.
pub(crate) fn few_rows(x: &[f32], w: &[f32], out: &mut [f32], m: usize, k: usize) {
    let n = out.len() / m;
    assert!(x.len() == m * k && w.len() == n * k && out.len() == m * n, "few_rows: lengths");
    if m == 1 {
        return by_columns(x, w, out, 1, k);
    }
    let mut columns = vec![0.0f32; n * m];
    by_columns(x, w, &mut columns, m, k);
    ARCH.dispatch(
        #[inline(always)]
        || {
            for (i, row) in out.chunks_exact_mut(n).enumerate() {
                row.iter_mut().zip(columns.chunks_exact(m)).for_each(|(y, col)| *y = col[i]);
            }
        },
    );
}

/// The same with `out` as `[n, m]`.
fn by_columns(x: &[f32], w: &[f32], out: &mut [f32], m: usize, k: usize) {
    let n = out.len() / m;
    let n_threads = rayon::current_num_threads();
    if n_threads == 1 || n * k * m < PARALLEL_WORK {
        return block(x, w, out, m, k);
    }
    // Some more parts than threads, so that a late thread costs little; whole groups of four.
    let part = n.div_ceil(n_threads * 4).next_multiple_of(4);
    out.par_chunks_mut(part * m)
        .zip(w.par_chunks(part * k))
        .for_each(|(out, w)| block(x, w, out, m, k));
}

fn block(x: &[f32], w: &[f32], out: &mut [f32], m: usize, k: usize) {
    ARCH.dispatch(
        #[inline(always)]
        || {
            let (mut groups, mut outs) = (w.chunks_exact(4 * k), out.chunks_exact_mut(4 * m));
            for (group, out) in groups.by_ref().zip(outs.by_ref()) {
                for (j, x) in x.chunks_exact(k).enumerate() {
                    let sums = dot_4(group, x, k);
                    for (row, sum) in sums.into_iter().enumerate() {
                        out[row * m + j] = sum;
                    }
                }
            }
            let rest = groups.remainder().chunks_exact(k);
            for (w, out) in rest.zip(outs.into_remainder().chunks_exact_mut(m)) {
                out.iter_mut().zip(x.chunks_exact(k)).for_each(|(y, x)| *y = dot(w, x));
            }
        },
    );
}

/// `x` times four rows of `k` values.
#[inline(always)]
fn dot_4(rows: &[f32], x: &[f32], k: usize) -> [f32; 4] {
    let (a, rest) = rows.split_at(k);
    let (b, rest) = rest.split_at(k);
    let (c, d) = rest.split_at(k);
    let (xs, x_tail) = x.as_chunks::<LANES>();
    let (a, a_tail) = a.as_chunks::<LANES>();
    let (b, b_tail) = b.as_chunks::<LANES>();
    let (c, c_tail) = c.as_chunks::<LANES>();
    let (d, d_tail) = d.as_chunks::<LANES>();
    let mut sums = [[0.0f32; LANES]; 4];
    for ((((x, a), b), c), d) in xs.iter().zip(a).zip(b).zip(c).zip(d) {
        for lane in 0..LANES {
            sums[0][lane] += x[lane] * a[lane];
            sums[1][lane] += x[lane] * b[lane];
            sums[2][lane] += x[lane] * c[lane];
            sums[3][lane] += x[lane] * d[lane];
        }
    }
    let tails = [a_tail, b_tail, c_tail, d_tail];
    let mut out = sums.map(sum_lanes);
    for (sum, tail) in out.iter_mut().zip(tails) {
        *sum += tail.iter().zip(x_tail).map(|(w, x)| w * x).sum::<f32>();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_plain_loops() {
        for (m, n, k) in [(1, 1, 1), (1, 7, 33), (3, 9, 16), (4, 130, 300), (2, 4, 5)] {
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
