//! `text2text-generation`: what an encoder-decoder model says to each input.

use drivetrain_artifacts::SpecialTokens;
use drivetrain_engine::AdapterId;

use super::context::{Budget, Encoding, Item, Prepared, TaskContext, Texts, decode_special};
use super::input::text_of;
use super::text::Encoded;
use super::{Task, TaskReply, TaskRequest, text_generation};
use crate::HostError;
use crate::logits::Params;
use crate::scheduler::{Outcome, Work};

pub(super) fn prepare(
    context: &TaskContext,
    request: &TaskRequest,
    params: Params<'_>,
) -> Result<(Vec<Work>, Prepared), HostError> {
    let special = if params.flag("add_special_tokens")? == Some(false) {
        SpecialTokens::None
    } else {
        SpecialTokens::Add
    };
    prepare_with(context, request, params, &|text| context.text.encode(text, special))
}

/// The same, with texts made tokens by `encode`.
pub(super) fn prepare_with(
    context: &TaskContext,
    request: &TaskRequest,
    params: Params<'_>,
    encode: &dyn Fn(&str) -> Result<Encoded, HostError>,
) -> Result<(Vec<Work>, Prepared), HostError> {
    let generation = text_generation::generation(context, params)?;
    let limit = context.limits().info.max_encoder_positions as usize;
    let how = Encoding::read(context, params, limit)?;
    let special = decode_special(params)?;
    let start = start(context, params)?;
    let mut budget = Budget::new(0);
    let mut works = Vec::with_capacity(request.inputs.len());
    let mut items = Vec::with_capacity(request.inputs.len());
    for (idx, input) in request.inputs.iter().enumerate() {
        let text = text_of(&format!("inputs[{idx}]"), input)?;
        // What the task puts before each text: T5's "summarize: ".
        let text = format!("{}{text}", context.facts.prefix);
        let encoder = context.encode_with(idx, &text, &how, encode)?.ids;
        if encoder.is_empty() {
            return Err(HostError::bad_request(format!(
                "inputs[{idx}] gives no tokens: give a text that is not empty"
            )));
        }
        budget.take(idx, encoder.len())?;
        items.push(Item { n_prompt_tokens: encoder.len(), prompt: None });
        // The decoder always starts with the start token alone.
        let goal = text_generation::goal(context, &generation, special, (1, &encoder))?;
        works.push(Work {
            encoder,
            tokens: vec![start],
            token_types: Vec::new(),
            goal,
            adapter: AdapterId::NONE,
        });
    }
    Ok((works, Prepared::Texts(Texts { items, special, is_full_text: false })))
}

/// The token a decoder starts with.
pub(super) fn start(context: &TaskContext, params: Params<'_>) -> Result<u32, HostError> {
    let asked = params.ids("decoder_start_token_id", context.limits().info.vocab)?;
    let defaults = &context.defaults;
    asked
        .and_then(|ids| ids.first().copied())
        .or(defaults.decoder_start_token_id)
        .or(defaults.bos_token_id)
        .ok_or_else(|| {
            HostError::bad_request(format!(
                "model {} says no decoder_start_token_id and no bos_token_id: set \
                 parameters.decoder_start_token_id",
                context.model
            ))
        })
}

/// The reply under the name of the task, which may be another that generates so.
pub(super) fn reply(
    task: Task,
    context: &TaskContext,
    prepared: &Texts,
    outcomes: Vec<Outcome>,
) -> Result<TaskReply, HostError> {
    let mut generated = Vec::with_capacity(outcomes.len());
    for (item, outcome) in prepared.items.iter().enumerate().zip(outcomes) {
        generated.extend(context.generated(prepared, item, outcome)?);
    }
    Ok(TaskReply::Generated(generated, task))
}
