//! What the scheduler is given, and what it gives back.

use std::time::Instant;

use drivetrain_engine::TokenId;

use crate::logits::Rules;
use crate::{FinishReason, HostError};

/// One sequence's worth of work.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    /// What the encoder of an encoder-decoder model reads; empty for other models.
    pub(crate) encoder: Vec<TokenId>,
    /// What the decoder, or an encoder-only model, starts with; at least one token.
    pub(crate) tokens: Vec<TokenId>,
    /// The types of `tokens`; empty when all are 0.
    pub(crate) token_types: Vec<u32>,
    /// What is to become of it.
    pub(crate) goal: Goal,
}

impl Work {
    /// Hidden states of an input without an encoder beside it.
    pub(crate) fn hidden(tokens: Vec<TokenId>, token_types: Vec<u32>) -> Self {
        Self { encoder: Vec::new(), tokens, token_types, goal: Goal::Hidden }
    }
}

/// What becomes of a sequence.
#[derive(Clone, Debug)]
pub(crate) enum Goal {
    /// The hidden states of its tokens.
    Hidden,
    /// New tokens, by these rules.
    Generate(Rules),
}

/// What became of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// Hidden states `[n_tokens, dim]`, row-major.
    Hidden { n_tokens: usize, values: Vec<f32> },
    /// The new tokens.
    Tokens { ids: Vec<TokenId>, finish: FinishReason },
}

impl Outcome {
    /// Tokens that have to be put into words.
    pub(crate) fn n_new_tokens(&self) -> usize {
        match self {
            Self::Hidden { .. } => 0,
            Self::Tokens { ids, .. } => ids.len(),
        }
    }
}

/// A request's sequences, and where their outcomes go.
pub(crate) struct Job {
    /// One for each input, in order; at least one.
    pub(crate) works: Vec<Work>,
    /// Where the outcomes go.
    pub(crate) sink: Box<dyn Sink>,
    /// When it came.
    pub(crate) submitted: Instant,
    /// When it is of no use any more.
    pub(crate) deadline: Instant,
}

/// Where a job's events go. Called on the model's thread, so nothing here may wait.
///
/// Every job ends in one of three ways: each item was `finished`, or it `failed` once, or the sink
/// said that it is closed. Then the sink is dropped.
pub(crate) trait Sink: Send {
    /// Whether nobody waits for the answer any more: the job is dropped at the next step.
    fn is_closed(&self) -> bool;

    /// Whether another token can be taken; while it can't, the job's sequences rest.
    fn has_room(&self) -> bool {
        true
    }

    /// The last of the job's sequences left the queue.
    fn started(&mut self) {}

    /// A new token of the item's.
    fn token(&mut self, item: usize, id: TokenId) {
        let _ = (item, id);
    }

    /// An item is done.
    fn finished(&mut self, item: usize, outcome: Outcome);

    /// The job can't be done.
    fn failed(&mut self, error: HostError);
}
