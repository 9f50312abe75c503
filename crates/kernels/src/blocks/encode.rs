//! Weights to blocks, at load, without calibration.
//!
//! `Q8_0` is the largest size over 127. `Q4_1` searches: for some ranges that clip the extremes a little,
//! elements are rounded and the scale and the least value that fit them best (least squares) are taken in
//! f16; the range with the smallest squared error wins. Weights that lie on such a grid come back as they
//! were.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::BlockFormat;
use crate::error::KernelError;
use crate::matmul::Source;
use crate::pool::{Parts, Pool, part};

/// Elements of a block of either format.
const LEN: usize = 32;

/// Steps of 4 bits.
const STEPS: f32 = 15.0;

/// Ranges that are tried, the whole one first: its 15 steps are stretched to that many.
const RANGES: [f32; 9] = [15.0, 14.6, 14.8, 15.2, 15.4, 15.6, 15.8, 16.1, 16.5];

/// Rounds of fitting and rounding again.
const ROUNDS: usize = 2;

/// Fills `to`, rows of `row_bytes`, from the rows of `sources`.
pub(super) fn encode(
    format: BlockFormat,
    pool: &Pool,
    sources: &[Source<'_>],
    (n_in, row_bytes): (usize, usize),
    to: &mut [u8],
) -> Result<(), KernelError> {
    let block = match format {
        BlockFormat::Q8Zero => q8_zero,
        BlockFormat::Q4One => q4_one,
        _ => {
            let wanted = "Q8_0 (8) or Q4_1 (4): weights are encoded to no other";
            let found = format.block_bytes();
            return Err(KernelError::Value {
                what: "the format, in bytes a block,",
                found,
                wanted,
            });
        }
    };
    let mut first = 0;
    for source in sources {
        let n_rows = source.len() / n_in;
        let rows = Parts::new(&mut to[first * row_bytes..(first + n_rows) * row_bytes]);
        pool.run(|thread_idx, n_threads| {
            let mut row = vec![0.0_f32; n_in];
            for idx in part(n_rows, 1, thread_idx, n_threads) {
                let range = idx * n_in..(idx + 1) * n_in;
                match source {
                    Source::F32(all) => row.copy_from_slice(&all[range]),
                    Source::F16(all) => all[range].convert_to_f32_slice(&mut row),
                    Source::Bf16(all) => all[range].convert_to_f32_slice(&mut row),
                }
                // SAFETY: each row is one thread's.
                let to = unsafe { rows.take(idx * row_bytes..(idx + 1) * row_bytes) };
                let blocks = to.chunks_exact_mut(format.block_bytes());
                for (to, values) in blocks.zip(row.as_chunks::<LEN>().0) {
                    block(values, to);
                }
            }
        });
        first += n_rows;
    }
    Ok(())
}

/// Gives the numbers of 32 neighbouring inputs of an output that share a scale and a zero.
pub(super) type Group<'g> = dyn Fn(usize, usize, &mut [u8; LEN]) -> (f16, u8) + Sync + 'g;

/// Fills `to`, rows of `n_in` elements, from groups; rows and columns are counted from 0.
pub(super) fn groups(
    format: BlockFormat,
    pool: &Pool,
    group: &Group<'_>,
    (n_in, row_bytes): (usize, usize),
    to: &mut [u8],
) -> Result<(), KernelError> {
    // Whether there are such blocks at all.
    format.put_group(f16::ZERO, 0, &[0; LEN], &mut vec![0; format.block_bytes()])?;
    let n_rows = to.len() / row_bytes;
    let rows = Parts::new(to);
    pool.run(|thread_idx, n_threads| {
        let mut numbers = [0; LEN];
        for row in part(n_rows, 1, thread_idx, n_threads) {
            // SAFETY: each row is one thread's.
            let to = unsafe { rows.take(row * row_bytes..(row + 1) * row_bytes) };
            let blocks = to.chunks_exact_mut(format.block_bytes());
            for (column, to) in (0..n_in).step_by(LEN).zip(blocks) {
                let (scale, zero) = group(row, column, &mut numbers);
                format
                    .put_group(scale, zero, &numbers, to)
                    .expect("a block of a format tried above");
            }
        }
    });
    Ok(())
}

/// The nearest integer within a range.
fn nearest(x: f32, most: f32) -> f32 {
    x.round_ties_even().clamp(0.0, most)
}

fn q8_zero(values: &[f32; LEN], to: &mut [u8]) {
    let largest = values.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let scale = f16::from_f32(largest / 127.0);
    to[..2].copy_from_slice(&scale.to_le_bytes());
    let scale = scale.to_f32();
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for (to, x) in to[2..].iter_mut().zip(values) {
        // The scale was rounded, so that the largest may be a little more than 127 of it.
        *to = ((x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8).cast_unsigned();
    }
}

/// A scale and a least value, as f16 holds them, and their squared error.
#[derive(Clone, Copy)]
struct Fit {
    scale: f32,
    least: f32,
    error: f32,
}

impl Fit {
    fn new(values: &[f32; LEN], scale: f32, least: f32) -> Self {
        let (scale, least) = (f16::from_f32(scale).to_f32(), f16::from_f32(least).to_f32());
        let mut fit = Self { scale, least, error: 0.0 };
        let errors = values.iter().map(|x| (fit.step(*x) * scale + least - x).powi(2));
        fit.error = errors.sum();
        fit
    }

    /// The step that is nearest to `x`.
    fn step(&self, x: f32) -> f32 {
        if self.scale > 0.0 { nearest((x - self.least) / self.scale, STEPS) } else { 0.0 }
    }

    /// The scale and the least value that fit best what this rounds to.
    fn again(&self, values: &[f32; LEN]) -> Option<Self> {
        let n = LEN as f32;
        let (mut q, mut qq, mut x, mut qx) = (0.0, 0.0, 0.0, 0.0);
        for value in values {
            let step = self.step(*value);
            q += step;
            qq += step * step;
            x += value;
            qx += step * value;
        }
        let determinant = n * qq - q * q;
        (determinant > 0.0).then(|| {
            let scale = (n * qx - q * x) / determinant;
            Self::new(values, scale, (x - scale * q) / n)
        })
    }
}

fn q4_one(values: &[f32; LEN], to: &mut [u8]) {
    let (mut least, mut largest) = (values[0], values[0]);
    for x in values {
        (least, largest) = (least.min(*x), largest.max(*x));
    }
    let range = largest - least;
    let mut best = Fit::new(values, range / STEPS, least);
    for steps in RANGES {
        if best.error == 0.0 {
            break;
        }
        // The range's middle stays where it is.
        let scale = range / steps;
        let mut fit = Fit::new(values, scale, least + (range - scale * STEPS) / 2.0);
        for _ in 0..ROUNDS {
            let Some(again) = fit.again(values) else { break };
            if again.error >= fit.error {
                break;
            }
            fit = again;
        }
        if fit.error < best.error {
            best = fit;
        }
    }
    to[..2].copy_from_slice(&f16::from_f32(best.scale).to_le_bytes());
    to[2..4].copy_from_slice(&f16::from_f32(best.least).to_le_bytes());
    let (low, high) = values.split_at(LEN / 2);
    for ((to, low), high) in to[4..].iter_mut().zip(low).zip(high) {
        *to = best.step(*low) as u8 | (best.step(*high) as u8) << 4;
    }
}
