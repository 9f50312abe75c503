//! Elementary functions of vectors, within a few units in the last place of f32.
//!
//! Polynomials are weighted least-squares fits towards the smallest largest error, made in 40 digits;
//! the error stated beside each is that of the polynomial, before f32's own rounding.

use super::Simd;

/// `sum of c[i] x^i`.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, x: S::F, coefficients: [f32; N]) -> S::F {
    let mut sum = s.splat(coefficients[N - 1]);
    for at in (0..N - 1).rev() {
        sum = s.fma(sum, x, s.splat(coefficients[at]));
    }
    sum
}

/// `e^x`: 0 below -104, infinite above 88.7, NaN of NaN.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; `e^r = 1 + r + r^2 p(r)`, relative error 3e-9. The power
/// of two is multiplied in two halves, each of which is a normal number.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // NaN is the second argument, and so goes through.
    let x = s.min(s.splat(89.0), s.max(s.splat(-105.0), x));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-LN_2_HIGH), x);
    let r = s.fma(n, s.splat(-LN_2_LOW), r);
    let p = polynomial(
        s,
        r,
        [0.499_999_94, 0.166_665_2, 0.041_668_393, 0.008_368_781, 0.001_381_446_5],
    );
    let power = s.add(s.fma(s.mul(r, r), p, r), s.splat(1.0));
    // NaN has no integer: take 0, which leaves it NaN.
    let n = s.max(s.min(n, s.splat(130.0)), s.splat(-160.0));
    let half = s.round(s.mul(n, s.splat(0.5)));
    s.mul(s.mul(power, s.power_of_two(half)), s.power_of_two(s.sub(n, half)))
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    let e = exp(s, s.sub(s.splat(0.0), x));
    s.div(s.splat(1.0), s.add(s.splat(1.0), e))
}

/// `tanh x`: near zero `x + x^3 p(x^2)`, absolute error 4e-9 of `x`; beyond 0.625
/// `1 - 2 / (e^2x + 1)`.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let size = s.abs(x);
    let square = s.mul(x, x);
    let p = polynomial(
        s,
        square,
        [-0.333_332_84, 0.133_314_91, -0.053_743_497, 0.020_650_579, -0.005_717_037],
    );
    let near = s.fma(s.mul(x, square), p, x);
    let e = exp(s, s.add(size, size));
    let far = s.sub(s.splat(1.0), s.div(s.splat(2.0), s.add(e, s.splat(1.0))));
    s.select_greater(size, s.splat(0.625), s.copy_sign(far, x), near)
}

/// The error function: up to 1 `x p(x^2)`, relative error 1e-9; beyond it `1 - e^-q(x)` with
/// `q = -ln erfc`, absolute error 2e-11 up to 4, where f32 can't tell it from 1.
#[inline(always)]
pub(crate) fn erf<S: Simd>(s: S, x: S::F) -> S::F {
    let size = s.abs(x);
    let p = polynomial(
        s,
        s.mul(x, x),
        [
            std::f32::consts::FRAC_2_SQRT_PI,
            -0.376_126_26,
            0.112_835_854,
            -0.026_853_81,
            0.005_188_327_7,
            -0.000_801_019_25,
            7.853_858e-5,
        ],
    );
    let near = s.mul(x, p);
    let q = polynomial(
        s,
        s.min(s.splat(4.0), size),
        [
            -0.000_188_040_23,
            1.129_578_5,
            0.633_219_9,
            0.108_418_58,
            -0.025_208_257,
            0.004_204_562,
            -0.000_441_336_36,
            2.168_685e-5,
        ],
    );
    let far = s.sub(s.splat(1.0), exp(s, s.sub(s.splat(0.0), q)));
    s.select_greater(size, s.splat(1.0), s.copy_sign(far, x), near)
}
