//! Text completions as OpenAI's objects: whole, and chunk by chunk.

use drivetrain_host::{Completion, Event, HostError, PromptInfo, StopCause, TokenDetail};
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::request::CompletionForm;
use crate::failure::{ApiError, openai};
use crate::generation::numbers::finite;
use crate::generation::openai::{Head, Usage, usage_chunk};
use crate::generation::running::{Whole, openai_finish};
use crate::generation::stream::{Framing, Printer};

const OBJECT: &str = "text_completion";

/// A completion, or a chunk of one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Completed {
    id: String,
    /// `text_completion`.
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<Choice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

/// One of the choices.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Choice {
    index: usize,
    text: String,
    logprobs: Option<Logprobs>,
    /// `stop` or `length`; null until the end.
    finish_reason: Option<&'static str>,
    /// The stop string, or the stop token's id, that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    stop_reason: Option<Value>,
}

/// The tokens of a text, and how likely they were.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct Logprobs {
    text_offset: Vec<usize>,
    token_logprobs: Vec<Option<f32>>,
    tokens: Vec<String>,
    #[schema(value_type = Vec<Object>)]
    top_logprobs: Vec<Value>,
}

impl Logprobs {
    /// Adds a token; gives the offset behind it.
    fn push(&mut self, token: &TokenDetail, offset: usize, n_top: u64) -> usize {
        self.text_offset.push(offset);
        self.token_logprobs.push(token.logprob.map(finite));
        self.tokens.push(token.text.clone());
        let top = token.logprob.map(|own| {
            let mut map = Map::new();
            for other in token.top.iter().take(n_top as usize) {
                map.insert(other.text.clone(), json!(finite(other.logprob)));
            }
            // The token itself is listed wherever it stands.
            map.entry(token.text.clone()).or_insert_with(|| json!(finite(own)));
            Value::Object(map)
        });
        self.top_logprobs.push(top.unwrap_or(Value::Null));
        offset + token.text.chars().count()
    }
}

/// What a stop string or stop token was, as vLLM says it.
pub(crate) fn stop_reason(stop: &Option<StopCause>) -> Option<Value> {
    match stop {
        None => None,
        Some(StopCause::Text(text)) => Some(json!(text)),
        Some(StopCause::Token(id)) => Some(json!(id)),
    }
}

/// The whole answer.
pub(crate) fn completed(head: &Head, how: CompletionForm, whole: &Whole) -> Completed {
    let choices = whole.completions.iter().filter_map(|done| {
        let prompt = whole.prompts.get(done.prompt)?;
        let prompt_tokens = whole.prompt_tokens.get(done.prompt).map_or(&[][..], Vec::as_slice);
        Some(choice(how, prompt, prompt_tokens, done))
    });
    let n_new = if how.prompt_only { 0 } else { whole.n_new_tokens() };
    Completed {
        id: head.id.clone(),
        object: OBJECT,
        created: head.created,
        model: head.model.clone(),
        choices: choices.collect(),
        usage: Some(Usage::new(whole.n_prompt_tokens(), n_new)),
    }
}

fn choice(
    how: CompletionForm,
    prompt: &PromptInfo,
    prompt_tokens: &[TokenDetail],
    done: &Completion,
) -> Choice {
    let before = if how.echo { prompt.text.as_str() } else { "" };
    let new = if how.prompt_only { "" } else { done.text.as_str() };
    let logprobs = how.logprobs.map(|n_top| {
        let mut all = Logprobs::default();
        let mut offset = 0;
        let echoed = if how.echo { prompt_tokens } else { &[] };
        let new = if how.prompt_only { &[] } else { done.tokens.as_slice() };
        for token in echoed.iter().chain(new) {
            offset = all.push(token, offset, n_top);
        }
        all
    });
    Choice {
        index: done.prompt * how.n_choices + done.choice,
        text: format!("{before}{new}"),
        logprobs,
        finish_reason: Some(if how.prompt_only { "length" } else { openai_finish(done.finish) }),
        stop_reason: stop_reason(&done.stop),
    }
}

/// Writes chunks.
pub(crate) struct CompletionChunks {
    head: Head,
    how: CompletionForm,
    framing: Framing,
    prompts: Vec<PromptInfo>,
    prompt_tokens: Vec<Vec<TokenDetail>>,
    /// By choice: whether it has begun, and where its next token stands.
    offsets: Vec<Option<usize>>,
    n_new: usize,
    /// Of the choices that have ended, what was not told token by token included.
    n_done: usize,
}

