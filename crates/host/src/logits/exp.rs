//! Exponentials of many numbers at once.
//!
//! `exp(x)` is `2^k exp(r)` with `k` the whole number nearest to `x / ln 2`, so that `|r|` is at
//! most `ln 2 / 2`; there the Taylor polynomial of degree 7 is off by less than 6e-9. Plain
//! arithmetic without branches or calls, which compilers make vector instructions of.

/// Adding it to a number below 2^22 leaves the nearest whole number in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// Below it the result is 0: it would be less than 1e-37.
const LEAST: f32 = -87.0;

/// `ln 2` as a sum whose first part has so few digits that its product with `k` is exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// Numbers that are worked on side by side.
const LANES: usize = 16;

/// Numbers whose sum is kept in single precision.
pub(super) const BLOCK: usize = 256;

/// `exp(x)` for `x` from minus infinity to 0, to 2 units in the last place; NaN for NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let held = if x < LEAST { LEAST } else { x };
    let shifted = held * std::f32::consts::LOG2_E + MAGIC;
    let k = shifted - MAGIC;
    let r = (held - k * LN_2_HIGH) - k * LN_2_LOW;
    // Pairs of terms do not wait for one another, as they would from the highest down.
    let (r2, low, middle) = (r * r, 1.0 + r, 0.5 + r * (1.0 / 6.0));
    let (high, top) = (1.0 / 24.0 + r * (1.0 / 120.0), 1.0 / 720.0 + r * (1.0 / 5040.0));
    let p = (low + middle * r2) + (high + top * r2) * (r2 * r2);
    // The exponent of 2^k is the low bits of `shifted`, moved to where a float has its exponent.
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < LEAST { 0.0 } else { p * scale }
}

/// Writes `exp(x - max)` of each `x` of a row, all at most `max`, and returns their sum. `out` is as
/// long as the row.
pub(super) fn write(row: &[f32], max: f32, out: &mut [f32]) -> f64 {
    let mut total = 0.0;
    for (row, out) in row.chunks(BLOCK).zip(out.chunks_mut(BLOCK)) {
        for (out, x) in out.iter_mut().zip(row) {
            *out = exp(x - max);
        }
        total += sum(out);
    }
    total
}

/// The sum of `exp(x - max)` over a row; all `x` at most `max`.
pub(super) fn sum_exp(row: &[f32], max: f32) -> f64 {
    let mut exps = [0.0; BLOCK];
    row.chunks(BLOCK).map(|row| write(row, max, &mut exps[..row.len()])).sum()
}

/// The sum of at most [`BLOCK`] numbers.
pub(super) fn sum(block: &[f32]) -> f64 {
    let mut sums = [0.0_f32; LANES];
    let (chunks, rest) = block.as_chunks::<LANES>();
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x);
    }
    sums.iter().chain(rest).map(|x| f64::from(*x)).sum()
}

/// The highest of a row, minus infinity for none, and whether one of them is NaN.
pub(super) fn highest(row: &[f32]) -> (f32, bool) {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut nan = [0_u32; LANES];
    let (chunks, rest) = row.as_chunks::<{ 2 * LANES }>();
    for chunk in chunks {
        let (left, right) = chunk.split_at(LANES);
        for (((high, nan), &x), &y) in lanes.iter_mut().zip(&mut nan).zip(left).zip(right) {
            *high = higher(higher(*high, x), y);
            // One comparison tells it of both.
            *nan |= u32::from(x.is_nan() | y.is_nan());
        }
    }
    let has_nan = nan.iter().fold(0, |any, n| any | n) != 0;
    (higher_of(lanes, rest), has_nan || rest.iter().any(|x| x.is_nan()))
}

/// The highest of a row that is no NaN, minus infinity for none.
pub(super) fn highest_number(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(high, x)| *high = higher(*high, *x));
    }
    higher_of(lanes, rest)
}

/// `x` if it is above `high`, which is no NaN.
#[inline(always)]
fn higher(high: f32, x: f32) -> f32 {
    if x > high { x } else { high }
}

/// The highest of the lanes and the rest, by halves, which do not wait for one another.
#[inline(always)]
fn higher_of(mut lanes: [f32; LANES], rest: &[f32]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        let (low, high) = lanes.split_at_mut(half);
        low.iter_mut().zip(high).for_each(|(low, high)| *low = higher(*low, *high));
        half /= 2;
    }
    rest.iter().fold(lanes[0], |high, x| higher(high, *x))
}

/// Whether one of a row is NaN. Two numbers are compared with each other, which tells it of both.
pub(crate) fn has_nan(row: &[f32]) -> bool {
    let mut nan = [0_u32; LANES];
    let (chunks, rest) = row.as_chunks::<{ 2 * LANES }>();
    for chunk in chunks {
        let (left, right) = chunk.split_at(LANES);
        for ((nan, x), y) in nan.iter_mut().zip(left).zip(right) {
            *nan |= u32::from(x.is_nan() | y.is_nan());
        }
    }
    nan.iter().any(|n| *n != 0) || rest.iter().any(|x| x.is_nan())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_those_of_double_precision() {
        let mut x = 0.0_f32;
        while x > LEAST {
            let (found, expect) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((found - expect).abs() < 2.5e-7 * expect, "{x}: {found} {expect}");
            x = x * 1.000_7 - 1.1e-4;
        }
        assert_eq!((exp(0.0), exp(-0.0), exp(-87.5), exp(f32::NEG_INFINITY)), (1.0, 1.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_and_highest_are_right_at_any_length() {
        for n in [0, 1, 15, 16, 17, 255, 256, 257, 5000] {
            let row: Vec<f32> = (0..n).map(|i| -((i * 7919 % 1009) as f32) / 50.0).collect();
            let expect: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            assert!((sum_exp(&row, 0.0) - expect).abs() <= 1e-6 * expect, "{n}");
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!((highest(&row), highest_number(&row)), ((max, false), max));
        }
        for at in [0, 15, 16, 31, 40] {
            let mut row = [1.0; 41];
            row[at] = f32::NAN;
            assert_eq!((highest(&row), highest_number(&row)), ((1.0, true), 1.0));
            assert!(has_nan(&row));
            row[at] = f32::INFINITY;
            assert!(!has_nan(&row));
        }
    }
}
