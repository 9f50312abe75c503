//! The feed-forward branch of a layer.

use crate::activation::Activation;

/// `down(act(up x))`, or `down(act(gate x) * up x)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedForward {
    /// Rows of `up` (and `gate`), columns of `down`.
    pub width: u32,
    /// What stands between.
    pub activation: Activation,
    /// Plain, gated, or experts.
    pub form: FeedForwardForm,
    /// Whether the matrices have biases.
    pub bias: bool,
}

/// How the matrices of a feed-forward branch are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedForwardForm {
    /// `down(act(up x))`.
    Plain,
    /// `down(act(gate x) * up x)`.
    Gated,
    /// `n_experts` gated branches, of which a router picks `n_active` for each token.
    Experts {
        /// Branches.
        n_experts: u32,
        /// Branches a token goes through.
        n_active: u32,
    },
}
