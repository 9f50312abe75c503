//! What the scheduler is given, and what it gives back.

use std::time::Instant;

use drivetrain_engine::{AdapterId, TokenId, Wanted};

use crate::adapters::Lease;
use crate::constraint::Constraint;
use crate::logits::{BeamParams, Rules, Sampling};
use crate::text::StopWatch;
use crate::{FinishReason, HostError};

/// One sequence's worth of work: an input and what is to become of it.
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
    /// The adapter it goes through, which its job has a lease of.
    pub(crate) adapter: AdapterId,
}

impl Work {
    /// Hidden states of an input without an encoder beside it.
    pub(crate) fn hidden(tokens: Vec<TokenId>, token_types: Vec<u32>) -> Self {
        Self {
            encoder: Vec::new(),
            tokens,
            token_types,
            goal: Goal::Hidden(Wanted::Hidden),
            adapter: AdapterId::NONE,
        }
    }
}

/// What becomes of an input.
#[derive(Clone, Debug)]
pub(crate) enum Goal {
    /// Its hidden states, row by row ([`Wanted::Hidden`]) or pooled to one row.
    Hidden(Wanted),
    /// Its logits, row by row ([`Wanted::AllLogits`]) or one row for the whole
    /// ([`Wanted::SequenceLogits`]).
    Logits {
        /// Which of the two.
        wanted: Wanted,
        /// The rows that are kept, in order; `None` for all.
        kept: Option<Box<[u32]>>,
    },
    /// New tokens.
    Generate(Box<Generate>),
}

/// How tokens are generated.
#[derive(Clone, Debug, Default)]
pub(crate) struct Generate {
    /// What is done to the scores before a token is chosen, and the lengths and tokens that end it.
    pub(crate) rules: Rules,
    /// How tokens are chosen.
    pub(crate) search: Search,
    /// What is told of the tokens beside their ids.
    pub(crate) report: Report,
    /// Looks for stop strings; a copy for each choice.
    pub(crate) stops: Option<StopWatch>,
    /// What the text has to follow; a copy for each choice.
    pub(crate) constraint: Option<Constraint>,
    /// Most tokens proposed at once by looking the last ones up in the text so far; 0 for none.
    pub(crate) n_lookup: usize,
    /// Longest run of last tokens that is looked up.
    pub(crate) lookup_ngram: usize,
}

/// How tokens are chosen.
#[derive(Clone, Debug, Default)]
pub(crate) enum Search {
    /// The likeliest.
    #[default]
    Greedy,
    /// Drawn: `n` choices, each with a stream of random numbers of its own, of which number
    /// `position` decides the token at that position. So a draw depends on nothing else.
    Sample {
        /// What is drawn from.
        sampling: Sampling,
        /// What the random numbers follow from, together with the choice's number.
        seed: u64,
        /// Choices; at least 1.
        n: usize,
    },
    /// Beam search.
    Beams(Box<BeamParams>),
}

/// What is told of the tokens beside their ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// The log-probability of each new token under the model, before any rule.
    pub(crate) logprobs: bool,
    /// How many of the likeliest tokens are told at each place.
    pub(crate) n_top: usize,
    /// The same for the prompt's tokens but the first: how many of the likeliest, beside itself.
    pub(crate) prompt: Option<usize>,
}

/// A token with its log-probability under the model, before any rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scored {
    pub(crate) id: TokenId,
    pub(crate) logprob: f32,
}

/// A new token on its way out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewToken<'a> {
    /// The token; its log-probability is NaN unless it was asked for.
    pub(crate) token: Scored,
    /// The likeliest, best first; empty unless asked for.
    pub(crate) top: &'a [Scored],
}

/// What became of an input.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// Hidden states `[n_rows, dim]`, row-major.
    Hidden { n_rows: usize, values: Vec<f32> },
    /// Logits `[n_rows, n_logits]`, row-major.
    Logits { n_rows: usize, values: Vec<f32> },
    /// The choices: one, `n`, or the best of the beams, best first.
    Generated(Vec<Choice>),
}

/// One answer to an input.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Choice {
    /// The new tokens, an end token included.
    pub(crate) ids: Vec<TokenId>,
    pub(crate) finish: FinishReason,
    /// The stop string that ended it, by its place in the list.
    pub(crate) stop: Option<usize>,
    /// A beam's score: its log-probability over its length to the power of the length penalty.
    pub(crate) score: Option<f32>,
    /// The log-probability of all new tokens; 0 unless log-probabilities were asked for.
    pub(crate) logprob: f64,
}

impl Choice {
    /// A choice that came to nothing.
    pub(crate) fn empty(finish: FinishReason) -> Self {
        Self { ids: Vec::new(), finish, stop: None, score: None, logprob: 0.0 }
    }
}

impl Outcome {
    /// Tokens that have to be put into words, or as much work of another kind.
    pub(crate) fn n_new_tokens(&self) -> usize {
        match self {
            // Pooling, sorting and searching take about as long as words for this many tokens.
            Self::Hidden { values, .. } => values.len() / 1024,
            Self::Logits { values, .. } => values.len() / 16,
            Self::Generated(choices) => choices.iter().map(|choice| choice.ids.len()).sum(),
        }
    }
}

/// A request's inputs, and where their outcomes go.
pub(crate) struct Job {
    /// One for each input, in order; at least one.
    pub(crate) works: Vec<Work>,
    /// Where the outcomes go.
    pub(crate) sink: Box<dyn Sink>,
    /// What keeps the adapters of the works loaded.
    pub(crate) leases: Vec<Lease>,
    /// Jobs of a higher one come first.
    pub(crate) priority: i32,
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

    /// The last of the job's inputs left the queue.
    fn started(&mut self) {}

    /// What [`Report::prompt`] asked for: for each token of the prompt but the first, in order, its
    /// own score and the likeliest. Comes before the item's first token, all at once.
    fn prompt(&mut self, item: usize, tokens: Vec<(Scored, Vec<Scored>)>) {
        let _ = (item, tokens);
    }

    /// A new token of one of the item's choices. Beam search says none.
    fn token(&mut self, item: usize, choice: usize, token: &NewToken<'_>) {
        let _ = (item, choice, token);
    }

    /// A step is over in which tokens were said: whoever reads them may be woken.
    fn flush(&mut self) {}

    /// One of the item's choices has ended while others go on; what it is comes with `finished`.
    fn choice_finished(
        &mut self,
        item: usize,
        choice: usize,
        finish: FinishReason,
        stop: Option<usize>,
    ) {
        let _ = (item, choice, finish, stop);
    }

    /// An item is done.
    fn finished(&mut self, item: usize, outcome: Outcome);

    /// The job can't be done.
    fn failed(&mut self, error: HostError);
}
