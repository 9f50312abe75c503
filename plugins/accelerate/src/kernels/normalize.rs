//! Layer norm and RMS norm over rows.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{ARCH, PARALLEL_WORK, dot, sum};

/// `out = (x - mean) / sqrt(var + eps) * w + b` for each row; `x`, `out` `[rows, n]`, `w`, `b` `[n]`.
pub(crate) fn layer_norm(x: &[f32], w: &[f32], b: &[f32], out: &mut [f32], eps: f32) {
    assert!(x.len() == out.len() && w.len() == b.len() && !w.is_empty(), "layer_norm: lengths");
    by_rows(x, out, w.len(), &LayerNorm { w, b, eps });
}

/// `out = x / sqrt(mean(x²) + eps) * w` for each row; `x`, `out` `[rows, n]`, `w` `[n]`.
pub(crate) fn rms_norm(x: &[f32], w: &[f32], out: &mut [f32], eps: f32) {
    assert!(x.len() == out.len() && !w.is_empty(), "rms_norm: lengths");
    by_rows(x, out, w.len(), &RmsNorm { w, eps });
}

/// A norm of one row.
trait RowNorm: Sync {
    fn row(&self, x: &[f32], out: &mut [f32]);
}

struct LayerNorm<'a> {
    w: &'a [f32],
    b: &'a [f32],
    eps: f32,
}

impl RowNorm for LayerNorm<'_> {
    #[inline(always)]
    fn row(&self, x: &[f32], out: &mut [f32]) {
        let n = x.len() as f32;
        let mean = sum(x) / n;
        for (y, x) in out.iter_mut().zip(x) {
            *y = x - mean;
        }
        let scale = 1.0 / (dot(out, out) / n + self.eps).sqrt();
        for ((y, w), b) in out.iter_mut().zip(self.w).zip(self.b) {
            *y = *y * scale * w + b;
        }
    }
}

struct RmsNorm<'a> {
    w: &'a [f32],
    eps: f32,
}

impl RowNorm for RmsNorm<'_> {
    #[inline(always)]
    fn row(&self, x: &[f32], out: &mut [f32]) {
        let scale = 1.0 / (dot(x, x) / x.len() as f32 + self.eps).sqrt();
        for ((y, x), w) in out.iter_mut().zip(x).zip(self.w) {
            *y = x * scale * w;
        }
    }
}

fn by_rows(x: &[f32], out: &mut [f32], n: usize, norm: &impl RowNorm) {
    if x.len() < PARALLEL_WORK {
        return ARCH.dispatch(Part { x, out, n, norm });
    }
    let len = n * (PARALLEL_WORK / 4).div_ceil(n);
    x.par_chunks(len)
        .zip(out.par_chunks_mut(len))
        .for_each(|(x, out)| ARCH.dispatch(Part { x, out, n, norm }));
}

/// Some rows on one thread.
struct Part<'a, N> {
    x: &'a [f32],
    out: &'a mut [f32],
    n: usize,
    norm: &'a N,
}

impl<N: RowNorm> WithSimd for Part<'_, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (x, out) in self.x.chunks_exact(self.n).zip(self.out.chunks_exact_mut(self.n)) {
            self.norm.row(x, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_match_their_formulas() {
        let n = 37;
        let x: Vec<f32> = (0..2 * n).map(|i| 100.0 + (i * i % 11) as f32).collect();
        let w: Vec<f32> = (0..n).map(|i| 1.0 + i as f32 / 10.0).collect();
        let b: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let (mut layer, mut rms) = (vec![0.0; 2 * n], vec![0.0; 2 * n]);
        layer_norm(&x, &w, &b, &mut layer, 1e-5);
        rms_norm(&x, &w, &mut rms, 1e-6);
        for row in 0..2 {
            let x: Vec<f64> = x[row * n..(row + 1) * n].iter().map(|x| f64::from(*x)).collect();
            let mean = x.iter().sum::<f64>() / n as f64;
            let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
            let square = x.iter().map(|x| x * x).sum::<f64>() / n as f64;
            for i in 0..n {
                let (w, b) = (f64::from(w[i]), f64::from(b[i]));
                let expect = (x[i] - mean) / (var + 1e-5).sqrt() * w + b;
                assert!((f64::from(layer[row * n + i]) - expect).abs() < 2e-4, "layer norm");
                let expect = x[i] / (square + 1e-6).sqrt() * w;
                assert!((f64::from(rms[row * n + i]) - expect).abs() < 1e-5, "rms norm");
            }
        }
    }
}
