//! The formulas, in f64.

use drivetrain_kernels::{Norm, NormKind};

/// One row.
pub(super) fn normalise(norm: &Norm<'_>, row: &[f64]) -> Vec<f64> {
    let n = row.len() as f64;
    let mean = match norm.kind {
        NormKind::Layer => row.iter().sum::<f64>() / n,
        _ => 0.0,
    };
    let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    let root = (variance + f64::from(norm.epsilon)).sqrt();
    let one = if norm.kind == NormKind::RmsPlusOne { 1.0 } else { 0.0 };
    let weigh = |(idx, x): (usize, &f64)| {
        let bias = norm.bias.map_or(0.0, |bias| f64::from(bias[idx]));
        (x - mean) / root * (one + f64::from(norm.weight[idx])) + bias
    };
    row.iter().enumerate().map(weigh).collect()
}
