//! The logits processors of one sequence.

use std::sync::Arc;

use drivetrain_engine::TokenId;

/// What is done to a sequence's logits before the arg-max, and when the sequence ends. Fixed when
/// the request comes in; its inputs share the lists. Lengths count all ids of the decoder.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rules {
    /// Ids before the first new one: the prompt's, or the start token alone.
    pub(crate) n_prompt: usize,
    /// Generation ends at this many ids.
    pub(crate) max_length: usize,
    /// Ids that end the generation.
    pub(crate) eos: Arc<[TokenId]>,
    /// Scores of ids that occurred are divided (positive) or multiplied (negative) by this.
    pub(crate) repetition_penalty: Option<f32>,
    /// No run of this many ids occurs twice; 0 for no such rule.
    pub(crate) no_repeat_ngram: usize,
    /// Runs of ids that must not occur.
    pub(crate) bad_words: Arc<[Vec<TokenId>]>,
    /// No end token before this many ids.
    pub(crate) min_length: usize,
    /// No end token before this many new ids.
    pub(crate) min_new_tokens: usize,
    /// The second id.
    pub(crate) forced_bos: Option<TokenId>,
    /// The ids allowed at the last place.
    pub(crate) forced_eos: Arc<[TokenId]>,
    /// From this many new ids on, end tokens gain by this factor to the power of the excess.
    pub(crate) decay: Option<(usize, f64)>,
    /// Ids that never occur.
    pub(crate) suppress: Arc<[TokenId]>,
    /// Ids that are not said first.
    pub(crate) begin_suppress: Arc<[TokenId]>,
}

/// Memory that [`Rules::apply`] uses again and again.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// One bit a token: whether its score was changed already.
    seen: Vec<u64>,
}

impl Rules {
    /// Whether [`Self::apply`] leaves every score as it is, whatever the ids.
    pub(crate) fn is_neutral(&self) -> bool {
        self.repetition_penalty.is_none()
            && self.no_repeat_ngram == 0
            && self.bad_words.is_empty()
            && self.min_length == 0
            && self.min_new_tokens == 0
            && self.forced_bos.is_none()
            && self.forced_eos.is_empty()
            && self.decay.is_none()
            && self.suppress.is_empty()
            && self.begin_suppress.is_empty()
    }

    /// Changes `scores`, the logits that follow `ids`, in `generate`'s order. Ids without a score
    /// are passed over.
    pub(crate) fn apply(&self, ids: &[TokenId], scores: &mut [f32], scratch: &mut Scratch) {
        if self.is_neutral() {
            return;
        }
        if let Some(penalty) = self.repetition_penalty {
            penalise_repetition(penalty, ids, scores, scratch);
        }
        if self.no_repeat_ngram > 0 {
            ban_repeated_ngrams(self.no_repeat_ngram, ids, scores);
        }
        self.ban_bad_words(ids, scores);
        let n_new = ids.len().saturating_sub(self.n_prompt);
        if ids.len() < self.min_length || n_new < self.min_new_tokens {
            ban(&self.eos, scores);
        }
        if let Some(bos) = self.forced_bos
            && ids.len() == 1
        {
            allow_only(&[bos], scores);
        }
        if !self.forced_eos.is_empty() && ids.len() + 1 == self.max_length {
            allow_only(&self.forced_eos, scores);
        }
        if let Some((start, factor)) = self.decay
            && n_new > start
        {
            let gain = (factor.powf((n_new - start) as f64) - 1.0) as f32;
            for &id in self.eos.iter() {
                if let Some(score) = scores.get_mut(id as usize)
                    && score.is_finite()
                {
                    *score += score.abs() * gain;
                }
            }
        }
        ban(&self.suppress, scores);
        if ids.len() == self.begin() {
            ban(&self.begin_suppress, scores);
        }
    }

    /// Ids there are when the first free choice is made: a forced second id is none.
    fn begin(&self) -> usize {
        let is_forced = self.n_prompt <= 1 && self.forced_bos.is_some();
        self.n_prompt + usize::from(is_forced)
    }

    fn ban_bad_words(&self, ids: &[TokenId], scores: &mut [f32]) {
        for word in self.bad_words.iter() {
            let Some((last, before)) = word.split_last() else { continue };
            let is_eos = before.is_empty() && self.eos.contains(last);
            if !is_eos && ids.ends_with(before) {
                ban(std::slice::from_ref(last), scores);
            }
        }
    }
}

fn ban(ids: &[TokenId], scores: &mut [f32]) {
    for &id in ids {
        if let Some(score) = scores.get_mut(id as usize) {
            *score = f32::NEG_INFINITY;
        }
    }
}

fn allow_only(ids: &[TokenId], scores: &mut [f32]) {
    scores.fill(f32::NEG_INFINITY);
    for &id in ids {
        if let Some(score) = scores.get_mut(id as usize) {
            *score = 0.0;
        }
    }
}

fn penalise_repetition(penalty: f32, ids: &[TokenId], scores: &mut [f32], scratch: &mut Scratch) {
    scratch.seen.clear();
    scratch.seen.resize(scores.len().div_ceil(64), 0);
    for &id in ids {
        let Some(score) = scores.get_mut(id as usize) else { continue };
        let (word, bit) = (id as usize / 64, 1_u64 << (id % 64));
        let Some(word) = scratch.seen.get_mut(word) else { continue };
        if *word & bit == 0 {
            *word |= bit;
            *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
        }
    }
}

fn ban_repeated_ngrams(n: usize, ids: &[TokenId], scores: &mut [f32]) {
    let Some(start) = (ids.len() + 1).checked_sub(n) else { return };
    let prefix = &ids[start..];
    for window in ids.windows(n) {
        if let Some((last, before)) = window.split_last()
            && before == prefix
        {
            ban(std::slice::from_ref(last), scores);
        }
    }
}

#[cfg(test)]
mod tests;
