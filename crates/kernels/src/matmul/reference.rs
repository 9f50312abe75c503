//! What a product means: plain loops with sums in f64.

use half::{bf16, f16};

use crate::vector::erf;
use drivetrain_kernels::{Activation, Precision};

/// A row of weights as the precision holds it.
pub(super) fn held(row: &[f32], precision: Precision) -> Vec<f32> {
    match precision {
        Precision::F32 => row.to_vec(),
        Precision::F16 => row.iter().map(|x| f16::from_f32(*x).to_f32()).collect(),
        Precision::Bf16 => row.iter().map(|x| bf16::from_f32(*x).to_f32()).collect(),
        Precision::Int8 | Precision::Int8Weights => bytes(row),
        other => panic!("{other:?} has no reference"),
    }
}

/// A row rounded to 255 steps between its largest value and that with the other sign.
pub(crate) fn bytes(row: &[f32]) -> Vec<f32> {
    let largest = row.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let scale = largest / 127.0;
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    row.iter().map(|x| (x * inverse).round_ties_even() * scale).collect()
}

/// `x W^T`, `[n_rows, n_out]`.
pub(super) fn product(activations: &[f32], weights: &[f32], n_in: usize) -> Vec<f64> {
    let dot = |x: &[f32], w: &[f32]| -> f64 {
        x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
    };
    let rows = activations.chunks_exact(n_in);
    rows.flat_map(|x| weights.chunks_exact(n_in).map(move |w| dot(x, w))).collect()
}

/// The function itself.
pub(super) fn activation(activation: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        Activation::None => x,
        Activation::Relu => x.max(0.0),
        Activation::Gelu => x / 2.0 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            x / 2.0 * (1.0 + inner.tanh())
        }
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Silu => x * sigmoid(x),
        Activation::Tanh => x.tanh(),
        Activation::ReluSquared => x.max(0.0).powi(2),
        Activation::Sigmoid => sigmoid(x),
        other => panic!("{other:?} has no reference"),
    }
}
