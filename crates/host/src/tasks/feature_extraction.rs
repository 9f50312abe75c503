//! `feature-extraction`: the last hidden states of each input on its own, as transformers'
//! pipeline of that name gives the model's first output. Of a model with encoder and decoder that
//! is the decoder's, over the input that the model's class makes of the encoder's.

use drivetrain_artifacts::DecodeSpecial;
use drivetrain_engine::{AdapterId, DefaultDecoderInput, EngineError, ModelKind, Wanted};

use super::context::{Budget, Encoding, Item, Prepared, TaskContext, Texts};
use super::input::text_of;
use super::{Features, TaskReply, TaskRequest};
use crate::HostError;
use crate::logits::Params;
use crate::scheduler::{Goal, Outcome, Work};

pub(super) fn prepare(
    context: &TaskContext,
    request: &TaskRequest,
    params: Params<'_>,
) -> Result<(Vec<Work>, Prepared), HostError> {
    let info = &context.limits().info;
    let limit = match info.kind {
        ModelKind::EncoderDecoder => info.max_encoder_positions.min(info.max_positions),
        ModelKind::Decoder | ModelKind::Encoder => info.max_positions,
    };
    let how = Encoding::read(context, params, limit as usize)?;
    let mut budget = Budget::new(info.dim);
    let mut works = Vec::with_capacity(request.inputs.len());
    let mut items = Vec::with_capacity(request.inputs.len());
    for (idx, input) in request.inputs.iter().enumerate() {
        let text = text_of(&format!("inputs[{idx}]"), input)?;
        let encoded = context.encode(idx, text, &how)?;
        if encoded.ids.is_empty() {
            return Err(HostError::bad_request(format!(
                "inputs[{idx}] gives no tokens: give a text that is not empty"
            )));
        }
        budget.take(idx, encoded.ids.len())?;
        items.push(Item { n_prompt_tokens: encoded.ids.len(), prompt: None });
        works.push(match info.kind {
            ModelKind::EncoderDecoder => {
                let tokens = decoder_input(context, &encoded.ids)?;
                let goal = Goal::Hidden(Wanted::Hidden);
                Work {
                    encoder: encoded.ids,
                    tokens,
                    token_types: Vec::new(),
                    goal,
                    adapter: AdapterId::NONE,
                }
            }
            ModelKind::Decoder => Work::hidden(encoded.ids, Vec::new()),
            ModelKind::Encoder => {
                let token_types = context.facts.token_types(encoded.type_ids);
                Work::hidden(encoded.ids, token_types)
            }
        });
    }
    let special = DecodeSpecial::Skip;
    Ok((works, Prepared::Texts(Texts { items, special, is_full_text: false })))
}

/// What the decoder reads when nobody says what.
pub(super) fn decoder_input(context: &TaskContext, ids: &[u32]) -> Result<Vec<u32>, HostError> {
    let (last, before) = ids.split_last().map_or((None, &[][..]), |(l, b)| (Some(*l), b));
    match context.limits().info.default_decoder_input {
        DefaultDecoderInput::ShiftRight => {
            let start = context.shift_start.ok_or_else(|| {
                HostError::bad_request(format!(
                    "model {} needs decoder_start_token_id in its config.json",
                    context.model
                ))
            })?;
            Ok([&[start], before].concat())
        }
        DefaultDecoderInput::RotateLast => {
            Ok(last.into_iter().chain(before.iter().copied()).collect())
        }
        DefaultDecoderInput::None => Err(HostError::bad_request(format!(
            "model {} makes no decoder input of its own, so it has no states of a text: use \
             text2text-generation, or a model whose class makes one (BART, mBART)",
            context.model
        ))),
    }
}

pub(super) fn reply(dim: u32, outcomes: Vec<Outcome>) -> Result<TaskReply, HostError> {
    let features = outcomes.into_iter().map(|outcome| match outcome {
        Outcome::Hidden { n_rows, values } => {
            Ok(Features { n_tokens: n_rows, dim: dim as usize, values })
        }
        _ => Err(EngineError::internal("feature-extraction ended in something else").into()),
    });
    Ok(TaskReply::Features(features.collect::<Result<_, HostError>>()?))
}
