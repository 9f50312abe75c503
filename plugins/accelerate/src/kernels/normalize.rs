//! Layer norm and RMS norm over rows.

use rayon::prelude::*;

use super::{ARCH, LANES, PARALLEL_WORK, dot, sum_lanes};

/// `out = (x - mean) / sqrt(var + eps) * w + b` for each row; `x`, `out` `[rows, n]`, `w`, `b` `[n]`.
pub(crate) fn layer_norm(x: &[f32], w: &[f32], b: &[f32], out: &mut [f32], eps: f32) {
    assert!(x.len() == out.len() && w.len() == b.len() && !w.is_empty(), "layer_norm: lengths");
    by_rows(x, out, w.len(), |x, out| {
        let n = x.len() as f32;
        let mean = sum(x) / n;
        out.iter_mut().zip(x).for_each(|(y, x)| *y = x - mean);
        let scale = 1.0 / (dot(out, out) / n + eps).sqrt();
        out.iter_mut().zip(w).zip(b).for_each(|((y, w), b)| *y = *y * scale * w + b);
    });
}

/// `out = x / sqrt(mean(x²) + eps) * w` for each row; `x`, `out` `[rows, n]`, `w` `[n]`.
pub(crate) fn rms_norm(x: &[f32], w: &[f32], out: &mut [f32], eps: f32) {
    assert!(x.len() == out.len() && !w.is_empty(), "rms_norm: lengths");
    by_rows(x, out, w.len(), |x, out| {
        let scale = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
        out.iter_mut().zip(x).zip(w).for_each(|((y, x), w)| *y = x * scale * w);
    });
}

#[inline(always)]
fn by_rows(x: &[f32], out: &mut [f32], n: usize, row: impl Fn(&[f32], &mut [f32]) + Sync) {
    let part = |x: &[f32], out: &mut [f32]| {
        ARCH.dispatch(
            #[inline(always)]
            || x.chunks_exact(n).zip(out.chunks_exact_mut(n)).for_each(|(x, out)| row(x, out)),
        );
    };
    if x.len() < PARALLEL_WORK {
        return part(x, out);
    }
    let len = n * (PARALLEL_WORK / 4).div_ceil(n);
    x.par_chunks(len).zip(out.par_chunks_mut(len)).for_each(|(x, out)| part(x, out));
}

#[inline(always)]
fn sum(x: &[f32]) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += chunk[lane];
        }
    }
    sum_lanes(sums) + tail.iter().sum::<f32>()
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
