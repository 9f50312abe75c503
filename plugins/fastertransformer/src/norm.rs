//! A norm with its parameters.

use drivetrain_kernels::{Cpu, KernelError, Norm, NormKind, NormRows};
use drivetrain_transformer as transformer;

/// A norm over rows, or over the heads in rows.
#[derive(Debug)]
pub(crate) struct NormLayer {
    kind: NormKind,
    eps: f32,
    /// `[dim]`, any offset already added.
    weight: Vec<f32>,
    /// `[dim]`.
    bias: Option<Vec<f32>>,
}

impl NormLayer {
    pub(crate) fn new(
        norm: transformer::Norm,
        mut weight: Vec<f32>,
        bias: Option<Vec<f32>>,
    ) -> Self {
        weight.iter_mut().for_each(|w| *w += norm.weight_offset);
        let kind = match norm.kind {
            transformer::NormKind::Layer => NormKind::Layer,
            transformer::NormKind::Rms => NormKind::Rms,
        };
        Self { kind, eps: norm.eps as f32, weight, bias }
    }

    /// Columns of a row.
    pub(crate) fn dim(&self) -> usize {
        self.weight.len()
    }

    fn kernel(&self) -> Norm<'_> {
        let Self { kind, eps, weight, bias } = self;
        Norm { kind: *kind, weight, bias: bias.as_deref(), epsilon: *eps }
    }

    /// `output = norm(x)`.
    pub(crate) fn apply(
        &self,
        cpu: Cpu<'_>,
        x: &[f32],
        output: &mut [f32],
    ) -> Result<(), KernelError> {
        self.kernel().apply(cpu, NormRows { x, add: None, sum: None, output })
    }

    /// `rows = norm(rows)` for each head of `n` columns from `first` on, in rows of `stride`.
    pub(crate) fn apply_heads(&self, rows: &mut [f32], stride: usize, (first, n): (usize, usize)) {
        let dim = self.weight.len();
        for row in rows.chunks_exact_mut(stride) {
            for head in row[first..first + n].chunks_exact_mut(dim) {
                self.one(head);
            }
        }
    }

    /// A row in place.
    fn one(&self, row: &mut [f32]) {
        let n = row.len() as f32;
        let mean = match self.kind {
            NormKind::Layer => row.iter().sum::<f32>() / n,
            _ => 0.0,
        };
        let square: f32 = row.iter().map(|x| (x - mean) * (x - mean)).sum();
        let factor = 1.0 / (square / n + self.eps).sqrt();
        for (idx, (x, weight)) in row.iter_mut().zip(&self.weight).enumerate() {
            let bias = self.bias.as_ref().map_or(0.0, |bias| bias[idx]);
            *x = (*x - mean) * factor * weight + bias;
        }
    }
}
