//! What a model can hold, and how much of it is spoken for.

use std::time::Duration;

use drivetrain_engine::{ModelKind, TokenModelInfo};

use crate::HostError;
use crate::scheduler::work::{Goal, Search, Work};

/// Most tokens of prompts in one forward pass, unless one input that can't be cut is longer: more
/// would keep the running sequences waiting for their next token.
pub(crate) const DEFAULT_STEP_TOKENS: u32 = 2048;

/// What the operator chose of the ways to schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Whether prefixes are kept for requests to come.
    pub(crate) keeps_prefixes: bool,
    /// Inputs of an encoder-only model that a first one waits for.
    pub(crate) batch_size: usize,
    /// How long it waits for them; 0 never waits.
    pub(crate) max_delay: Duration,
    /// Most tokens looked up in a text and checked in one step, where a request does not say; 0 for
    /// none.
    pub(crate) n_lookup: usize,
    /// Longest run of last tokens that is looked up.
    pub(crate) lookup_ngram: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            keeps_prefixes: true,
            batch_size: 1,
            max_delay: Duration::ZERO,
            n_lookup: 0,
            lookup_ngram: 2,
        }
    }
}

/// The limits the scheduler keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The model's figures.
    pub(crate) info: TokenModelInfo,
    /// Most sequences that run at once.
    pub(crate) max_sequences: usize,
    /// Most prompt tokens of a step, beside those of sequences that decode.
    pub(crate) step_tokens: usize,
    /// The operator's choices.
    pub(crate) policy: Policy,
}

/// Cache that a sequence takes, or all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cache {
    /// Tokens of the decoder's KV cache.
    pub(crate) kv: u64,
    /// Encoder tokens of the cross-attention cache.
    pub(crate) cross: u64,
}

impl Limits {
    /// Limits from a model's figures, and the operator's wishes below them.
    pub(crate) fn new(info: TokenModelInfo, max_sequences: u32, step_tokens: Option<u32>) -> Self {
        let max_sequences = info.max_sequences.min(max_sequences).max(1);
        let step_tokens = step_tokens.unwrap_or(DEFAULT_STEP_TOKENS).min(info.max_batch_tokens);
        Self {
            info,
            max_sequences: max_sequences as usize,
            step_tokens: step_tokens.max(1) as usize,
            policy: Policy::default(),
        }
    }

    /// Tokens in whole blocks that hold `n_tokens`. A lone sequence may use the last block of a
    /// capacity that is no multiple of one.
    pub(crate) fn blocks(&self, n_tokens: usize) -> u64 {
        let n_tokens = n_tokens as u64;
        let rounded = n_tokens
            .checked_next_multiple_of(u64::from(self.info.kv_block_tokens.max(1)))
            .unwrap_or(u64::MAX);
        if n_tokens <= self.info.kv_capacity_tokens {
            rounded.min(self.info.kv_capacity_tokens)
        } else {
            rounded
        }
    }

    /// The largest number of tokens in whole blocks that is not above `n_tokens`.
    pub(crate) fn whole_blocks(&self, n_tokens: usize) -> usize {
        let block = self.block();
        n_tokens / block * block
    }

    /// Tokens of a block.
    pub(crate) fn block(&self) -> usize {
        self.info.kv_block_tokens.max(1) as usize
    }

    /// The cache that a group of `most_rows` sequences takes at most: all that it may grow to, in
    /// whole blocks, where the prompt's whole blocks are shared. A sequence's last token is said and
    /// not cached.
    pub(crate) fn needs(&self, group: &Needs) -> Cache {
        if self.info.kind == ModelKind::Encoder {
            return Cache::default();
        }
        let whole = self.blocks(group.n_most);
        let kv = if group.n_rows == 1 {
            whole
        } else {
            let shared = self.whole_blocks(group.n_prompt) as u64;
            let own = whole.saturating_sub(shared).saturating_mul(group.n_rows as u64);
            shared.saturating_add(own)
        };
        Cache { kv, cross: group.n_encoder as u64 }
    }

    /// Whether the model can do `work` at all, with nothing else running.
    ///
    /// # Errors
    /// `BadRequest` with the figures.
    pub(crate) fn check(&self, work: &Work) -> Result<(), HostError> {
        let group = Needs::of(work);
        let needs = self.needs(&group);
        let info = &self.info;
        let n_rows = group.n_rows;
        if n_rows > self.max_sequences || n_rows > info.max_batch_tokens as usize {
            return Err(HostError::bad_request(format!(
                "the request wants {n_rows} sequences at once for an input (beams, or choices) and \
                 the model runs {}: ask for fewer, or raise option.max_rolling_batch_size",
                self.max_sequences.min(info.max_batch_tokens as usize)
            )));
        }
        if needs.kv > info.kv_capacity_tokens {
            return Err(HostError::bad_request(format!(
                "prompt and new tokens take {} tokens of KV cache and the model has room for {}: \
                 shorten the input or lower parameters.max_new_tokens",
                needs.kv, info.kv_capacity_tokens
            )));
        }
        if needs.cross > info.cross_capacity_tokens {
            return Err(HostError::bad_request(format!(
                "the input has {} tokens and the model's cross-attention cache has room for {}: \
                 shorten the input",
                needs.cross, info.cross_capacity_tokens
            )));
        }
        let whole = match info.kind {
            ModelKind::Encoder => work.tokens.len(),
            ModelKind::EncoderDecoder => work.encoder.len(),
            ModelKind::Decoder => 0,
        };
        if whole > info.max_batch_tokens as usize {
            return Err(HostError::bad_request(format!(
                "the input has {whole} tokens, which the encoder takes at once, and the engine \
                 takes {} in a batch: shorten the input",
                info.max_batch_tokens
            )));
        }
        Ok(())
    }
}

/// What the cache that a group takes depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Encoder tokens.
    pub(crate) n_encoder: usize,
    /// Decoder tokens that its sequences have in common.
    pub(crate) n_prompt: usize,
    /// Most decoder tokens a sequence has cached.
    pub(crate) n_most: usize,
    /// Most sequences at once.
    pub(crate) n_rows: usize,
}

impl Needs {
    pub(crate) fn of(work: &Work) -> Self {
        let n_prompt = work.tokens.len();
        let (n_most, n_rows) = match &work.goal {
            Goal::Hidden(_) | Goal::Logits { .. } => (n_prompt, 1),
            Goal::Generate(generate) => {
                let n_most = generate.rules.max_length.saturating_sub(1).max(n_prompt);
                let n_rows = match &generate.search {
                    Search::Greedy => 1,
                    Search::Sample { n, .. } => (*n).max(1),
                    Search::Beams(beams) => beams.n_beams.max(1),
                };
                (n_most, n_rows)
            }
        };
        Self { n_encoder: work.encoder.len(), n_prompt, n_most, n_rows }
    }
}

impl Cache {
    pub(crate) fn plus(mut self, more: Self) -> Self {
        self.add(more);
        self
    }

    /// Whether `more` fits beside this in what the model has.
    pub(crate) fn has_room_for(self, more: Self, info: &TokenModelInfo) -> bool {
        let fits = |used: u64, more: u64, capacity: u64| {
            used.checked_add(more).is_some_and(|sum| sum <= capacity)
        };
        fits(self.kv, more.kv, info.kv_capacity_tokens)
            && fits(self.cross, more.cross, info.cross_capacity_tokens)
    }

    pub(crate) fn add(&mut self, more: Self) {
        self.kv += more.kv;
        self.cross += more.cross;
    }

    pub(crate) fn subtract(&mut self, less: Self) {
        self.kv -= less.kv;
        self.cross -= less.cross;
    }
}
