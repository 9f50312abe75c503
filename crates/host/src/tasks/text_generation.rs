//! `text-generation`: how a decoder-only model continues each input, as transformers' pipeline of
//! that name: the reply has the prompt before the new text unless `return_full_text` is false.

use drivetrain_artifacts::{DecodeSpecial, SpecialTokens};
use drivetrain_engine::AdapterId;

use super::context::{
    Budget, Encoding, Item, Prepared, Prompt, TaskContext, Texts, decode_special,
};
use super::input::text_of;
use super::{Generated, Task, TaskReply, TaskRequest};
use crate::HostError;
use crate::logits::{GenerationParams, Params};
use crate::scheduler::{Goal, Outcome, Work};
use crate::text::StopWatch;

pub(super) fn prepare(
    context: &TaskContext,
    request: &TaskRequest,
    params: Params<'_>,
) -> Result<(Vec<Work>, Prepared), HostError> {
    let generation = generation(context, params)?;
    let limit = context.limits().info.max_positions as usize;
    let how = Encoding::read(context, params, limit)?;
    let is_full_text = params.flag("return_full_text")?.unwrap_or(true);
    let special = decode_special(params)?;
    let mut budget = Budget::new(0);
    let mut works = Vec::with_capacity(request.inputs.len());
    let mut items = Vec::with_capacity(request.inputs.len());
    for (idx, input) in request.inputs.iter().enumerate() {
        let text = text_of(&format!("inputs[{idx}]"), input)?;
        let ids = context.encode(idx, text, &how)?.ids;
        let n_prompt_tokens = ids.len();
        if how.truncates && n_prompt_tokens >= limit {
            return Err(HostError::bad_request(format!(
                "inputs[{idx}] is cut to {n_prompt_tokens} tokens and model {} takes {limit}, new \
                 ones included: shorten it, or set parameters.tokenize_kwargs.max_length lower",
                context.model
            )));
        }
        let prompt = is_full_text.then(|| Prompt { text: text.to_owned(), ids: ids.clone() });
        // As `generate` without input: the start token stands for it, and is no part of the prompt.
        let tokens = if ids.is_empty() { vec![start(context, idx)?] } else { ids };
        budget.take(idx, tokens.len())?;
        items.push(Item { n_prompt_tokens, prompt });
        let goal = goal(context, &generation, special, (tokens.len(), &tokens))?;
        works.push(Work {
            encoder: Vec::new(),
            tokens,
            token_types: Vec::new(),
            goal,
            adapter: AdapterId::NONE,
        });
    }
    Ok((works, Prepared::Texts(Texts { items, special, is_full_text })))
}

/// What generation needs of a request's parameters.
pub(super) fn generation(
    context: &TaskContext,
    params: Params<'_>,
) -> Result<GenerationParams, HostError> {
    let mut generation = GenerationParams::read(params, &context.defaults, false)?;
    let mut words = Vec::new();
    for word in generation.bad_word_strings() {
        // As vLLM: also after a space, where that makes another token of the first.
        let word = word.trim_start();
        let bare = context.text.encode(word, SpecialTokens::None)?.ids;
        let spaced = context.text.encode(&format!(" {word}"), SpecialTokens::None)?.ids;
        if spaced.len() == bare.len() && spaced.first() != bare.first() {
            words.push(spaced);
        }
        words.push(bare);
    }
    generation.ban(words);
    Ok(generation)
}

/// How an input is answered whose decoder starts with so many tokens and whose encoder reads these,
/// the prompt for a model without one.
pub(super) fn goal(
    context: &TaskContext,
    generation: &GenerationParams,
    special: DecodeSpecial,
    (n_prompt, encoder): (usize, &[u32]),
) -> Result<Goal, HostError> {
    let mut generate = generation.generate(n_prompt, encoder)?;
    let strings = generation.stop_strings();
    if !strings.is_empty() {
        generate.stops = Some(StopWatch::new(strings, context.text.stream(special)));
    }
    if let Some((grammar, field)) = generation.grammar() {
        generate.constraint = Some(context.grammars.constraint(grammar, field)?);
    }
    Ok(Goal::Generate(Box::new(generate)))
}

fn start(context: &TaskContext, idx: usize) -> Result<u32, HostError> {
    context.defaults.bos_token_id.or_else(|| context.text.bos()).ok_or_else(|| {
        HostError::bad_request(format!(
            "inputs[{idx}] gives no tokens, and model {} has no bos_token_id to start from: give a \
             text that is not empty",
            context.model
        ))
    })
}

pub(super) fn reply(
    context: &TaskContext,
    prepared: &Texts,
    outcomes: Vec<Outcome>,
) -> Result<TaskReply, HostError> {
    let mut generated = Vec::with_capacity(outcomes.len());
    for ((idx, item), outcome) in prepared.items.iter().enumerate().zip(outcomes) {
        for mut one in context.generated(prepared, (idx, item), outcome)? {
            if prepared.is_full_text
                && let Some(prompt) = &item.prompt
            {
                one.full_text = Some(full_text(context, prepared, prompt, &one)?);
            }
            generated.push(one);
        }
    }
    Ok(TaskReply::Generated(generated, Task::TextGeneration))
}

/// The prompt as it was written, then its continuation.
fn full_text(
    context: &TaskContext,
    prepared: &Texts,
    prompt: &Prompt,
    generated: &Generated,
) -> Result<String, HostError> {
    let continuation = context.continuation(&prompt.ids, &generated.ids, prepared.special)?;
    Ok(format!("{}{continuation}", prompt.text))
}