impl CompletionChunks {
    /// Chunks of the answer to `prompts`.
    pub(crate) fn new(
        head: Head,
        how: CompletionForm,
        framing: Framing,
        prompts: Vec<PromptInfo>,
    ) -> Self {
        let offsets = vec![None; prompts.len() * how.n_choices];
        let prompt_tokens = vec![Vec::new(); prompts.len()];
        Self { head, how, framing, prompts, prompt_tokens, offsets, n_new: 0, n_done: 0 }
    }

    fn n_prompt_tokens(&self) -> usize {
        self.prompts.iter().map(|prompt| prompt.ids.len()).sum()
    }

    fn chunk(&self, choice: Choice, out: &mut Vec<u8>) {
        let usage = self.how.options.continuous_usage;
        let chunk = Completed {
            id: self.head.id.clone(),
            object: OBJECT,
            created: self.head.created,
            model: self.head.model.clone(),
            choices: vec![choice],
            usage: usage.then(|| Usage::new(self.n_prompt_tokens(), self.n_new)),
        };
        self.framing.frame(out, &chunk);
    }

    /// Writes the prompt before a choice's first token, if that is wanted.
    fn begin(&mut self, index: usize, prompt: usize, out: &mut Vec<u8>) {
        let Some(place) = self.offsets.get_mut(index).filter(|place| place.is_none()) else {
            return;
        };
        *place = Some(0);
        if !self.how.echo {
            return;
        }
        let text = self.prompts.get(prompt).map(|prompt| prompt.text.clone()).unwrap_or_default();
        let mut offset = 0;
        let logprobs = self.how.logprobs.map(|n_top| {
            let mut all = Logprobs::default();
            for token in self.prompt_tokens.get(prompt).map_or(&[][..], Vec::as_slice) {
                offset = all.push(token, offset, n_top);
            }
            all
        });
        if let Some(place) = self.offsets.get_mut(index) {
            *place = Some(offset);
        }
        let choice = Choice { index, text, logprobs, finish_reason: None, stop_reason: None };
        self.chunk(choice, out);
    }
}

impl Printer for CompletionChunks {
    fn event(&mut self, event: Event, out: &mut Vec<u8>) {
        match event {
            Event::Prompt { prompt, tokens } => {
                if let Some(place) = self.prompt_tokens.get_mut(prompt) {
                    *place = tokens;
                }
            }
            Event::Token { prompt, choice, token, text } => {
                let index = prompt * self.how.n_choices + choice;
                self.begin(index, prompt, out);
                if self.how.prompt_only {
                    return;
                }
                self.n_new += 1;
                let logprobs = self.how.logprobs.map(|n_top| {
                    let mut all = Logprobs::default();
                    let place = self.offsets.get(index).copied().flatten().unwrap_or(0);
                    let next = all.push(&token, place, n_top);
                    if let Some(place) = self.offsets.get_mut(index) {
                        *place = Some(next);
                    }
                    all
                });
                if text.is_empty() && logprobs.is_none() {
                    return;
                }
                let choice =
                    Choice { index, text, logprobs, finish_reason: None, stop_reason: None };
                self.chunk(choice, out);
            }
            Event::Done { text, completion } => {
                let index = completion.prompt * self.how.n_choices + completion.choice;
                self.begin(index, completion.prompt, out);
                let only = self.how.prompt_only;
                self.n_done += if only { 0 } else { completion.ids.len() };
                let finish = if only { "length" } else { openai_finish(completion.finish) };
                let choice = Choice {
                    index,
                    text: if only { String::new() } else { text },
                    logprobs: None,
                    finish_reason: Some(finish),
                    stop_reason: stop_reason(&completion.stop),
                };
                self.chunk(choice, out);
            }
            _ => {}
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if self.how.options.include_usage {
            let usage = Usage::new(self.n_prompt_tokens(), self.n_done);
            self.framing.frame(out, &usage_chunk(OBJECT, &self.head, usage));
        }
        self.framing.done(out);
    }

    fn failed(&mut self, error: HostError, out: &mut Vec<u8>) {
        let error = ApiError::of_task(error);
        self.framing.frame(out, &json!({ "error": openai::object(&error) }));
        self.framing.done(out);
    }
}
