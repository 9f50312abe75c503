//! From a row of logits to the row's next token.

use drivetrain_engine::{EngineError, TokenId};

use super::group::Row;
use super::work::{Generate, Scored, Search};
use crate::FinishReason;
use crate::logits::{DrawKey, LogSoftmax, Scratch, arg_max, has_nan};

/// Why a choice has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) finish: FinishReason,
    /// The stop string, by its place in the list.
    pub(crate) stop: Option<usize>,
}

/// Memory that choosing uses again and again.
#[derive(Debug, Default)]
pub(crate) struct Chooser {
    pub(crate) rules: Scratch,
    /// The logits before the rules, where a log-probability is asked for.
    raw: Vec<f32>,
    /// The likeliest tokens of the last row, best first, where they were asked for.
    pub(crate) top: Vec<Scored>,
}

impl Chooser {
    /// The token that `logits`, `[n_logits]`, make the row go on with, where the row's tokens are
    /// those before it. Changes the logits.
    ///
    /// # Errors
    /// `Internal` if the logits are no numbers, or the grammar leaves no token.
    pub(crate) fn choose(
        &mut self,
        generate: &Generate,
        row: &mut Row,
        logits: &mut [f32],
    ) -> Result<Scored, EngineError> {
        let n_new = (row.tokens.len()).saturating_sub(generate.rules.n_prompt);
        let report = generate.report;
        let wants_logprob = report.logprobs || report.n_top > 0;
        // A choice from logits as they are sees by itself that one of them is no number.
        let is_plain = generate.rules.are_idle(&row.tokens) && row.constraint.is_none();
        if wants_logprob || !is_plain {
            check(logits, row.tokens.len())?;
        }
        let softmax = wants_logprob.then(|| LogSoftmax::of(logits));
        self.top.clear();
        if let Some(softmax) = softmax
            && report.n_top > 0
        {
            softmax.top(logits, report.n_top, &mut self.top);
        }
        let is_greedy = !matches!(generate.search, Search::Sample { .. });
        let stays_raw = is_plain && is_greedy;
        if softmax.is_some() && !stays_raw {
            self.raw.clear();
            self.raw.extend_from_slice(logits);
        }
        if !is_plain {
            generate.rules.apply(&row.tokens, logits, &mut self.rules);
        }
        if let Some(constraint) = &mut row.constraint {
            constraint.apply(logits)?;
        }
        let id = match &generate.search {
            Search::Sample { sampling, seed, .. } => {
                let key =
                    DrawKey { seed: *seed, choice: row.choice as u64, position: n_new as u64 };
                sampling.draw(logits, key, &mut self.rules)
            }
            Search::Greedy | Search::Beams(_) => arg_max(logits).filter(|id| {
                let is_allowed = |score: &f32| *score > f32::NEG_INFINITY;
                row.constraint.is_none() || logits.get(*id as usize).is_some_and(is_allowed)
            }),
        };
        let Some(id) = id else {
            check(logits, row.tokens.len())?;
            return Err(EngineError::bad_input(
                "the rules of the request leave no token that may come next: loosen its grammar, \
                 suppressed tokens or lengths",
            ));
        };
        let logprob = softmax.map_or(f32::NAN, |softmax| {
            let raw = if stays_raw { &*logits } else { self.raw.as_slice() };
            softmax.at(raw.get(id as usize).copied().unwrap_or(f32::NAN))
        });
        Ok(Scored { id, logprob })
    }
}

impl Row {
    /// Takes the token that was chosen; why the choice has ended, if it has.
    ///
    /// # Errors
    /// `BadInput` if the grammar does not take the token.
    pub(crate) fn accept(
        &mut self,
        generate: &Generate,
        chosen: Scored,
    ) -> Result<Option<Chosen>, EngineError> {
        let rules = &generate.rules;
        self.tokens.push(chosen.id);
        if !chosen.logprob.is_nan() {
            self.logprob += f64::from(chosen.logprob);
        }
        if rules.eos.contains(&chosen.id) {
            return Ok(Some(Chosen { finish: FinishReason::EndToken, stop: None }));
        }
        if let Some(stop) = self.stops.as_mut().and_then(|stops| stops.push(chosen.id)) {
            return Ok(Some(Chosen { finish: FinishReason::Stop, stop: Some(stop) }));
        }
        if let Some(constraint) = &mut self.constraint
            && constraint.advance(chosen.id)?
        {
            return Ok(Some(Chosen { finish: FinishReason::Stop, stop: None }));
        }
        if self.tokens.len() >= rules.max_length {
            return Ok(Some(Chosen { finish: FinishReason::Length, stop: None }));
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.begin();
        }
        Ok(None)
    }
}

/// Refuses logits that are no numbers, `n_tokens` being those before them.
///
/// # Errors
/// `Internal`.
pub(crate) fn check(logits: &[f32], n_tokens: usize) -> Result<(), EngineError> {
    if !logits.is_empty() && !has_nan(logits) {
        return Ok(());
    }
    let n_nan = logits.iter().filter(|score| score.is_nan()).count();
    Err(EngineError::internal(format!(
        "{n_nan} of the {} logits after {n_tokens} tokens are not numbers: the weights are \
         damaged, or the engine computes past the range of its dtype",
        logits.len(),
    )))
}

/// The scores of a prompt's token and of the likeliest at its place, from the logits before it.
///
/// # Errors
/// `Internal` if the logits are no numbers.
pub(crate) fn score_prompt(
    logits: &[f32],
    token: TokenId,
    n_top: usize,
    n_tokens: usize,
) -> Result<(Scored, Vec<Scored>), EngineError> {
    check(logits, n_tokens)?;
    let softmax = LogSoftmax::of(logits);
    let logit = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    let mut top = Vec::new();
    if n_top > 0 {
        softmax.top(logits, n_top, &mut top);
    }
    Ok((Scored { id: token, logprob: softmax.at(logit) }, top))
}
