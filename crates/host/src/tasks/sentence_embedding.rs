//! `sentence-embedding`: one vector a text, as sentence-transformers' `encode` makes it of the
//! model's `modules.json`; of a model without one, the mean of its tokens' states, of length 1.

use std::sync::Arc;

use drivetrain_artifacts::SpecialTokens;
use drivetrain_engine::{AdapterId, EngineError, ModelKind, Wanted};
use serde_json::Value;

use super::context::{Budget, Prepared, TaskContext};
use super::input::text_of;
use super::parts::{Cut, Parts};
use super::sentences::{Pooling, SentenceModules, normalise};
use super::{Embedding, Input, TaskReply, TaskRequest};
use crate::HostError;
use crate::logits::Params;
use crate::scheduler::{Goal, Outcome, Work};

/// What is asked of all texts.
struct Asked {
    prompt: String,
    n_prompt: usize,
    limit: usize,
    normalises: Option<bool>,
    n_columns: Option<usize>,
    wanted: Wanted,
}

pub(super) fn prepare(
    context: &TaskContext,
    request: &TaskRequest,
    params: Params<'_>,
) -> Result<(Vec<Work>, Prepared), HostError> {
    let modules = context.facts.sentences.clone();
    let modules = modules.unwrap_or_else(|| Arc::new(SentenceModules::plain()));
    let asked = asked(context, &modules, params)?;
    let mut budget =
        Budget::new(if asked.wanted == Wanted::Hidden { context.limits().info.dim } else { 0 });
    let mut works = Vec::with_capacity(request.inputs.len());
    let mut n_tokens = Vec::with_capacity(request.inputs.len());
    for (idx, input) in request.inputs.iter().enumerate() {
        let (ids, types) = tokens(context, idx, input, &modules, &asked)?;
        budget.take(idx, ids.len())?;
        n_tokens.push(ids.len());
        let token_types = context.facts.token_types(types);
        let goal = Goal::Hidden(asked.wanted);
        works.push(Work {
            encoder: Vec::new(),
            tokens: ids,
            token_types,
            goal,
            adapter: AdapterId::NONE,
        });
    }
    let dim = context.limits().info.dim as usize;
    let finish = move |outcomes: Vec<Outcome>| {
        let mut embeddings = Vec::with_capacity(outcomes.len());
        for (outcome, n_tokens) in outcomes.into_iter().zip(&n_tokens) {
            let Outcome::Hidden { values, .. } = outcome else {
                return Err(EngineError::internal("an embedding ended in no states").into());
            };
            let mut values = match asked.wanted {
                Wanted::Hidden => modules.embed(&values, dim, asked.n_prompt),
                _ => modules.after_pooling(values),
            };
            if let Some(n) = asked.n_columns {
                values.truncate(n);
            }
            if asked.normalises.unwrap_or(asked.n_columns.is_some()) {
                normalise(&mut values);
            }
            embeddings.push(Embedding { n_tokens: *n_tokens, values });
        }
        Ok(TaskReply::Embeddings(embeddings))
    };
    Ok((works, Prepared::finished_by(finish)))
}

fn asked(
    context: &TaskContext,
    modules: &SentenceModules,
    params: Params<'_>,
) -> Result<Asked, HostError> {
    let info = &context.limits().info;
    let wrong = |name: &str, value: &Value, wanted: String| {
        HostError::bad_request(format!("parameters.{name}={value}: expected {wanted}"))
    };
    let text = |name: &str| match params.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(value) => Err(wrong(name, value, "a string".to_owned())),
    };
    let named = |name: &str, key: &str| {
        modules.prompt(name).map(str::to_owned).ok_or_else(|| {
            let known: Vec<&str> = modules.prompts.iter().map(|(name, _)| name.as_str()).collect();
            let known =
                if known.is_empty() { "this model has none".to_owned() } else { known.join(", ") };
            wrong(key, &name.into(), format!("the name of a prompt: {known}"))
        })
    };
    let prompt = match (text("prompt")?, text("prompt_name")?, &modules.default_prompt) {
        (Some(prompt), _, _) => prompt.to_owned(),
        (None, Some(name), _) => named(name, "prompt_name")?,
        (None, None, Some(name)) => modules.prompt(name).unwrap_or_default().to_owned(),
        (None, None, None) => String::new(),
    };
    let mut n_prompt = 0;
    if !modules.includes_prompt && !prompt.is_empty() {
        let ids = context.text.encode(prompt.trim(), SpecialTokens::Add)?;
        n_prompt = ids.ids.len();
        n_prompt -= usize::from(ids.ids.last().is_some_and(|id| context.text.is_special(*id)));
    }
    let own = modules.max_length.map(|n| n as usize).or_else(|| context.text.max_length());
    let limit = own.unwrap_or(usize::MAX).min(info.max_positions as usize);
    let width = modules.width(info.dim as usize)?;
    let n_columns = match params.whole("dimensions", 1)?.map(|n| n as usize) {
        Some(n) if n > width => {
            let wanted = format!("{width} at most, which the model's vectors have");
            return Err(wrong("dimensions", &n.into(), wanted));
        }
        other => other.filter(|n| *n < width),
    };
    let wanted = match modules.modes.as_slice() {
        _ if !modules.includes_prompt && n_prompt > 0 => Wanted::Hidden,
        [Pooling::First] => Wanted::PooledFirst,
        [Pooling::Max] => Wanted::PooledMax,
        [Pooling::Mean] => Wanted::PooledMean,
        [Pooling::Last] => Wanted::PooledLast,
        _ => Wanted::Hidden,
    };
    // A decoder's prompt may be cut into pieces, each of which would be pooled alone.
    let wanted = if info.kind == ModelKind::Encoder { wanted } else { Wanted::Hidden };
    let normalises = params.flag("normalize")?.or(params.flag("normalize_embeddings")?);
    Ok(Asked { prompt, n_prompt, limit, normalises, n_columns, wanted })
}

/// The tokens of an input, cut to what the model takes, with their types.
fn tokens(
    context: &TaskContext,
    idx: usize,
    input: &Input,
    modules: &SentenceModules,
    asked: &Asked,
) -> Result<(Vec<u32>, Vec<u32>), HostError> {
    let place = format!("inputs[{idx}]");
    let (ids, types) = match input {
        Input::Tokens(ids) => {
            let vocab = context.limits().info.vocab;
            if let Some(id) = ids.iter().find(|id| **id >= vocab) {
                return Err(HostError::bad_request(format!(
                    "{place} has token {id}: expected ids below {vocab}"
                )));
            }
            let n = ids.len().min(asked.limit);
            (ids.get(..n).unwrap_or_default().to_vec(), Vec::new())
        }
        input => {
            let mut text = format!("{}{}", asked.prompt, text_of(&place, input)?).trim().to_owned();
            if modules.lower_case {
                text = text.to_lowercase();
            }
            let text = context.bounded(&place, &text, asked.limit)?;
            let parts = Parts::single(context.text.as_ref(), text, SpecialTokens::Add)?;
            let input = parts.cut(asked.limit, Cut::Longest).ok_or_else(|| {
                HostError::bad_request(format!(
                    "{place}: {} tokens leave no room for the text beside the special ones",
                    asked.limit
                ))
            })?;
            (input.ids, input.type_ids)
        }
    };
    if ids.is_empty() {
        return Err(HostError::bad_request(format!(
            "{place} gives no tokens: give a text that is not empty"
        )));
    }
    Ok((ids, types))
}
