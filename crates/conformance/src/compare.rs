//! When two rows of floats are the same.

/// How far two results of the same computation may be apart, relative to the largest value of the
/// row: f32 sums of a few thousand terms in another order differ by about 1e-6 of it, and engines
/// that choose another kernel for another batch size by ten times that.
const TOLERANCE: f32 = 1e-4;

/// What differs between `found` and `expected` beyond [`TOLERANCE`], if anything: a value, or the
/// index of the largest one (unless two are as good as equal).
pub(crate) fn difference(found: &[f32], expected: &[f32]) -> Option<String> {
    if found.len() != expected.len() {
        return Some(format!("{} values in place of {}", found.len(), expected.len()));
    }
    let scale = expected.iter().filter(|x| x.is_finite()).fold(1.0_f32, |max, x| max.max(x.abs()));
    let close = |a: f32, b: f32| a == b || (a - b).abs() <= TOLERANCE * scale;
    let apart = found.iter().zip(expected).position(|(a, b)| !close(*a, *b));
    if let Some(idx) = apart {
        let (a, b) = (found.get(idx)?, expected.get(idx)?);
        return Some(format!("value {idx} is {a} in place of {b}"));
    }
    let (a, b) = (arg_max(found)?, arg_max(expected)?);
    (a != b && !close(*expected.get(a)?, *expected.get(b)?))
        .then(|| format!("the largest value is number {a} in place of {b}"))
}

/// The first bit that differs between `found` and `expected`, if any.
pub(crate) fn bit_difference(found: &[f32], expected: &[f32]) -> Option<String> {
    let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
    let idx = found.iter().zip(expected).position(|pair| !same(pair))?;
    Some(format!("value {idx} is {:e} in place of {:e}", found.get(idx)?, expected.get(idx)?))
}

fn arg_max(row: &[f32]) -> Option<usize> {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_no_difference_and_a_wrong_value_is() {
        assert_eq!(difference(&[1.0, 5.00001], &[1.0, 5.0]), None);
        assert_eq!(difference(&[f32::NEG_INFINITY, 1.0], &[f32::NEG_INFINITY, 1.0]), None);
        assert!(difference(&[1.0, 5.1], &[1.0, 5.0]).is_some());
        assert!(difference(&[f32::NAN], &[1.0]).is_some());
        assert!(difference(&[1.0], &[1.0, 2.0]).is_some());
    }

    #[test]
    fn a_bit_is_a_difference_where_bits_count() {
        assert_eq!(bit_difference(&[f32::NAN, 0.5], &[f32::NAN, 0.5]), None);
        assert!(bit_difference(&[0.0], &[-0.0]).is_some());
    }
}
