//! What the tasks with heads of their own share: inputs to work, logits to scores.

use drivetrain_artifacts::SpecialTokens;
use drivetrain_engine::{AdapterId, EngineError, ModelKind, Wanted};
use serde_json::Value;

use super::context::{INNER, TaskContext, truncation};
use super::feature_extraction::decoder_input;
use super::parts::{Cut, Input, Parts};
use crate::HostError;
use crate::generate::Naming;
use crate::logits::Params;
use crate::scheduler::{Goal, Outcome, Work};

/// What messages call the parameters of `tokenizer_kwargs`.
const TOKENIZER: Naming = Naming { prefix: "parameters.tokenizer_kwargs.", renamed: &[] };

/// How texts become tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    /// The model's own limit.
    pub(super) limit: usize,
    /// What texts are cut to; `None` where they are not.
    pub(super) cut: Option<usize>,
    pub(super) special: SpecialTokens,
}

impl How {
    /// Reads `truncation`, `max_length` and `add_special_tokens`, here, in `tokenizer_kwargs` or in
    /// `tokenize_kwargs`.
    pub(super) fn read(context: &TaskContext, params: Params<'_>) -> Result<Self, HostError> {
        let mut all = vec![params];
        for (name, naming) in [("tokenizer_kwargs", TOKENIZER), ("tokenize_kwargs", INNER)] {
            match params.get(name) {
                None => {}
                Some(Value::Object(map)) => all.push(Params::new(map, naming)),
                Some(value) => {
                    return Err(HostError::bad_request(format!(
                        "parameters.{name}={value}: expected an object"
                    )));
                }
            }
        }
        let (mut truncates, mut length, mut special) = (None, None, None);
        for params in all {
            truncates = truncates.or(truncation(params)?);
            length = length.or(params.whole("max_length", 1)?);
            special = special.or(params.flag("add_special_tokens")?);
        }
        let limit = context.max_input();
        let known = length.map(|n| n as usize).or_else(|| context.text.max_length());
        Ok(Self {
            limit,
            cut: truncates.unwrap_or(false).then(|| known.unwrap_or(limit).min(limit)),
            special: match special {
                Some(false) => SpecialTokens::None,
                _ => SpecialTokens::Add,
            },
        })
    }

    /// The tokens of a text, or of a text and its pair, called `place`.
    pub(super) fn encode(
        &self,
        context: &TaskContext,
        place: &str,
        (text, pair): (&str, Option<&str>),
    ) -> Result<Input, HostError> {
        let bounded = |text| context.bounded_to(place, text, self.limit, self.cut.is_some());
        let parts = match pair {
            None => Parts::single(context.text.as_ref(), bounded(text)?, self.special)?,
            Some(pair) => Parts::pair(context.text.as_ref(), bounded(text)?, bounded(pair)?)?,
        };
        let input = match self.cut {
            None => parts.whole(),
            Some(cut) => parts.cut(cut, Cut::Longest).ok_or_else(|| {
                HostError::bad_request(format!(
                    "{place}: {cut} tokens leave no room for the text beside the special ones"
                ))
            })?,
        };
        context.check_length(place, input.ids.len(), self.limit)?;
        Ok(input)
    }
}

impl TaskContext {
    /// Most tokens of an input that the model's head judges.
    pub(super) fn max_input(&self) -> usize {
        let info = &self.limits().info;
        let most = match info.kind {
            ModelKind::EncoderDecoder => info.max_encoder_positions.min(info.max_positions),
            _ => info.max_positions,
        };
        most as usize
    }

    /// # Errors
    /// `BadRequest`: an input, called `place`, has no tokens or more than `limit`.
    pub(super) fn check_length(
        &self,
        place: &str,
        n_tokens: usize,
        limit: usize,
    ) -> Result<(), HostError> {
        if n_tokens == 0 {
            return Err(HostError::bad_request(format!(
                "{place} gives no tokens: give a text that is not empty"
            )));
        }
        if n_tokens > limit {
            return Err(HostError::bad_request(format!(
                "{place} has {n_tokens} tokens and model {} takes {limit}: shorten it, or set \
                 parameters.truncation to true",
                self.model()
            )));
        }
        Ok(())
    }

