//! `zero-shot-classification`: how well labels that the request gives fit each text, by a model that
//! judges whether one text follows from another.
//!
//! Source: transformers 4.57, `pipelines/zero_shot_classification.py`.

use serde_json::{Value, json};

use super::classify::{check_finite, logits, softmax};
use super::context::{Budget, Prepared, TaskContext};
use super::input::text_of;
use super::parts::{Cut, Parts};
use super::{TaskReply, TaskRequest};
use crate::HostError;
use crate::logits::Params;
use crate::scheduler::{Outcome, Work};

/// Most labels of a request.
const MAX_LABELS: usize = 1024;

pub(super) fn prepare(
    context: &TaskContext,
    request: &TaskRequest,
    params: Params<'_>,
) -> Result<(Vec<Work>, Prepared), HostError> {
    let candidates = candidates(params)?;
    let hypotheses = hypotheses(params, &candidates)?;
    let each = params.flag("multi_label")?.or(params.flag("multi_class")?).unwrap_or(false);
    let each = each || candidates.len() == 1;
    let n_labels = context.limits().info.n_logits as usize;
    let limit = context.max_input();
    let cut = context.text.max_length().map_or(limit, |n| n.min(limit));
    let mut budget = Budget::new(0);
    let mut works = Vec::with_capacity(request.inputs.len() * candidates.len());
    let mut texts = Vec::with_capacity(request.inputs.len());
    for (idx, input) in request.inputs.iter().enumerate() {
        let place = format!("inputs[{idx}]");
        let text = text_of(&place, input)?;
        let text = context.bounded_to(&place, text, limit, true)?;
        if text.is_empty() {
            return Err(HostError::bad_request(format!(
                "{place} is empty: give a text to classify"
            )));
        }
        for hypothesis in &hypotheses {
            let parts = Parts::pair(context.text.as_ref(), text, hypothesis)?;
            // The text is cut and the label is not; one that is too long alone is left as it is.
            let input = parts.cut(cut, Cut::First).unwrap_or_else(|| parts.whole());
            context.check_length(&place, input.ids.len(), limit)?;
            budget.take(idx, input.ids.len())?;
            works.push(context.judge(&place, input)?);
        }
        texts.push(text.to_owned());
    }
    let entailment = context.facts.entailment.map(|id| id as usize).filter(|id| *id < n_labels);
    // As the pipeline: without a label of that name the last one stands for it.
    let entailment = entailment.unwrap_or(n_labels.saturating_sub(1));
    let contradiction = if entailment == 0 { n_labels.saturating_sub(1) } else { 0 };
    let is_single = request.is_single;
    let finish = move |outcomes: Vec<Outcome>| {
        let mut rows = Vec::with_capacity(outcomes.len());
        for outcome in outcomes {
            rows.push(logits(outcome)?.1);
        }
        let at = |row: &Vec<f32>, idx: usize| row.get(idx).copied().unwrap_or_default();
        let mut all = Vec::with_capacity(texts.len());
        for (text, rows) in texts.iter().zip(rows.chunks(candidates.len())) {
            rows.iter().try_for_each(|row| check_finite("a text", row))?;
            let scores: Vec<f64> = if each {
                let of = |row| {
                    let both = softmax(&[at(row, contradiction), at(row, entailment)]);
                    both.last().copied().unwrap_or_default()
                };
                rows.iter().map(of).collect()
            } else {
                softmax(&rows.iter().map(|row| at(row, entailment)).collect::<Vec<f32>>())
            };
            let mut order: Vec<usize> = (0..scores.len()).collect();
            // The order of the pipeline, which turns an ascending one around.
            order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
            order.reverse();
            all.push(json!({
                "sequence": text,
                "labels": order.iter().map(|idx| candidates[*idx].as_str()).collect::<Vec<_>>(),
                "scores": order.iter().map(|idx| scores[*idx]).collect::<Vec<_>>(),
            }));
        }
        Ok(TaskReply::Document(match (is_single, all.len()) {
            (true, 1) => all.remove(0),
            _ => Value::Array(all),
        }))
    };
    Ok((works, Prepared::finished_by(finish)))
}

/// `candidate_labels`: a list, or a string with commas between them.
fn candidates(params: Params<'_>) -> Result<Vec<String>, HostError> {
    let wrong = |what: String| {
        HostError::bad_request(format!(
            "parameters.candidate_labels{what}: give 1 to {MAX_LABELS} labels, as a list of \
             strings or as one string with commas between them"
        ))
    };
    let labels: Vec<String> = match params.get("candidate_labels") {
        None => return Err(wrong(" is missing".to_owned())),
        Some(Value::String(text)) => {
            let each = text.split(',').map(str::trim).filter(|label| !label.is_empty());
            each.map(str::to_owned).collect()
        }
        Some(Value::Array(list)) => {
            let each = list.iter().map(|label| label.as_str().map(str::to_owned));
            each.collect::<Option<_>>().ok_or_else(|| wrong(" holds something else".to_owned()))?
        }
        Some(_) => return Err(wrong(" is something else".to_owned())),
    };
    match labels.len() {
        1..=MAX_LABELS => Ok(labels),
        n => Err(wrong(format!(" has {n} labels"))),
    }
}

/// The template with each label in it.
fn hypotheses(params: Params<'_>, candidates: &[String]) -> Result<Vec<String>, HostError> {
    let template = match params.get("hypothesis_template") {
        None => "This example is {}.",
        Some(Value::String(template)) => template.as_str(),
        Some(value) => {
            return Err(HostError::bad_request(format!(
                "parameters.hypothesis_template={value}: expected a string with {{}} in it"
            )));
        }
    };
    let each = candidates.iter().map(|label| {
        filled(template, label).ok_or_else(|| {
            HostError::bad_request(format!(
                "parameters.hypothesis_template={template:?}: expected {{}} where the label \
                 belongs; a brace that is text is written twice"
            ))
        })
    });
    each.collect()
}

/// Python's `template.format(label)` for templates with `{}` or `{0}`; `None` for others.
fn filled(template: &str, label: &str) -> Option<String> {
    let mut text = String::with_capacity(template.len() + label.len());
    let (mut rest, mut n_filled) = (template, 0);
    while let Some(at) = rest.find(['{', '}']) {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        let (found, after) = ["{{", "}}", "{}", "{0}"]
            .into_iter()
            .find_map(|mark| Some((mark, rest.strip_prefix(mark)?)))?;
        match found {
            "{{" => text.push('{'),
            "}}" => text.push('}'),
            _ => {
                text.push_str(label);
                n_filled += 1;
            }
        }
        rest = after;
    }
    text.push_str(rest);
    (n_filled > 0).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::filled;

    #[test]
    fn templates_are_filled_as_python_fills_them() {
        let check = |template, expect: Option<&str>| {
            assert_eq!(filled(template, "x").as_deref(), expect, "{template}");
        };
        check("This is {}.", Some("This is x."));
        check("{0} or {0}", Some("x or x"));
        check("{{{}}}", Some("{x}"));
        check("no label", None);
        check("{", None);
        check("{name} {}", None);
    }
}
