//! Memory that rules and draws use again and again.

use drivetrain_engine::TokenId;

/// Memory that [`super::Rules::apply`] and [`super::Sampling`] use again and again: it grows to what
/// the largest vocabulary needs and stays. What is in it between calls means nothing, but that
/// `counts` are all 0.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// One bit a token: whether its score was changed already.
    pub(super) seen: Vec<u64>,
    /// How often a token was said.
    pub(super) counts: Vec<u32>,
    /// Tokens that are still in the draw, lowest id first, and their scores.
    pub(super) kept: Vec<Kept>,
    /// Some of them, in another order.
    pub(super) order: Vec<Ranked>,
    /// Sums over tokens of like rank.
    pub(super) bins: Vec<Bin>,
    /// The exponentials of all scores.
    pub(super) exps: Vec<f32>,
}

/// A token that is still in the draw.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    pub(super) id: TokenId,
    pub(super) score: f32,
    /// The exponential of what the score is above the highest.
    pub(super) weight: f32,
}

/// A token's place in an order: lowest rank first, of equals as `tie` says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ranked {
    pub(super) rank: f32,
    pub(super) tie: u32,
    pub(super) weight: f32,
}

/// Tokens of like rank.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bin {
    pub(super) weight: f64,
    pub(super) n_tokens: usize,
}
