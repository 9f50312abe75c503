//! Chat completions as OpenAI's objects.

use drivetrain_host::{Completion, TokenDetail};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::request::ToolChoice;
use super::tools::{Said, ToolCall, ToolReader, ToolSyntax, forced_calls};
use crate::generation::completions::stop_reason;
use crate::generation::numbers::finite;
use crate::generation::openai::{Head, StreamOptions, Usage};
use crate::generation::running::{Whole, openai_finish};

/// How the answer is written.
#[derive(Clone, Debug, Default)]
pub(crate) struct ChatForm {
    /// Likeliest tokens to list at each place, where tokens are listed.
    pub(crate) logprobs: Option<u64>,
    pub(crate) n_choices: usize,
    pub(crate) options: StreamOptions,
    /// Whether calls after the first are dropped.
    pub(crate) single_call: bool,
    pub(crate) choice: ToolChoice,
}

/// A chat completion.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatAnswer {
    id: String,
    /// `chat.completion`.
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<ChatChoice>,
    usage: Usage,
}

/// One of the choices.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatChoice {
    index: usize,
    message: ChatMessage,
    logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`.
    finish_reason: &'static str,
    /// The stop string, or the stop token's id, that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    stop_reason: Option<Value>,
}

/// What the model says.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatMessage {
    /// `assistant`.
    role: &'static str,
    /// The text; null where there are calls and no text.
    content: Option<String>,
    /// The calls.
    tool_calls: Vec<WireCall>,
}

/// A call of a tool.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct WireCall {
    /// Which call of the answer; in chunks only.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    id: String,
    /// `function`.
    r#type: &'static str,
    function: WireFunction,
}

/// The function called.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct WireFunction {
    name: String,
    /// JSON.
    arguments: String,
}

impl WireCall {
    /// The call with number `idx` of the choice `choice` of the reply `id`.
    pub(super) fn new(head: &Head, choice: usize, idx: usize, call: ToolCall) -> Self {
        let id = format!("call-{}-{choice}-{idx}", head.id.trim_start_matches("chatcmpl-"));
        let ToolCall { name, arguments } = call;
        Self { index: None, id, r#type: "function", function: WireFunction { name, arguments } }
    }

    /// The same in a chunk.
    pub(super) fn in_chunk(self, idx: usize) -> Self {
        Self { index: Some(idx), ..self }
    }
}

/// The tokens of an answer, and how likely they were.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatLogprobs {
    content: Vec<ChatToken>,
    /// Null: nothing is refused.
    refusal: Option<String>,
}

impl ChatLogprobs {
    /// Of these tokens, with up to `n_top` others at each place.
    pub(super) fn new(tokens: &[TokenDetail], n_top: u64) -> Self {
        let content = tokens.iter().map(|token| ChatToken::new(token, n_top)).collect();
        Self { content, refusal: None }
    }
}

impl ChatLogprobs {
    /// Adds the tokens of `other`.
    pub(super) fn extend(&mut self, other: Self) {
        self.content.extend(other.content);
    }
}

/// A token.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<ChatTop>,
}

/// One of the likeliest tokens at a place.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatTop {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatToken {
    fn new(token: &TokenDetail, n_top: u64) -> Self {
        let top = token.top.iter().take(n_top as usize).map(|other| ChatTop {
            token: other.text.clone(),
            logprob: finite(other.logprob),
            bytes: other.text.as_bytes().to_vec(),
        });
        Self {
            token: token.text.clone(),
            logprob: finite(token.logprob.unwrap_or(f32::NAN)),
            bytes: token.bytes.clone(),
            top_logprobs: top.collect(),
        }
    }
}

/// The whole answer.
pub(crate) fn chat_answer(
    head: &Head,
    how: &ChatForm,
    syntax: ToolSyntax,
    whole: &Whole,
) -> ChatAnswer {
    let choices = whole.completions.iter().map(|done| choice(head, how, syntax, done));
    ChatAnswer {
        id: head.id.clone(),
        object: "chat.completion",
        created: head.created,
        model: head.model.clone(),
        choices: choices.collect(),
        usage: Usage::new(whole.n_prompt_tokens(), whole.n_new_tokens()),
    }
}

fn choice(head: &Head, how: &ChatForm, syntax: ToolSyntax, done: &Completion) -> ChatChoice {
    let index = done.prompt * how.n_choices + done.choice;
    let (content, mut calls) = take_apart(how, syntax, done);
    if how.single_call {
        calls.truncate(1);
    }
    let finish_reason = match &how.choice {
        ToolChoice::Auto | ToolChoice::Required if !calls.is_empty() => "tool_calls",
        _ => openai_finish(done.finish),
    };
    let tool_calls = calls.into_iter().enumerate();
    ChatChoice {
        index,
        message: ChatMessage {
            role: "assistant",
            content,
            tool_calls: tool_calls
                .map(|(idx, call)| WireCall::new(head, index, idx, call))
                .collect(),
        },
        logprobs: how.logprobs.map(|n_top| ChatLogprobs::new(&done.tokens, n_top)),
        finish_reason,
        stop_reason: stop_reason(&done.stop),
    }
}

/// The text and the calls of an answer.
fn take_apart(
    how: &ChatForm,
    syntax: ToolSyntax,
    done: &Completion,
) -> (Option<String>, Vec<ToolCall>) {
    let text = || Some(done.text.clone());
    match &how.choice {
        ToolChoice::None => (text(), Vec::new()),
        ToolChoice::Named(name) => {
            (None, vec![ToolCall { name: name.clone(), arguments: done.text.clone() }])
        }
        ToolChoice::Required => match forced_calls(&done.text) {
            Some(calls) => (None, calls),
            // Cut short by the length.
            None => (text(), Vec::new()),
        },
        ToolChoice::Auto => {
            let mut reader = ToolReader::new(syntax);
            // The text leaves special tokens out, and the mark of a call may be one.
            let is_marked = done.tokens.iter().any(|t| t.is_special && syntax.is_mark(&t.text));
            let mut said = Vec::new();
            if is_marked && !done.text.contains(syntax.mark()) {
                said.extend(reader.push(syntax.mark()));
            }
            said.extend(reader.push(&done.text));
            said.extend(reader.finish());
            let mut content = String::new();
            let mut calls = Vec::new();
            for one in said {
                match one {
                    Said::Text(text) => content.push_str(&text),
                    Said::Call(call) => calls.push(call),
                }
            }
            if calls.is_empty() {
                return (text(), calls);
            }
            let content = content.trim();
            ((!content.is_empty()).then(|| content.to_owned()), calls)
        }
    }
}
