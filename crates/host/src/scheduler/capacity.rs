//! What a model can hold, and how much of it is spoken for.

use drivetrain_engine::{ModelKind, TokenModelInfo};

use crate::HostError;
use crate::scheduler::work::{Goal, Work};

/// Most tokens of prompts and steps in one forward pass, unless one input that can't be cut is
/// longer: more would keep the running sequences waiting for their next token.
pub(crate) const DEFAULT_STEP_TOKENS: u32 = 2048;

/// The limits the scheduler keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The model's figures.
    pub(crate) info: TokenModelInfo,
    /// Most sequences alive at once.
    pub(crate) max_sequences: usize,
    /// Tokens of a step.
    pub(crate) step_tokens: usize,
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
        }
    }

    /// The cache that `work` takes at most: all that it may grow to, in whole blocks, so that what
    /// was admitted never runs out. A sequence's last token is said and not cached.
    pub(crate) fn needs(&self, work: &Work) -> Cache {
        if self.info.kind == ModelKind::Encoder {
            return Cache::default();
        }
        let n_tokens = match &work.goal {
            Goal::Hidden(_) => work.tokens.len(),
            Goal::Generate(generate) => {
                generate.rules.max_length.saturating_sub(1).max(work.tokens.len())
            }
        } as u64;
        let rounded = n_tokens
            .checked_next_multiple_of(u64::from(self.info.kv_block_tokens.max(1)))
            .unwrap_or(u64::MAX);
        // A lone sequence may use the last block of a capacity that is no multiple of one.
        let kv = if n_tokens <= self.info.kv_capacity_tokens {
            rounded.min(self.info.kv_capacity_tokens)
        } else {
            rounded
        };
        Cache { kv, cross: work.encoder.len() as u64 }
    }

    /// Whether the model can do `work` at all, with nothing else running.
    ///
    /// # Errors
    /// `BadRequest` with the figures.
    pub(crate) fn check(&self, work: &Work) -> Result<(), HostError> {
        let needs = self.needs(work);
        let info = &self.info;
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

impl Cache {
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
