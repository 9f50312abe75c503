//! CPU kernels over plain slices, for what candle has no fast code for.
//!
//! Loops are written over arrays of [`LANES`] values, which the compiler turns into the vector
//! instructions of the level that `pulp` finds at run time. For that everything in them must be
//! inlined into a [`pulp::WithSimd`]; closures are not sure to be, and then run at the lowest level.

mod attend;
mod elementwise;
mod few_rows;
mod normalize;
mod position_bias;
mod rotate;
mod softmax;

use std::sync::LazyLock;

use pulp::Arch;

pub(crate) use attend::{AttendKeys, attend};
pub(crate) use elementwise::{activate, add_assign, add_bias, gate};
pub(crate) use few_rows::{FewRows, few_rows, few_rows_of_half, in_parts, widen};
pub(crate) use normalize::{layer_norm, rms_norm};
pub(crate) use position_bias::PositionBias;
pub(crate) use rotate::{rotate_halves, rotate_pairs};
pub(crate) use softmax::{Scores, masked_softmax};

/// Values worked on together: two AVX2 or four SSE registers.
const LANES: usize = 16;

/// What this machine can do; asked once.
static ARCH: LazyLock<Arch> = LazyLock::new(Arch::new);

/// Multiplications below which work isn't worth handing to another thread.
const PARALLEL_WORK: usize = 1 << 15;

/// `a · b`; the shorter length counts.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_tail) = a.as_chunks::<LANES>();
    let (b, b_tail) = b.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    sum_lanes(sums) + tail
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

#[inline(always)]
fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// `e^x` to about 2 units in the last place; 0 below -87, largest finite powers above 88.
///
/// Cody and Waite's reduction, `x = n ln 2 + r`, and a polynomial of degree 6 on `|r| <= ln 2 / 2`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // 1.5 * 2^23: adding it leaves the nearest whole number in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut p = 1.987_569_1e-4f32;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let mantissa = p * r * r + r + 1.0;
    let power = f32::from_bits(mantissa.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x < -87.0 { 0.0 } else { power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_a_few_units() {
        for i in -870..=880 {
            let x = i as f32 / 10.0;
            let (found, expect) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((found - expect).abs() <= 3e-7 * expect, "exp({x}) = {found}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn dot_takes_tails() {
        for n in [0, 1, 15, 16, 17, 40] {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let b = vec![2.0; n];
            assert_eq!(dot(&a, &b), (n * n) as f32 - n as f32);
        }
    }
}
