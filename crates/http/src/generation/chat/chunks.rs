//! Chat completions chunk by chunk.

use drivetrain_host::{Event, HostError};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::print::{ChatForm, ChatLogprobs, WireCall};
use super::request::ToolChoice;
use super::tools::{Said, ToolCall, ToolReader, ToolSyntax, forced_calls};
use crate::failure::{ApiError, openai};
use crate::generation::completions::stop_reason;
use crate::generation::openai::{Head, Usage, usage_chunk};
use crate::generation::running::openai_finish;
use crate::generation::stream::{Framing, Printer};

const OBJECT: &str = "chat.completion.chunk";

/// A chunk.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatChunk<'a> {
    id: &'a str,
    /// `chat.completion.chunk`.
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: [ChunkChoice; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

/// What is new of a choice.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`, in the choice's last chunk.
    finish_reason: Option<&'static str>,
    /// The stop string, or the stop token's id, that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    stop_reason: Option<Value>,
}

/// What is new of a message.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct Delta {
    /// `assistant`, in the choice's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    tool_calls: Option<Vec<Value>>,
}

/// A choice on its way.
struct Choice {
    has_begun: bool,
    n_calls: usize,
    reader: ToolReader,
    /// The text of an answer that is read as calls when it is whole.
    whole: String,
    /// Tokens whose text is held back, for the logprobs of the chunk that tells it.
    held: Option<ChatLogprobs>,
}

/// Writes chunks.
pub(crate) struct ChatChunks {
    head: Head,
    how: ChatForm,
    framing: Framing,
    syntax: ToolSyntax,
    choices: Vec<Choice>,
    n_prompt: usize,
    n_new: usize,
    n_done: usize,
}

impl ChatChunks {
    /// Chunks of the answer to a prompt of `n_prompt` tokens.
    pub(crate) fn new(
        head: Head,
        how: ChatForm,
        framing: Framing,
        syntax: ToolSyntax,
        n_prompt: usize,
    ) -> Self {
        let choices = (0..how.n_choices.max(1)).map(|_| Choice {
            has_begun: false,
            n_calls: 0,
            reader: ToolReader::new(syntax),
            whole: String::new(),
            held: None,
        });
        let choices = choices.collect();
        Self { head, how, framing, syntax, choices, n_prompt, n_new: 0, n_done: 0 }
    }

    fn chunk(&self, choice: ChunkChoice, out: &mut Vec<u8>) {
        let usage = self.how.options.continuous_usage;
        let chunk = ChatChunk {
            id: &self.head.id,
            object: OBJECT,
            created: self.head.created,
            model: &self.head.model,
            choices: [choice],
            usage: usage.then(|| Usage::new(self.n_prompt, self.n_new)),
        };
        self.framing.frame(out, &chunk);
    }

    fn delta(&self, index: usize, delta: Delta, out: &mut Vec<u8>) {
        let choice =
            ChunkChoice { index, delta, logprobs: None, finish_reason: None, stop_reason: None };
        self.chunk(choice, out);
    }

    /// The chunk with the role, before anything else of a choice.
    fn begin(&mut self, index: usize, out: &mut Vec<u8>) {
        let Some(choice) = self.choices.get_mut(index).filter(|choice| !choice.has_begun) else {
            return;
        };
        choice.has_begun = true;
        let delta =
            Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
        self.delta(index, delta, out);
        if let ToolChoice::Named(name) = &self.how.choice {
            let call = ToolCall { name: name.clone(), arguments: String::new() };
            self.call(index, call, out);
        }
    }

    fn call(&mut self, index: usize, call: ToolCall, out: &mut Vec<u8>) {
        let Some(choice) = self.choices.get_mut(index) else { return };
        let idx = choice.n_calls;
        choice.n_calls += 1;
        if self.how.single_call && idx > 0 {
            return;
        }
        let call = WireCall::new(&self.head, index, idx, call).in_chunk(idx);
        let delta = Delta { tool_calls: Some(vec![json!(call)]), ..Delta::default() };
        self.delta(index, delta, out);
    }

