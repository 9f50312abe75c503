//! Normalisation: what is computed, and where it stands around a branch.

/// What a norm computes of a row `x` of `dim` values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `(x - mean) / sqrt(var + eps) * w + b` (Ba et al. 2016, arXiv:1607.06450).
    Layer,
    /// `x / sqrt(mean(x²) + eps) * w` (Zhang & Sennrich 2019, arXiv:1910.07467).
    Rms,
}

/// A norm over the hidden size, or over a head for q and k norms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Which of the two.
    pub kind: NormKind,
    /// Added to the variance, or to the mean square.
    pub eps: f64,
    /// Added to the stored weight: 1 in Gemma, else 0.
    pub weight_offset: f32,
    /// Whether there is a weight; without one it is 1.
    pub weight: bool,
    /// Whether there is a bias beside the weight.
    pub bias: bool,
}

impl Norm {
    /// A layer norm with weight and bias.
    pub fn layer(eps: f64) -> Self {
        Self { kind: NormKind::Layer, eps, weight_offset: 0.0, weight: true, bias: true }
    }

    /// An RMS norm with a weight.
    pub fn rms(eps: f64) -> Self {
        Self { kind: NormKind::Rms, eps, weight_offset: 0.0, weight: true, bias: false }
    }
}

/// Where norms stand around a branch (attention or feed-forward) of a layer:
/// `after(x + branch_out(branch(before(x))))`, each of the three where it exists.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Norms {
    /// Of the branch's input: pre-norm.
    pub before: Option<Norm>,
    /// Of the branch's output, ahead of the residual addition: Gemma 2's second norm.
    pub branch_out: Option<Norm>,
    /// Of the sum: post-norm.
    pub after: Option<Norm>,
}

impl Norms {
    /// Pre-norm: GPT-2, LLaMA.
    pub fn pre(norm: Norm) -> Self {
        Self { before: Some(norm), ..Self::default() }
    }

    /// Post-norm: BART, BERT.
    pub fn post(norm: Norm) -> Self {
        Self { after: Some(norm), ..Self::default() }
    }
}
