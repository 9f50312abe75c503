//! Picking the next token as transformers' `generate` does: its processors and warpers in its order
//! and meaning, then the arg-max or a draw.
//!
//! Source: `generation/logits_process.py` of transformers 5.23.0. "Ids" below are all ids of the
//! decoder: for a decoder-only model the prompt's and the new ones, for an encoder-decoder model
//! the start token and the new ones.

mod beams;
mod draw_key;
mod exp;
mod logprobs;
mod params;
mod race;
mod rules;
mod sampling;
mod scratch;

pub(crate) use beams::{BeamParams, BeamSearch, EarlyStopping};
pub(crate) use draw_key::DrawKey;
pub(crate) use exp::has_nan;
pub(crate) use logprobs::LogSoftmax;
pub(crate) use params::{Defaults, GenerationParams, Params};
pub(crate) use rules::Rules;
pub(crate) use sampling::Sampling;
pub(crate) use scratch::Scratch;

use drivetrain_engine::TokenId;

/// Scores that are compared together, before one of them is looked for.
const BLOCK: usize = 512;

/// The highest score's index, the lowest of equals, as `torch.argmax`; `None` if a score is NaN or
/// there are none.
pub(crate) fn arg_max(scores: &[f32]) -> Option<TokenId> {
    let mut highest = f32::NEG_INFINITY;
    let mut start = 0;
    for (block_idx, block) in scores.chunks(BLOCK).enumerate() {
        let (high, has_nan) = exp::highest(block);
        if has_nan {
            return None;
        }
        if high > highest {
            (highest, start) = (high, block_idx * BLOCK);
        }
    }
    let offset = scores.get(start..)?.iter().position(|score| *score == highest)?;
    TokenId::try_from(start + offset).ok()
}

#[cfg(test)]
mod processors_tests;

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
        check(&[-0.0, 0.0], Some(0));
        check(&[0.0, f32::INFINITY, f32::INFINITY], Some(1));
    }

    #[test]
    fn the_highest_is_found_wherever_it_is() {
        let mut scores = vec![-1.0; 2000];
        for at in (0..2000).rev() {
            scores[at] = 1.0;
            assert_eq!(arg_max(&scores), Some(at as TokenId));
        }
        for at in [0, 1, 511, 512, 1999] {
            let mut scores = scores.clone();
            scores[at] = f32::NAN;
            assert_eq!(arg_max(&scores), None, "{at}");
        }
    }
}
