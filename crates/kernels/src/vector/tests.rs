//! Elementary functions against f64, for every instruction set that the machine has.

use drivetrain_kernels::Isa;
use drivetrain_kernels::testing::{self, Function};

fn apply(isa: Isa, function: Function, values: &[f32]) -> Vec<f32> {
    let mut values = values.to_vec();
    testing::apply(isa, function, &mut values);
    values
}

/// The error function by its series, and far out by its continued fraction.
pub(crate) fn erf(x: f64) -> f64 {
    let size = x.abs();
    if size < 3.0 {
        let (mut term, mut sum) = (size, size);
        for n in 1..200 {
            let n = f64::from(n);
            term *= -size * size / n;
            sum += term / (2.0 * n + 1.0);
        }
        return sum.copysign(x) * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let fraction = (1..80).rev().fold(size, |below, n| size + f64::from(n) / 2.0 / below);
    let rest = (-size * size).exp() / fraction / std::f64::consts::PI.sqrt();
    (1.0 - rest).copysign(x)
}

/// Largest relative error, in units of f32's precision: three roundings on the way, and without a
/// fused product one more for each step of a polynomial.
const UNITS: f64 = 6.0;

fn check(function: Function, exact: impl Fn(f64) -> f64, range: f32) {
    let n = 20_001;
    let grid = (0..n).map(|idx| range * (2.0 * idx as f32 / (n - 1) as f32 - 1.0));
    let small = (0..40).map(|idx| (-(idx as f32)).exp2());
    let values: Vec<f32> = grid.chain(small).collect();
    for isa in crate::available() {
        for (&x, y) in values.iter().zip(apply(isa, function, &values)) {
            let wanted = exact(f64::from(x));
            let tolerance = UNITS * f64::from(f32::EPSILON) * wanted.abs() + 1e-38;
            let error = (f64::from(y) - wanted).abs();
            assert!(error <= tolerance, "{isa} {function:?}({x}): {y}, not {wanted}");
        }
    }
}

#[test]
fn functions_are_exact_to_a_few_units() {
    check(Function::Exp, f64::exp, 87.0);
    check(Function::Sigmoid, |x| 1.0 / (1.0 + (-x).exp()), 80.0);
    check(Function::Tanh, f64::tanh, 12.0);
    check(Function::Erf, erf, 5.0);
}

#[test]
fn extremes_are_what_mathematics_says() {
    let values = [f32::NEG_INFINITY, f32::INFINITY, f32::NAN, -0.0, 1e30, -1e30, 88.9, -103.9];
    for isa in crate::available() {
        let exp = apply(isa, Function::Exp, &values);
        assert_eq!((exp[0], exp[1], exp[3]), (0.0, f32::INFINITY, 1.0), "{isa}");
        assert_eq!((exp[4], exp[5], exp[6]), (f32::INFINITY, 0.0, f32::INFINITY), "{isa}");
        assert!(exp[2].is_nan() && exp[7] < 1e-44, "{isa}");
        let sigmoid = apply(isa, Function::Sigmoid, &values);
        assert_eq!((sigmoid[0], sigmoid[1], sigmoid[3]), (0.0, 1.0, 0.5), "{isa}");
        for function in [Function::Tanh, Function::Erf] {
            let y = apply(isa, function, &values);
            assert_eq!((y[0], y[1], y[3]), (-1.0, 1.0, 0.0), "{isa} {function:?}");
            assert!(y[2].is_nan(), "{isa} {function:?}");
        }
    }
}
