//! What follows a product while its sums are in the cache: bias, activation, gate, scale, residual.

use crate::error::{KernelError, length};
use crate::pool::Parts;
use crate::vector::{Simd, load, math, store};

/// The function between two linear layers. Names are those of transformers' configurations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activation {
    /// `x`.
    #[default]
    None,
    /// `max(x, 0)`.
    Relu,
    /// `x/2 (1 + erf(x / sqrt 2))`: `gelu`.
    Gelu,
    /// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`: `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`.
    GeluTanh,
    /// `x sigmoid(1.702 x)`: `quick_gelu`.
    QuickGelu,
    /// `x sigmoid(x)`: `silu`, `swish`.
    Silu,
    /// `tanh x`.
    Tanh,
    /// `max(x, 0)^2`: `relu2`.
    ReluSquared,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
}

impl Activation {
    /// The function of a vector.
    #[inline(always)]
    pub(crate) fn apply<S: Simd>(self, s: S, x: S::F) -> S::F {
        let half = s.mul(x, s.splat(0.5));
        match self {
            Self::None => x,
            Self::Relu => s.max(s.splat(0.0), x),
            Self::Gelu => {
                let erf = math::erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2)));
                s.fma(half, erf, half)
            }
            Self::GeluTanh => {
                let cube = s.mul(s.mul(x, x), x);
                let inner = s.fma(cube, s.splat(0.044_715), x);
                let tanh = math::tanh(s, s.mul(inner, s.splat(0.797_884_6)));
                s.fma(half, tanh, half)
            }
            Self::QuickGelu => s.mul(x, math::sigmoid(s, s.mul(x, s.splat(1.702)))),
            Self::Silu => s.mul(x, math::sigmoid(s, x)),
            Self::Tanh => math::tanh(s, x),
            Self::ReluSquared => {
                let positive = s.max(s.splat(0.0), x);
                s.mul(positive, positive)
            }
            Self::Sigmoid => math::sigmoid(s, x),
        }
    }
}

/// What is added at the end.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub enum Residual<'a> {
    /// Nothing.
    #[default]
    None,
    /// These, in the output's shape.
    Add(&'a [f32]),
    /// What the output holds before.
    Output,
}

/// What follows a product: `y = scale * activation(product + bias + addition) * factor + residual`; with a
/// gate `y = scale * activation(gate + bias + addition) * (other + other's bias + other's addition) *
/// factor + residual`.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// `[n_out]`; for a matrix with a gate `[2 * n_out]`, the gate's first.
    pub bias: Option<&'a [f32]>,
    /// What an adapter adds to the product, `[n_rows, n_out]`; for a matrix with a gate
    /// `[n_rows, 2 * n_out]`, the gate's first.
    pub addition: Option<&'a [f32]>,
    /// Of the sum; of the gate, where there is one.
    pub activation: Activation,
    /// 1 changes nothing.
    pub scale: f32,
    /// What a gate's product came to, `[n_rows, n_out]`.
    pub factor: Option<&'a [f32]>,
    /// What is added.
    pub residual: Residual<'a>,
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        Self {
            bias: None,
            addition: None,
            activation: Activation::None,
            scale: 1.0,
            factor: None,
            residual: Residual::None,
        }
    }
}

impl Epilogue<'_> {
    pub(crate) fn check(
        &self,
        n_rows: usize,
        n_out: usize,
        n_parts: usize,
    ) -> Result<(), KernelError> {
        if let Some(bias) = self.bias {
            length("the bias", bias.len(), n_out * n_parts)?;
        }
        if let Some(addition) = self.addition {
            length("the addition", addition.len(), n_rows * n_out * n_parts)?;
        }
        if let Some(factor) = self.factor {
            length("the factor", factor.len(), n_rows * n_out)?;
        }
        if let Residual::Add(residual) = self.residual {
            length("the residual", residual.len(), n_rows * n_out)?;
        }
        Ok(())
    }

    /// A sum with the bias and the addition of the column at `at` and its neighbours; `row_at` is where
    /// the row's additions begin.
    #[inline(always)]
    fn add<S: Simd>(&self, s: S, sum: S::F, (row_at, at, n): (usize, usize, usize)) -> S::F {
        let biased = match self.bias {
            Some(bias) => s.add(sum, load(s, &bias[at..at + n])),
            None => sum,
        };
        match self.addition {
            Some(addition) => s.add(biased, load(s, &addition[row_at + at..row_at + at + n])),
            None => biased,
        }
    }
}

/// Sums of one row and one panel (or a gate's panel and its other), and where they belong.
pub(crate) struct Place<'a> {
    pub(crate) row: usize,
    /// The first column of the output.
    pub(crate) column: usize,
    pub(crate) n_out: usize,
    /// Columns that are this thread's to write.
    pub(crate) n_columns: usize,
    /// `[2 * LANES]`, of which `n_columns` count.
    pub(crate) sums: &'a [f32],
    /// The gated matrix's, whose gate `sums` is.
    pub(crate) other: Option<&'a [f32]>,
}

/// Writes one row of a panel to the output.
///
/// # Safety
/// No other thread touches these elements of the output.
#[inline(always)]
pub(crate) unsafe fn finish<S: Simd>(
    s: S,
    epilogue: &Epilogue<'_>,
    place: &Place<'_>,
    output: &Parts<'_, f32>,
) {
    let width = place.n_columns;
    let start = place.row * place.n_out + place.column;
    // SAFETY: the caller says that it's this thread's.
    let output = unsafe { output.take(start..start + width) };
    let n_parts = if place.other.is_some() { 2 } else { 1 };
    let row_at = place.row * place.n_out * n_parts;
    for (part, output) in output.chunks_mut(S::LANES).enumerate() {
        let (at, n) = (part * S::LANES, output.len());
        let column = place.column + at;
        let sum = load(s, &place.sums[at..at + S::LANES]);
        let mut y = epilogue.activation.apply(s, epilogue.add(s, sum, (row_at, column, n)));
        if let Some(other) = place.other {
            let other = load(s, &other[at..at + S::LANES]);
            y = s.mul(y, epilogue.add(s, other, (row_at, place.n_out + column, n)));
        }
        if epilogue.scale != 1.0 {
            y = s.mul(y, s.splat(epilogue.scale));
        }
        if let Some(factor) = epilogue.factor {
            y = s.mul(y, load(s, &factor[start + at..start + at + n]));
        }
        match epilogue.residual {
            Residual::None => {}
            Residual::Add(all) => {
                y = s.add(y, load(s, &all[start + at..start + at + n]));
            }
            Residual::Output => y = s.add(y, load(s, output)),
        }
        store(s, output, y);
    }
}
