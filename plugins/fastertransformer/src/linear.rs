//! A matrix with its bias, and what adapters add to its product.

use drivetrain_engine::EngineError;
use drivetrain_execution::Runs;
use drivetrain_kernels::{
    Activation, BlockMatrix, Cpu, Epilogue, KernelError, Matrix, Residual, Scratch,
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
    /// The canonical modules whose outputs follow one another in a row, with their widths.
    parts: Vec<(String, usize)>,
    /// What adapters add.
    additions: Additions,
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
}

impl<'a> Linear<'a> {
    pub(crate) fn new(
        weights: Weights<'a>,
        bias: Option<Vec<f32>>,
        parts: Vec<(String, usize)>,
    ) -> Self {
        Self { weights, bias, parts, additions: Additions::default() }
    }

    /// Multiplies the bias.
    pub(crate) fn scale_bias(&mut self, factor: f32) {
        self.bias.iter_mut().flatten().for_each(|b| *b *= factor);
    }

    /// Columns of what it reads.
    pub(crate) fn n_in(&self) -> usize {
        self.weights.n_in()
    }

    /// Columns of its products, a gate's among them.
    pub(crate) fn width(&self) -> usize {
        self.parts.iter().map(|(_, width)| width).sum()
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
        let Workspace { scratch, adapters } = workspace;
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
        for (module, width) in &self.parts {
            if let Some(part) = adapter.get(module) {
                additions.push(Addition::new(cpu, first_column, part)?);
            }
            first_column += width;
        }
        Ok(additions)
    }

    pub(crate) fn additions_mut(&mut self) -> &mut Additions {
        &mut self.additions
    }

    /// The canonical modules that it is made of.
    pub(crate) fn modules(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|(module, _)| module.as_str())
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
