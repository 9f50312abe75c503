//! The logits processors of one sequence.

use std::sync::Arc;

use drivetrain_engine::TokenId;

use super::Scratch;

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
    /// Ids that the encoder reads; those of the prompt for a model without one. Empty unless a rule
    /// here needs them.
    pub(crate) encoder: Arc<[TokenId]>,
    /// What is added to the score of each of these ids.
    pub(crate) logit_bias: Arc<[(TokenId, f32)]>,
    /// What is added to the score of an id that would complete one of these runs.
    pub(crate) sequence_bias: Arc<[(Vec<TokenId>, f32)]>,
    /// Scores of ids of the encoder's input are multiplied (positive) or divided (negative) by this.
    pub(crate) encoder_repetition_penalty: Option<f32>,
    /// Scores of ids that occurred are divided (positive) or multiplied (negative) by this.
    pub(crate) repetition_penalty: Option<f32>,
    /// What the score of a new id loses for each time that it was said.
    pub(crate) frequency_penalty: f32,
    /// What the score of a new id loses if it was said.
    pub(crate) presence_penalty: f32,
    /// No run of this many ids occurs twice; 0 for no such rule.
    pub(crate) no_repeat_ngram: usize,
    /// No run of this many ids of the encoder's input occurs; 0 for no such rule.
    pub(crate) encoder_no_repeat_ngram: usize,
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
    /// Scores that are no finite numbers are replaced by some that are.
    pub(crate) removes_invalid: bool,
    /// From this many new ids on, end tokens gain by this factor to the power of the excess.
    pub(crate) decay: Option<(usize, f64)>,
    /// Ids that never occur.
    pub(crate) suppress: Arc<[TokenId]>,
    /// Ids that are not said first.
    pub(crate) begin_suppress: Arc<[TokenId]>,
}

impl Rules {
    /// Changes `scores`, the logits that follow `ids`, in `generate`'s order; what only OpenAI's
    /// interface has (`logit_bias`, frequency and presence) comes where its kin do. Ids without a
    /// score are passed over.
    ///
    /// Rules that look at all ids take time in proportion to them, none takes more.
    pub(crate) fn apply(&self, ids: &[TokenId], scores: &mut [f32], scratch: &mut Scratch) {
        self.add_biases(ids, scores);
        if let Some(penalty) = self.encoder_repetition_penalty {
            penalise_repetition(penalty.recip(), &self.encoder, scores, scratch);
        }
        if let Some(penalty) = self.repetition_penalty {
            penalise_repetition(penalty, ids, scores, scratch);
        }
        if self.frequency_penalty != 0.0 || self.presence_penalty != 0.0 {
            self.penalise_frequency(ids.get(self.n_prompt..).unwrap_or_default(), scores, scratch);
        }
        if self.no_repeat_ngram > 0 {
            ban_ngrams(self.no_repeat_ngram, ids, ids, scores);
        }
        if self.encoder_no_repeat_ngram > 0 {
            ban_ngrams(self.encoder_no_repeat_ngram, &self.encoder, ids, scores);
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
        if self.removes_invalid {
            remove_invalid(scores);
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

    /// Whether [`Self::apply`] leaves the logits that follow `ids` as they are, whatever they are.
    pub(crate) fn are_idle(&self, ids: &[TokenId]) -> bool {
        let n_new = ids.len().saturating_sub(self.n_prompt);
        let has_no_bias = self.logit_bias.is_empty() && self.sequence_bias.is_empty();
        let has_no_penalty = self.encoder_repetition_penalty.is_none()
            && self.repetition_penalty.is_none()
            && self.frequency_penalty == 0.0
            && self.presence_penalty == 0.0
            && self.decay.is_none_or(|(start, _)| n_new <= start);
        let bans_no_run = self.no_repeat_ngram == 0
            && self.encoder_no_repeat_ngram == 0
            && self.bad_words.is_empty();
        let may_end = ids.len() >= self.min_length && n_new >= self.min_new_tokens;
        let forces_none = (self.forced_bos.is_none() || ids.len() != 1)
            && (self.forced_eos.is_empty() || ids.len() + 1 != self.max_length);
        let bans_none = self.suppress.is_empty()
            && (self.begin_suppress.is_empty() || ids.len() != self.begin());
        has_no_bias
            && has_no_penalty
            && bans_no_run
            && may_end
            && forces_none
            && bans_none
            && !self.removes_invalid
    }

    /// Ids there are when the first free choice is made: a forced second id is none.
    fn begin(&self) -> usize {
        let is_forced = self.n_prompt <= 1 && self.forced_bos.is_some();
        self.n_prompt + usize::from(is_forced)
    }

    fn add_biases(&self, ids: &[TokenId], scores: &mut [f32]) {
        for &(id, bias) in self.logit_bias.iter() {
            if let Some(score) = scores.get_mut(id as usize) {
                *score += bias;
            }
        }
        for (run, bias) in self.sequence_bias.iter() {
            if let Some((last, before)) = run.split_last()
                && ids.ends_with(before)
                && let Some(score) = scores.get_mut(*last as usize)
            {
                *score += bias;
            }
        }
    }

    /// As vLLM: the prompt's ids do not count.
    fn penalise_frequency(&self, new_ids: &[TokenId], scores: &mut [f32], scratch: &mut Scratch) {
        let counts = &mut scratch.counts;
        if counts.len() < scores.len() {
            counts.resize(scores.len(), 0);
        }
        for &id in new_ids {
            if let Some(count) = counts.get_mut(id as usize) {
                *count += 1;
            }
        }
        for &id in new_ids {
            let Some(count) = counts.get_mut(id as usize) else { continue };
            if let Some(score) = scores.get_mut(id as usize)
                && *count > 0
            {
                *score -= self.frequency_penalty * *count as f32 + self.presence_penalty;
            }
            *count = 0;
        }
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

/// Bans what would complete a run of `n` ids that `source` has.
fn ban_ngrams(n: usize, source: &[TokenId], ids: &[TokenId], scores: &mut [f32]) {
    let Some(start) = (ids.len() + 1).checked_sub(n) else { return };
    let prefix = &ids[start..];
    let Some(end) = prefix.last() else { return ban(source, scores) };
    for window in source.windows(n) {
        // The id before the last one tells nearly all runs apart.
        if let [before @ .., last] = window
            && before.last() == Some(end)
            && before == prefix
        {
            ban(std::slice::from_ref(last), scores);
        }
    }
}

fn remove_invalid(scores: &mut [f32]) {
    for score in scores {
        *score = if score.is_nan() { 0.0 } else { score.clamp(f32::MIN, f32::MAX) };
    }
}

#[cfg(test)]
mod tests;
