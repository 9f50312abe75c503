//! Picking the next token as transformers' `generate` does: the processors that matter for greedy
//! decoding, in its order and meaning, and the arg-max.
//!
//! Source: `generation/logits_process.py` of transformers 5.23.0. "Ids" below are all ids of the
//! decoder: for a decoder-only model the prompt's and the new ones, for an encoder-decoder model
//! the start token and the new ones.

mod beams;
mod logprobs;
mod params;
mod rules;
mod sampling;

pub(crate) use beams::{BeamParams, BeamSearch, EarlyStopping};
pub(crate) use logprobs::LogSoftmax;
pub(crate) use params::{Defaults, GenerationParams, Params};
pub(crate) use rules::{Rules, Scratch};
pub(crate) use sampling::{DrawKey, Sampling};

use drivetrain_engine::TokenId;

/// The highest score's index, the lowest of equals, as `torch.argmax`; `None` if a score is NaN or
/// there are none.
pub(crate) fn arg_max(scores: &[f32]) -> Option<TokenId> {
    let mut best = 0;
    let mut highest = *scores.first()?;
    let mut has_nan = false;
    for (idx, &score) in scores.iter().enumerate() {
        has_nan |= score.is_nan();
        if score > highest {
            (best, highest) = (idx, score);
        }
    }
    if has_nan { None } else { TokenId::try_from(best).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_of_equals_wins_and_nan_is_nobody() {
        let check = |scores: &[f32], expect: Option<TokenId>| assert_eq!(arg_max(scores), expect);
        check(&[1.0, 3.0, 3.0, 2.0], Some(1));
        check(&[f32::NEG_INFINITY; 3], Some(0));
        check(&[f32::NEG_INFINITY, -5.0], Some(1));
        check(&[0.0, f32::NAN, 1.0], None);
        check(&[f32::NAN, 1.0], None);
        check(&[], None);
    }
}