    /// The work whose outcome is the head's row for a whole sequence.
    ///
    /// # Errors
    /// `BadRequest`: an input, called `place`, that the model's class can't judge.
    pub(super) fn judge(&self, place: &str, input: Input) -> Result<Work, HostError> {
        let mut work = self.rows(input, None)?;
        if let Goal::Logits { wanted, .. } = &mut work.goal {
            *wanted = Wanted::SequenceLogits;
        }
        let n = match self.limits().info.kind {
            ModelKind::Encoder => return Ok(work),
            // Such classes read the last token that is no padding.
            ModelKind::Decoder => work
                .tokens
                .iter()
                .rposition(|id| Some(*id) != self.facts.pad)
                .map_or(work.tokens.len(), |last| last + 1),
            // And these the decoder's state at the last end token of the encoder's input.
            ModelKind::EncoderDecoder => {
                let last = work.encoder.iter().rposition(|id| self.facts.eos.contains(id));
                last.map(|last| last + 1).ok_or_else(|| {
                    HostError::bad_request(format!(
                        "{place}: model {} judges a text at its end token {:?}, and the \
                         tokenizer puts none there",
                        self.model(),
                        self.facts.eos
                    ))
                })?
            }
        };
        work.tokens.truncate(n);
        Ok(work)
    }

    /// The work whose outcome is the head's row for each token, or for those that are `kept`.
    pub(super) fn rows(&self, input: Input, kept: Option<Box<[u32]>>) -> Result<Work, HostError> {
        let goal = Goal::Logits { wanted: Wanted::AllLogits, kept };
        let Input { ids, type_ids, .. } = input;
        Ok(match self.limits().info.kind {
            ModelKind::EncoderDecoder => {
                let tokens = decoder_input(self, &ids)?;
                Work {
                    encoder: ids,
                    tokens,
                    token_types: Vec::new(),
                    goal,
                    adapter: AdapterId::NONE,
                }
            }
            _ => {
                let token_types = self.facts.token_types(type_ids);
                Work {
                    encoder: Vec::new(),
                    tokens: ids,
                    token_types,
                    goal,
                    adapter: AdapterId::NONE,
                }
            }
        })
    }
}

/// The logits that a work with a head came to.
pub(super) fn logits(outcome: Outcome) -> Result<(usize, Vec<f32>), HostError> {
    match outcome {
        Outcome::Logits { n_rows, values } => Ok((n_rows, values)),
        _ => Err(EngineError::internal("a task with a head ended in something else").into()),
    }
}

/// `exp(x) / sum(exp(x))`.
pub(super) fn softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut scores: Vec<f64> = logits.iter().map(|x| f64::from(x - most).exp()).collect();
    let sum: f64 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
    scores
}

/// `1 / (1 + exp(-x))`.
pub(super) fn sigmoid(x: f32) -> f64 {
    1.0 / (1.0 + (-f64::from(x)).exp())
}

/// The first of the largest scores.
pub(super) fn argmax(scores: &[f64]) -> usize {
    let mut best = 0;
    for (idx, score) in scores.iter().enumerate() {
        if scores.get(best).is_none_or(|most| score > most) {
            best = idx;
        }
    }
    best
}

/// Whether numbers can be said in JSON.
///
/// # Errors
/// `Internal` that says which input, called `place`, has one that can't.
pub(super) fn check_finite(place: &str, logits: &[f32]) -> Result<(), HostError> {
    match logits.iter().find(|x| !x.is_finite()) {
        None => Ok(()),
        Some(x) => {
            Err(EngineError::internal(format!("the model's logits of {place} are {x}")).into())
        }
    }
}

/// The parameter that is a whole number, at least 1, or `null`.
pub(super) enum Count {
    /// It is not there.
    Absent,
    /// It is `null`.
    All,
    /// It is this many.
    Some(usize),
}

impl Count {
    /// Reads `name` of a request's parameters.
    pub(super) fn read(
        map: &serde_json::Map<String, Value>,
        params: Params<'_>,
        name: &str,
    ) -> Result<Self, HostError> {
        match map.get(name) {
            None => Ok(Self::Absent),
            Some(Value::Null) => Ok(Self::All),
            Some(_) => Ok(params.whole(name, 1)?.map_or(Self::All, |n| Self::Some(n as usize))),
        }
    }
}
