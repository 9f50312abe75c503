//! `rerank`: how well texts answer a query, by a model that reads both (a cross-encoder), best
//! first. One input is an object with `query` and `texts`, or with `text` and `text_pair`.
//!
//! Schema: text-embeddings-inference 1.8, `/rerank`; scores: sentence-transformers 5.7,
//! `CrossEncoder`.

use serde_json::{Map, Value};

use super::classify::{How, check_finite, logits, sigmoid};
use super::context::{Budget, Prepared, TaskContext};
use super::input::{field, pair_of};
use super::{Input, Rank, TaskReply, TaskRequest};
use crate::HostError;
use crate::logits::Params;
use crate::scheduler::{Outcome, Work};

/// Most texts of a query.
const MAX_TEXTS: usize = 4096;

pub(super) fn prepare(
    context: &TaskContext,
    request: &TaskRequest,
    params: Params<'_>,
) -> Result<(Vec<Work>, Prepared), HostError> {
    let n_labels = context.limits().info.n_logits;
    if n_labels != 1 {
        return Err(HostError::bad_request(format!(
            "model {} has {n_labels} labels: rerank needs a model with one, whose logit is the score",
            context.model()
        )));
    }
    let pairs = pairs(request)?;
    let how = How::read(context, params)?;
    // As text-embeddings-inference and sentence-transformers: what is too long is cut.
    let refuses =
        params.flag("truncate")? == Some(false) || params.flag("truncation")? == Some(false);
    let cut = how.cut.or_else(|| {
        (!refuses).then(|| context.text.max_length().map_or(how.limit, |n| n.min(how.limit)))
    });
    let how = How { cut, ..how };
    let is_raw = params.flag("raw_scores")?.unwrap_or(false);
    let returns_text = params.flag("return_text")?.unwrap_or(false);
    let mut budget = Budget::new(0);
    let mut works = Vec::with_capacity(pairs.len());
    let mut texts = Vec::with_capacity(pairs.len());
    for (idx, (query, text)) in pairs.into_iter().enumerate() {
        let place = format!("texts[{idx}]");
        let input = how.encode(context, &place, (query, Some(text)))?;
        budget.take(idx, input.ids.len())?;
        works.push(context.judge(&place, input)?);
        texts.push(returns_text.then(|| text.to_owned()));
    }
    let finish = move |outcomes: Vec<Outcome>| {
        let mut ranks = Vec::with_capacity(outcomes.len());
        for (index, (outcome, text)) in outcomes.into_iter().zip(texts).enumerate() {
            let (_, logits) = logits(outcome)?;
            check_finite(&format!("texts[{index}]"), &logits)?;
            let logit = logits.first().copied().unwrap_or_default();
            let score = if is_raw { f64::from(logit) } else { sigmoid(logit) };
            ranks.push((logit, Rank { index, text, score }));
        }
        ranks.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        Ok(TaskReply::Ranks(ranks.into_iter().map(|(_, rank)| rank).collect()))
    };
    Ok((works, Prepared::finished_by(finish)))
}

/// The pairs that a request asks to be compared.
fn pairs(request: &TaskRequest) -> Result<Vec<(&str, &str)>, HostError> {
    if let [Input::Object(map)] = request.inputs.as_slice()
        && (map.contains_key("query") || map.contains_key("texts"))
    {
        return of_query(map);
    }
    let each = request.inputs.iter().enumerate().map(|(idx, input)| {
        let place = format!("inputs[{idx}]");
        match pair_of(&place, input)? {
            (text, Some(pair)) => Ok((text, pair)),
            (_, None) => Err(HostError::bad_request(format!(
                "{place} has no key \"text_pair\": give an object with query and texts, or with \
                 text and text_pair"
            ))),
        }
    });
    each.collect()
}

fn of_query(map: &Map<String, Value>) -> Result<Vec<(&str, &str)>, HostError> {
    let query = field("inputs", map, "query")?;
    let wanted =
        || HostError::bad_request(format!("texts: expected a list of 1 to {MAX_TEXTS} strings"));
    let texts = map.get("texts").and_then(Value::as_array).ok_or_else(wanted)?;
    if texts.is_empty() || texts.len() > MAX_TEXTS {
        return Err(wanted());
    }
    let each = texts.iter().enumerate().map(|(idx, text)| match text.as_str() {
        Some(text) => Ok((query, text)),
        None => Err(HostError::bad_request(format!("texts[{idx}]: expected a string"))),
    });
    each.collect()
}