    /// Tells a piece of text, which `logprobs` belong to.
    fn text(
        &mut self,
        index: usize,
        text: &str,
        logprobs: Option<ChatLogprobs>,
        out: &mut Vec<u8>,
    ) {
        let Some(choice) = self.choices.get_mut(index) else { return };
        let said = match &self.how.choice {
            ToolChoice::None => vec![Said::Text(text.to_owned())],
            ToolChoice::Auto => choice.reader.push(text),
            ToolChoice::Required => {
                choice.whole.push_str(text);
                Vec::new()
            }
            ToolChoice::Named(_) => {
                if !text.is_empty() {
                    let delta = json!({"index": 0, "function": {"arguments": text}});
                    let delta = Delta { tool_calls: Some(vec![delta]), ..Delta::default() };
                    self.delta(index, delta, out);
                }
                return;
            }
        };
        if let Some(new) = logprobs {
            match &mut choice.held {
                Some(held) => held.extend(new),
                held => *held = Some(new),
            }
        }
        self.say(index, said, out);
    }

    fn say(&mut self, index: usize, said: Vec<Said>, out: &mut Vec<u8>) {
        for one in said {
            match one {
                Said::Call(call) => self.call(index, call, out),
                Said::Text(text) => {
                    let Some(choice) = self.choices.get_mut(index) else { return };
                    let logprobs = choice.held.take();
                    // Between calls and after them there is nothing but space to say.
                    let is_space = choice.n_calls > 0 && text.trim().is_empty();
                    if (text.is_empty() || is_space) && logprobs.is_none() {
                        continue;
                    }
                    let delta = Delta { content: Some(text), ..Delta::default() };
                    let finish_reason = None;
                    let choice =
                        ChunkChoice { index, delta, logprobs, finish_reason, stop_reason: None };
                    self.chunk(choice, out);
                }
            }
        }
    }

    fn finish(&mut self, index: usize, out: &mut Vec<u8>) {
        let Some(choice) = self.choices.get_mut(index) else { return };
        let said = match &self.how.choice {
            ToolChoice::Auto => choice.reader.finish(),
            ToolChoice::Required => {
                let whole = std::mem::take(&mut choice.whole);
                match forced_calls(&whole) {
                    Some(calls) => calls.into_iter().map(Said::Call).collect(),
                    None => vec![Said::Text(whole)],
                }
            }
            ToolChoice::None | ToolChoice::Named(_) => Vec::new(),
        };
        self.say(index, said, out);
    }
}

impl Printer for ChatChunks {
    fn event(&mut self, event: Event, out: &mut Vec<u8>) {
        match event {
            Event::Token { prompt, choice, token, text } => {
                let index = prompt * self.how.n_choices + choice;
                self.begin(index, out);
                self.n_new += 1;
                let auto = self.how.choice == ToolChoice::Auto;
                if auto && token.is_special && self.syntax.is_mark(&token.text) && text.is_empty() {
                    self.text(index, &token.text, None, out);
                }
                let logprobs = self
                    .how
                    .logprobs
                    .map(|n_top| ChatLogprobs::new(std::slice::from_ref(&token), n_top));
                self.text(index, &text, logprobs, out);
            }
            Event::Done { text, completion } => {
                let index = completion.prompt * self.how.n_choices + completion.choice;
                self.begin(index, out);
                self.n_done += completion.ids.len();
                self.text(index, &text, None, out);
                self.finish(index, out);
                let Some(choice) = self.choices.get_mut(index) else { return };
                let is_called = choice.n_calls > 0;
                let finish = match &self.how.choice {
                    ToolChoice::Auto | ToolChoice::Required if is_called => "tool_calls",
                    _ => openai_finish(completion.finish),
                };
                let logprobs = choice.held.take();
                let choice = ChunkChoice {
                    index,
                    delta: Delta::default(),
                    logprobs,
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
            let usage = Usage::new(self.n_prompt, self.n_done);
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
