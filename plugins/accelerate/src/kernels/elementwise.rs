//! Bias, activation, gating and residual addition over rows.

use std::marker::PhantomData;

use drivetrain_transformer::Activation;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{ARCH, exp};

/// Values a thread takes at a time.
const PART: usize = 1 << 14;

/// `x += y`; equal lengths.
pub(crate) fn add_assign(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "add_assign: lengths");
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// Adds `bias` `[n]` to each row of `x` `[rows, n]`.
pub(crate) fn add_bias(x: &mut [f32], bias: &[f32]) {
    for row in x.chunks_exact_mut(bias.len().max(1)) {
        add_assign(row, bias);
    }
}

/// Applies `activation` to each value.
pub(crate) fn activate(x: &mut [f32], activation: Activation) {
    if x.len() <= PART {
        return map(x, activation);
    }
    x.par_chunks_mut(PART).for_each(|part| map(part, activation));
}

/// `out = act(gate) * up` for rows of `x` `[rows, 2 n]` = `[gate | up]`, `out` `[rows, n]`.
pub(crate) fn gate(x: &[f32], out: &mut [f32], n: usize, activation: Activation) {
    assert!(n > 0 && x.len() == 2 * out.len(), "gate: lengths");
    let rows_per_part = (PART / n).max(1);
    let parts = x.par_chunks(2 * n * rows_per_part).zip(out.par_chunks_mut(n * rows_per_part));
    parts.for_each(|(x, out)| {
        for (x, out) in x.chunks_exact(2 * n).zip(out.chunks_exact_mut(n)) {
            let (gate, up) = x.split_at(n);
            out.copy_from_slice(gate);
            map(out, activation);
            out.iter_mut().zip(up).for_each(|(y, up)| *y *= up);
        }
    });
}

fn map(x: &mut [f32], activation: Activation) {
    match activation {
        Activation::Gelu => each::<Gelu>(x),
        Activation::GeluTanh => each::<GeluTanh>(x),
        Activation::QuickGelu => each::<QuickGelu>(x),
        Activation::Silu => each::<Silu>(x),
        Activation::Relu => each::<Relu>(x),
        Activation::ReluSquared => each::<ReluSquared>(x),
        Activation::Tanh => each::<Tanh>(x),
        Activation::Sigmoid => each::<Sigmoid>(x),
        Activation::Identity => {}
    }
}

/// A function of one value. A type, not a closure: only a method that is always inlined is sure to
/// be compiled for the vector level of the loop around it.
trait Function {
    fn of(x: f32) -> f32;
}

fn each<F: Function>(x: &mut [f32]) {
    ARCH.dispatch(Map::<F>(x, PhantomData));
}

struct Map<'a, F>(&'a mut [f32], PhantomData<F>);

impl<F: Function> WithSimd for Map<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for x in self.0 {
            *x = F::of(*x);
        }
    }
}

macro_rules! functions {
    ($($name:ident = |$x:ident| $value:expr;)*) => {$(
        struct $name;

        impl Function for $name {
            #[inline(always)]
            fn of($x: f32) -> f32 {
                $value
            }
        }
    )*};
}

functions! {
    Gelu = |x| gelu(x);
    GeluTanh = |x| gelu_tanh(x);
    QuickGelu = |x| x * sigmoid(1.702 * x);
    Silu = |x| x * sigmoid(x);
    Relu = |x| if x > 0.0 { x } else { 0.0 * x };
    ReluSquared = |x| if x > 0.0 { x * x } else { 0.0 * x };
    Tanh = |x| tanh(x);
    Sigmoid = |x| sigmoid(x);
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (1.0 + exp(2.0 * x))
}

/// `sqrt(2/pi)`.
const TANH_FACTOR: f32 = 0.797_884_6;

#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    0.5 * x * (1.0 + tanh(TANH_FACTOR * (x + 0.044715 * x * x * x)))
}

/// `x/2 (1 + erf(x / sqrt 2))` with Abramowitz & Stegun 7.1.26, whose erf errs by 1.5e-7 at most.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    let z = x * std::f32::consts::FRAC_1_SQRT_2;
    let a = z.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * a);
    let mut p = 1.061_405_4f32;
    p = p * t - 1.453_152;
    p = p * t + 1.421_413_7;
    p = p * t - 0.284_496_74;
    p = p * t + 0.254_829_6;
    let tail = p * t * exp(-a * a);
    let half_x = 0.5 * x;
    if x >= 0.0 { half_x * (2.0 - tail) } else { half_x * tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_match_their_formulas() {
        for name in Activation::names() {
            let activation = Activation::from_name(name).unwrap();
            let inputs: Vec<f32> = (-1200..=1200).map(|i| i as f32 / 100.0).collect();
            let mut found = inputs.clone();
            activate(&mut found, activation);
            for (x, y) in inputs.iter().zip(&found) {
                let expect = activation.reference(f64::from(*x));
                let bound = 5e-7 * (1.0 + expect.abs());
                assert!((f64::from(*y) - expect).abs() <= bound, "{name}({x}) = {y}, not {expect}");
            }
        }
    }

    #[test]
    fn gates_multiply_row_by_row() {
        let mut out = [0.0; 4];
        gate(&[-1.0, 2.0, 5.0, 6.0, 3.0, 4.0, 7.0, 8.0], &mut out, 2, Activation::Relu);
        assert_eq!(out, [0.0, 12.0, 21.0, 32.0]);
    }
}
