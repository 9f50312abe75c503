//! `conversational`: what the model says next in a conversation, as transformers' pipeline of that
//! name did until 4.42: with the model's chat template, or else each turn followed by an end token.

use drivetrain_artifacts::{DecodeSpecial, SpecialTokens};
use drivetrain_engine::{AdapterId, EngineError, ModelKind, TokenId};
use serde_json::{Map, Value, json};

use super::context::{Budget, Prepared, TaskContext};
use super::input::field;
use super::{Input, TaskReply, TaskRequest, text_generation, text2text_generation};
use crate::HostError;
use crate::generate::Chat;
use crate::logits::Params;
use crate::scheduler::{Outcome, Work};

/// Most turns of a conversation.
const MAX_TURNS: usize = 4096;

/// A conversation, its last text the user's.
#[derive(Clone, Debug)]
struct Talk {
    users: Vec<String>,
    answers: Vec<String>,
}

pub(super) fn prepare(
    context: &TaskContext,
    request: &TaskRequest,
    params: Params<'_>,
) -> Result<(Vec<Work>, Prepared), HostError> {
    let generation = text_generation::generation(context, params)?;
    let info = &context.limits().info;
    let is_answering = info.kind == ModelKind::EncoderDecoder;
    let limit = if is_answering { info.max_encoder_positions } else { info.max_positions } as usize;
    let mut budget = Budget::new(0);
    let (mut works, mut talks) = (Vec::new(), Vec::new());
    for (idx, input) in request.inputs.iter().enumerate() {
        let place = format!("inputs[{idx}]");
        let talk = Talk::read(&place, input)?;
        let mut ids = talk.tokens(context, &place)?;
        // As the pipeline: of a conversation that is too long, the end is read.
        let most = context.text.max_length().map_or(limit, |n| n.min(limit));
        ids.drain(..ids.len().saturating_sub(most));
        context.check_length(&place, ids.len(), limit)?;
        budget.take(idx, ids.len())?;
        let n_prompt = if is_answering { 1 } else { ids.len() };
        let goal =
            text_generation::goal(context, &generation, DecodeSpecial::Skip, (n_prompt, &ids))?;
        let (encoder, tokens) = match is_answering {
            true => (ids, vec![text2text_generation::start(context, params)?]),
            false => (Vec::new(), ids),
        };
        works.push(Work {
            encoder,
            tokens,
            token_types: Vec::new(),
            goal,
            adapter: AdapterId::NONE,
        });
        talks.push(talk);
    }
    let is_single = request.is_single;
    let finish = move |context: &TaskContext, outcomes: Vec<Outcome>| {
        let mut all = Vec::with_capacity(talks.len());
        for (mut talk, outcome) in talks.into_iter().zip(outcomes) {
            let Outcome::Generated(choices) = outcome else {
                return Err(EngineError::internal("a conversation ended in no text").into());
            };
            let ids = choices.into_iter().next().map(|choice| choice.ids).unwrap_or_default();
            let answer = context.text.decode(&ids, DecodeSpecial::Skip)?;
            talk.answers.push(answer.clone());
            all.push(json!({
                "generated_text": answer,
                "conversation": {
                    "past_user_inputs": talk.users,
                    "generated_responses": talk.answers,
                },
            }));
        }
        Ok(TaskReply::Document(match all.as_mut_slice() {
            [one] if is_single => one.take(),
            _ => Value::Array(all),
        }))
    };
    Ok((works, Prepared::finished_with(finish)))
}

impl Talk {
    fn read(place: &str, input: &Input) -> Result<Self, HostError> {
        let Input::Object(map) = input else {
            return Err(HostError::bad_request(format!(
                "{place} is no object: give {{\"text\": .., \"past_user_inputs\": [..], \
                 \"generated_responses\": [..]}}"
            )));
        };
        let mut users = turns(place, map, "past_user_inputs")?;
        let answers = turns(place, map, "generated_responses")?;
        if users.len() != answers.len() {
            return Err(HostError::bad_request(format!(
                "{place} has {} past_user_inputs and {} generated_responses: expected one answer \
                 to each",
                users.len(),
                answers.len()
            )));
        }
        users.push(field(place, map, "text")?.to_owned());
        Ok(Self { users, answers })
    }

    /// The conversation's texts in order, and whether the user said them.
    fn texts(&self) -> impl Iterator<Item = (bool, &str)> {
        let answers = self.answers.iter().map(Some).chain(std::iter::once(None));
        self.users.iter().zip(answers).flat_map(|(user, answer)| {
            let answer = answer.map(|answer| (false, answer.as_str()));
            std::iter::once((true, user.as_str())).chain(answer)
        })
    }

    fn tokens(&self, context: &TaskContext, place: &str) -> Result<Vec<TokenId>, HostError> {
        if context.chat.has_template() {
            let messages = self.texts().map(|(is_user, text)| {
                let role = if is_user { "user" } else { "assistant" };
                json!({"role": role, "content": text})
            });
            let chat = Chat {
                messages: messages.collect(),
                tools: Vec::new(),
                extra: Map::new(),
                opens_answer: true,
                continues_last: false,
            };
            let text = context.chat.render(&chat)?;
            context.bounded_to(place, &text, 1 << 16, false)?;
            return Ok(context.text.encode(&text, SpecialTokens::None)?.ids);
        }
        let mut ids = Vec::new();
        for (_, text) in self.texts() {
            context.bounded_to(place, text, 1 << 16, false)?;
            ids.extend(context.text.encode(text, SpecialTokens::None)?.ids);
            ids.extend(context.text.eos());
        }
        Ok(ids)
    }
}

/// A list of texts that an object may have.
fn turns(place: &str, map: &Map<String, Value>, name: &str) -> Result<Vec<String>, HostError> {
    let wanted = || {
        HostError::bad_request(format!(
            "{place}.{name}: expected a list of at most {MAX_TURNS} strings"
        ))
    };
    match map.get(name) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() <= MAX_TURNS => {
            let texts = list.iter().map(|text| text.as_str().map(str::to_owned));
            texts.collect::<Option<_>>().ok_or_else(wanted)
        }
        Some(_) => Err(wanted()),
    }
}
