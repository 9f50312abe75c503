//! A matrix with its bias, and what adapters add to its product.

use std::ops::Range;

use drivetrain_engine::EngineError;
use drivetrain_execution::Runs;
use drivetrain_kernels::{
    Activation, BlockMatrix, Cpu, Epilogue, Floats, KernelError, Matrix, Residual, Scratch,
};
use drivetrain_transformer as transformer;
use drivetrain_transformer::Adapter;

use crate::adapters::{AdapterRows, Addition, Additions};

/// Weights in the form that they are multiplied in.
#[derive(Debug)]
pub(crate) enum Weights<'a> {
    /// Packed at load.
    Packed(Matrix),
    /// Blocks, of a mapped file or made at load.
    Blocks(BlockMatrix<'a>),
}

impl Weights<'_> {
    fn n_in(&self) -> usize {
        match self {
            Self::Packed(matrix) => matrix.n_in(),
            Self::Blocks(matrix) => matrix.n_in(),
        }
    }

    /// Bytes that they occupy.
    pub(crate) fn n_bytes(&self) -> usize {
        match self {
            Self::Packed(matrix) => matrix.n_bytes(),
            Self::Blocks(matrix) => matrix.n_bytes(),
        }
    }

    fn scratch_bytes(&self, n_rows: usize, n_threads: usize) -> usize {
        match self {
            Self::Packed(matrix) => matrix.scratch_bytes(n_rows, n_threads),
            Self::Blocks(matrix) => matrix.scratch_bytes(n_rows, n_threads),
        }
    }
}

/// `f(x Wᵀ + b)`.
#[derive(Debug)]
pub(crate) struct Linear<'a> {
    weights: Weights<'a>,
    /// `[n_out]`, or `[2 * n_out]` with a gate.
    bias: Option<Vec<f32>>,
    /// The canonical modules whose outputs follow one another in a row.
    parts: Vec<Part>,
    /// Where its weights have columns beside those that it reads.
    pad: Option<Pad>,
    /// What adapters add.
    additions: Additions,
}

/// A canonical module, or the share of it that a rank has.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) module: String,
    /// Rows of the whole that are here.
    pub(crate) rows: Range<usize>,
    /// Its columns that are here.
    pub(crate) columns: Range<usize>,
}

/// Columns of weights that are another rank's: what they are multiplied with is 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pad {
    /// Those ahead of the own ones.
    pub(crate) before: usize,
    /// The own ones.
    pub(crate) own: usize,
}

/// What follows a product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct After<'a> {
    pub(crate) activation: Activation,
    /// A gate's rows.
    pub(crate) factor: Option<&'a [f32]>,
    pub(crate) residual: Residual<'a>,
}

impl After<'_> {
    pub(crate) const NOTHING: Self =
        Self { activation: Activation::None, factor: None, residual: Residual::None };

    pub(crate) fn activation(activation: Activation) -> Self {
        Self { activation, ..Self::NOTHING }
    }
}

/// Memory that products use on the way.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) scratch: Scratch,
    pub(crate) adapters: AdapterRows,
    /// Rows with columns beside those that were computed.
    pub(crate) padded: Floats,
    /// Adapters of a piece of a batch.
    pub(crate) runs: Runs,
}

impl<'a> Linear<'a> {
    pub(crate) fn new(
        weights: Weights<'a>,
        bias: Option<Vec<f32>>,
        parts: Vec<Part>,
        pad: Option<Pad>,
    ) -> Self {
        Self { weights, bias, parts, pad, additions: Additions::default() }
    }

    /// Multiplies the bias.
    pub(crate) fn scale_bias(&mut self, factor: f32) {
        self.bias.iter_mut().flatten().for_each(|b| *b *= factor);
    }

    /// Columns of what it reads.
    pub(crate) fn n_in(&self) -> usize {
        self.pad.map_or(self.weights.n_in(), |pad| pad.own)
    }

    /// Columns of its weights, if they are more than those of what it reads.
    pub(crate) fn padded(&self) -> usize {
        self.pad.map_or(0, |_| self.weights.n_in())
    }

