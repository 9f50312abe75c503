//! `text-classification`: the labels of each text, or of each text with its pair.
//!
//! Source: transformers 4.57, `pipelines/text_classification.py`.

use std::sync::Arc;

use serde_json::{Value, json};

use super::classify::{Count, How, argmax, check_finite, logits, sigmoid, softmax};
use super::context::{Budget, Prepared, TaskContext};
use super::facts::Problem;
use super::input::pair_of;
use super::{TaskReply, TaskRequest};
use crate::HostError;
use crate::logits::Params;
use crate::scheduler::{Outcome, Work};

/// What makes scores of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Apply {
    Sigmoid,
    Softmax,
    None,
}

impl Apply {
    /// `function_to_apply`, or what the model's config says.
    pub(super) fn read(context: &TaskContext, params: Params<'_>) -> Result<Self, HostError> {
        let n_labels = context.limits().info.n_logits;
        match params.get("function_to_apply") {
            None => Ok(match context.facts.problem {
                Problem::Regression => Self::None,
                Problem::MultiLabel => Self::Sigmoid,
                _ if n_labels == 1 => Self::Sigmoid,
                _ => Self::Softmax,
            }),
            Some(value) => match value.as_str().map(str::to_ascii_lowercase).as_deref() {
                Some("sigmoid") => Ok(Self::Sigmoid),
                Some("softmax") => Ok(Self::Softmax),
                Some("none") => Ok(Self::None),
                _ => Err(HostError::bad_request(format!(
                    "parameters.function_to_apply={value}: expected \"sigmoid\", \"softmax\" or \
                     \"none\""
                ))),
            },
        }
    }

    pub(super) fn scores(self, logits: &[f32]) -> Vec<f64> {
        match self {
            Self::Sigmoid => logits.iter().map(|x| sigmoid(*x)).collect(),
            Self::Softmax => softmax(logits),
            Self::None => logits.iter().map(|x| f64::from(*x)).collect(),
        }
    }
}

/// Which labels are told of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// The best, as an object.
    Best,
    /// All in their order: what `return_all_scores` asks for.
    All,
    /// The best ones, best first.
    Top(usize),
}

impl Shape {
    fn read(
        context: &TaskContext,
        request: &TaskRequest,
        params: Params<'_>,
    ) -> Result<Self, HostError> {
        let all = params.flag("return_all_scores")?.or(context.facts.returns_all_scores);
        Ok(match Count::read(&request.parameters, params, "top_k")? {
            Count::All => Self::Top(usize::MAX),
            Count::Some(n) => Self::Top(n),
            Count::Absent if all == Some(true) => Self::All,
            Count::Absent => Self::Best,
        })
    }
}

pub(super) fn prepare(
    context: &TaskContext,
    request: &TaskRequest,
    params: Params<'_>,
) -> Result<(Vec<Work>, Prepared), HostError> {
    let shape = Shape::read(context, request, params)?;
    let apply = Apply::read(context, params)?;
    let how = How::read(context, params)?;
    let mut budget = Budget::new(0);
    let mut works = Vec::with_capacity(request.inputs.len());
    for (idx, input) in request.inputs.iter().enumerate() {
        let place = format!("inputs[{idx}]");
        let input = how.encode(context, &place, pair_of(&place, input)?)?;
        budget.take(idx, input.ids.len())?;
        works.push(context.judge(&place, input)?);
    }
    let facts = Arc::clone(&context.facts);
    let finish = move |outcomes: Vec<Outcome>| {
        let mut all = Vec::with_capacity(outcomes.len());
        for (idx, outcome) in outcomes.into_iter().enumerate() {
            let (_, logits) = logits(outcome)?;
            check_finite(&format!("inputs[{idx}]"), &logits)?;
            let scores = apply.scores(&logits);
            let told = |idx: usize| {
                let score = scores.get(idx).copied().unwrap_or_default();
                json!({"label": facts.label(idx), "score": score})
            };
            all.push(match shape {
                Shape::Best => told(argmax(&scores)),
                Shape::All => (0..scores.len()).map(told).collect(),
                Shape::Top(n) => {
                    let mut order: Vec<usize> = (0..scores.len()).collect();
                    // Stable, so that of equal scores the first label comes first.
                    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
                    order.into_iter().take(n).map(told).collect()
                }
            });
        }
        Ok(TaskReply::Document(Value::Array(all)))
    };
    Ok((works, Prepared::finished_by(finish)))
}
