//! `fill-mask`: the likeliest tokens in the place of each mask.
//!
//! Source: transformers 4.57, `pipelines/fill_mask.py`.

use drivetrain_artifacts::{DecodeSpecial, SpecialTokens};
use drivetrain_engine::TokenId;
use serde_json::{Value, json};

use super::classify::{Count, How, check_finite, logits, softmax};
use super::context::{Budget, Prepared, TaskContext};
use super::input::text_of;
use super::{TaskReply, TaskRequest};
use crate::HostError;
use crate::logits::Params;
use crate::scheduler::{Outcome, Work};

/// Most tokens told for a mask.
const MAX_TOLD: usize = 1 << 16;
/// Most targets.
const MAX_TARGETS: usize = 4096;
/// Most logits of an input: of every token, as wide as the vocabulary, 1 GiB.
const MAX_LOGITS: usize = 1 << 28;

/// What is asked of every mask.
struct Asked {
    n_told: usize,
    targets: Option<Vec<TokenId>>,
}

/// An input's tokens, and where its masks are.
struct Read {
    ids: Vec<TokenId>,
    masks: Vec<u32>,
}

pub(super) fn prepare(
    context: &TaskContext,
    request: &TaskRequest,
    params: Params<'_>,
) -> Result<(Vec<Work>, Prepared), HostError> {
    let Some(mask) = context.text.mask() else {
        return Err(HostError::bad_request(format!(
            "model {}: its tokenizer has no mask_token, which fill-mask needs",
            context.model()
        )));
    };
    let asked = asked(context, request, params)?;
    let how = How::read(context, params)?;
    let n_logits = context.limits().info.n_logits as usize;
    let mut budget = Budget::new(0);
    let mut works = Vec::with_capacity(request.inputs.len());
    let mut reads = Vec::with_capacity(request.inputs.len());
    for (idx, input) in request.inputs.iter().enumerate() {
        let place = format!("inputs[{idx}]");
        let input = how.encode(context, &place, (text_of(&place, input)?, None))?;
        let at = input.ids.iter().enumerate().filter(|(_, id)| **id == mask);
        let masks: Vec<u32> = at.map(|(at, _)| at as u32).collect();
        if masks.is_empty() {
            let shown = context.text.decode(&[mask], DecodeSpecial::Keep)?;
            return Err(HostError::bad_request(format!(
                "{place} has no mask: write {shown} where a token is to be found"
            )));
        }
        if input.ids.len().saturating_mul(n_logits) > MAX_LOGITS {
            return Err(HostError::bad_request(format!(
                "{place} has {} tokens, each of which gives {n_logits} logits: shorten it",
                input.ids.len()
            )));
        }
        budget.take(idx, input.ids.len())?;
        let ids = input.ids.clone();
        works.push(context.rows(input, Some(masks.clone().into()))?);
        reads.push(Read { ids, masks });
    }
    let pad = context.text.pad();
    let finish = move |context: &TaskContext, outcomes: Vec<Outcome>| {
        let mut all = Vec::with_capacity(reads.len());
        for (idx, (read, outcome)) in reads.iter().zip(outcomes).enumerate() {
            let (n_rows, values) = logits(outcome)?;
            check_finite(&format!("inputs[{idx}]"), &values)?;
            let width = values.len() / n_rows.max(1);
            let mut rows = Vec::with_capacity(n_rows);
            for (row, mask) in values.chunks_exact(width.max(1)).zip(&read.masks) {
                rows.push(read.told(context, row, *mask as usize, &asked, pad)?);
            }
            all.push(match rows.as_mut_slice() {
                [one] => one.take(),
                _ => Value::Array(rows),
            });
        }
        // The pipeline takes a list of one input apart.
        Ok(TaskReply::Document(match all.as_mut_slice() {
            [one] => one.take(),
            _ => Value::Array(all),
        }))
    };
    Ok((works, Prepared::finished_with(finish)))
}

impl Read {
    /// The best tokens for the mask at `at`, whose logits are `row`.
    fn told(
        &self,
        context: &TaskContext,
        row: &[f32],
        at: usize,
        asked: &Asked,
        pad: Option<TokenId>,
    ) -> Result<Value, HostError> {
        let scores = softmax(row);
        let score = |id: TokenId| scores.get(id as usize).copied().unwrap_or_default();
        let mut ids: Vec<TokenId> = match &asked.targets {
            Some(targets) => targets.clone(),
            None => (0..row.len() as TokenId).collect(),
        };
        let by_score =
            |a: &TokenId, b: &TokenId| score(*b).total_cmp(&score(*a)).then_with(|| a.cmp(b));
        let n = asked.n_told.min(ids.len());
        if n > 0 && n < ids.len() {
            ids.select_nth_unstable_by(n - 1, by_score);
        }
        ids.truncate(n);
        ids.sort_by(by_score);
        // With one mask the text is told as it reads; with several the other ones stay.
        let special = if self.masks.len() == 1 { DecodeSpecial::Skip } else { DecodeSpecial::Keep };
        let mut told = Vec::with_capacity(ids.len());
        for id in ids {
            let mut filled = self.ids.clone();
            if let Some(place) = filled.get_mut(at) {
                *place = id;
            }
            filled.retain(|id| Some(*id) != pad);
            told.push(json!({
                "score": score(id),
                "token": id,
                "token_str": context.text.decode(&[id], DecodeSpecial::Keep)?,
                "sequence": context.text.decode(&filled, special)?,
            }));
        }
        Ok(Value::Array(told))
    }
}

fn asked(
    context: &TaskContext,
    request: &TaskRequest,
    params: Params<'_>,
) -> Result<Asked, HostError> {
    let n_told = match Count::read(&request.parameters, params, "top_k")? {
        Count::Absent | Count::All => 5,
        Count::Some(n) if n <= MAX_TOLD => n,
        Count::Some(n) => {
            return Err(HostError::bad_request(format!(
                "parameters.top_k={n}: expected {MAX_TOLD} at most"
            )));
        }
    };
    let wrong = || {
        HostError::bad_request(format!(
            "parameters.targets: expected a string or a list of 1 to {MAX_TARGETS} strings"
        ))
    };
    let texts: Vec<&str> = match params.get("targets") {
        None => return Ok(Asked { n_told, targets: None }),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(list)) if (1..=MAX_TARGETS).contains(&list.len()) => {
            list.iter().map(Value::as_str).collect::<Option<_>>().ok_or_else(wrong)?
        }
        Some(_) => return Err(wrong()),
    };
    let n_logits = context.limits().info.n_logits;
    let mut targets = Vec::with_capacity(texts.len());
    for text in texts {
        let known = context.text.token_to_id(text);
        let id = match known {
            Some(id) => Some(id),
            None => context.text.encode(text, SpecialTokens::None)?.ids.first().copied(),
        };
        match id.filter(|id| *id < n_logits) {
            None => tracing::warn!(
                request = request.id,
                target = text,
                "the target is no token of the model's and gives none: it is left out"
            ),
            Some(id) => {
                if known.is_none() {
                    let token = context.text.id_to_token(id);
                    tracing::warn!(
                        request = request.id,
                        target = text,
                        token,
                        "the target is no token of the model's: its first piece stands for it"
                    );
                }
                if !targets.contains(&id) {
                    targets.push(id);
                }
            }
        }
    }
    if targets.is_empty() {
        return Err(HostError::bad_request(
            "parameters.targets: none of them gives a token of the model's",
        ));
    }
    Ok(Asked { n_told, targets: Some(targets) })
}