    /// Columns of its products, a gate's among them.
    pub(crate) fn width(&self) -> usize {
        self.parts.iter().map(|part| part.rows.len()).sum()
    }

    /// Bytes that the weights occupy.
    pub(crate) fn n_bytes(&self) -> usize {
        self.weights.n_bytes()
    }

    /// Scratch memory that a product of `n_rows` needs.
    pub(crate) fn scratch_bytes(&self, n_rows: usize, n_threads: usize) -> usize {
        self.weights.scratch_bytes(n_rows, n_threads)
    }

    /// `y = after(x Wᵀ + b)` for the rows of `x`.
    pub(crate) fn forward(
        &self,
        (cpu, runs): (Cpu<'_>, &Runs),
        x: &[f32],
        y: &mut [f32],
        after: After<'_>,
        workspace: &mut Workspace,
    ) -> Result<(), KernelError> {
        let Workspace { scratch, adapters, padded, .. } = workspace;
        let mut epilogue = Epilogue {
            bias: self.bias.as_deref(),
            activation: after.activation,
            factor: after.factor,
            residual: after.residual,
            ..Epilogue::default()
        };
        if self.additions.concern(runs) {
            let (n_in, width) = (self.n_in(), self.width());
            self.additions.compute(cpu, (x, n_in), width, runs, (adapters, scratch))?;
            epilogue.addition = Some(&adapters.sum[..x.len() / n_in * width]);
        }
        let x = match self.pad {
            None => x,
            Some(pad) => pad.apply(x, self.weights.n_in(), padded),
        };
        match &self.weights {
            Weights::Packed(matrix) => matrix.multiply(cpu.pool, x, y, &epilogue, scratch),
            Weights::Blocks(matrix) => matrix.multiply(cpu, x, y, &epilogue, scratch),
        }
    }

    /// Makes what `adapter` adds to it, to be put in by [`Self::additions_mut`].
    pub(crate) fn additions_of(
        &self,
        cpu: Cpu<'_>,
        adapter: &Adapter,
    ) -> Result<Vec<Addition>, EngineError> {
        let mut first_column = 0;
        let mut additions = Vec::new();
        for part in &self.parts {
            if let Some(low_rank) = adapter.get(&part.module) {
                additions.push(Addition::new(cpu, first_column, low_rank, part)?);
            }
            first_column += part.rows.len();
        }
        Ok(additions)
    }

    pub(crate) fn additions_mut(&mut self) -> &mut Additions {
        &mut self.additions
    }

    /// The canonical modules that it is made of.
    pub(crate) fn modules(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|part| part.module.as_str())
    }
}

impl Pad {
    /// Rows `x` `[n_rows, own]` with zeros beside them, `[n_rows, n_in]`.
    fn apply<'p>(self, x: &[f32], n_in: usize, padded: &'p mut [f32]) -> &'p [f32] {
        let padded = &mut padded[..x.len() / self.own * n_in];
        for (to, from) in padded.chunks_exact_mut(n_in).zip(x.chunks_exact(self.own)) {
            to[..self.before].fill(0.0);
            to[self.before..self.before + self.own].copy_from_slice(from);
            to[self.before + self.own..].fill(0.0);
        }
        padded
    }
}

/// The kernels' name for an activation.
pub(crate) fn activation(activation: transformer::Activation) -> Activation {
    match activation {
        transformer::Activation::Gelu => Activation::Gelu,
        transformer::Activation::GeluTanh => Activation::GeluTanh,
        transformer::Activation::QuickGelu => Activation::QuickGelu,
        transformer::Activation::Silu => Activation::Silu,
        transformer::Activation::Relu => Activation::Relu,
        transformer::Activation::ReluSquared => Activation::ReluSquared,
        transformer::Activation::Tanh => Activation::Tanh,
        transformer::Activation::Sigmoid => Activation::Sigmoid,
        transformer::Activation::Identity => Activation::None,
    }
}
