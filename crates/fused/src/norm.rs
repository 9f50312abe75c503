//! A norm with its parameters.

use drivetrain_kernels::{Cpu, KernelError, Norm, NormHeads, NormKind, NormRows};
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
    pub(crate) fn apply_heads(
        &self,
        cpu: Cpu<'_>,
        rows: &mut [f32],
        stride: usize,
        (first, n): (usize, usize),
    ) -> Result<(), KernelError> {
        let n_heads = n / self.dim();
        let heads = NormHeads { rows, stride, first_column: first, n_heads, onto: None };
        self.kernel().apply_heads(cpu, heads)
    }

    /// `x += norm(rows)`; `rows` are overwritten.
    pub(crate) fn add_to(
        &self,
        cpu: Cpu<'_>,
        rows: &mut [f32],
        x: &mut [f32],
    ) -> Result<(), KernelError> {
        let stride = self.dim();
        let heads = NormHeads { rows, stride, first_column: 0, n_heads: 1, onto: Some(x) };
        self.kernel().apply_heads(cpu, heads)
    }
}
