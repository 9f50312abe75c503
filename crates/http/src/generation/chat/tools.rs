//! Calls of tools in what a model says, in the forms that models were taught.
//!
//! | form | what the model says |
//! | --- | --- |
//! | Hermes, Qwen | `<tool_call>{"name": .., "arguments": {..}}</tool_call>`, any number of them |
//! | Llama 3 | `{"name": .., "parameters": {..}}`, behind `<\|python_tag\|>` or not; several with `;` between |
//! | Mistral | `[TOOL_CALLS][{"name": .., "arguments": {..}}, ..]`, or `[TOOL_CALLS]name{..}` |
//!
//! Text is held back from where a call may begin until it is known whether it does. A call is told
//! when it is whole: half of its arguments is of no use to a client.

use serde_json::{Map, Value};

/// Longest text that is held back for a call.
const MAX_CALL_BYTES: usize = 1 << 20;

/// A form of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ToolSyntax {
    Hermes,
    Llama3,
    Mistral,
}

impl ToolSyntax {
    /// The names that `option.tool_call_parser` takes.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        match name.trim().to_ascii_lowercase().as_str() {
            "hermes" | "qwen" | "qwen2" | "qwen2_5" | "qwen25" | "qwen3" => Some(Self::Hermes),
            "llama3_json" | "llama3" | "llama4_json" => Some(Self::Llama3),
            "mistral" => Some(Self::Mistral),
            _ => None,
        }
    }

    /// The form that a prompt made by the model's own template shows.
    pub(crate) fn of_prompt(prompt: &str) -> Self {
        if prompt.contains("<tool_call>") {
            Self::Hermes
        } else if prompt.contains("[AVAILABLE_TOOLS]") || prompt.contains("[TOOL_CALLS]") {
            Self::Mistral
        } else if prompt.contains("<|start_header_id|>") || prompt.contains("<|python_tag|>") {
            Self::Llama3
        } else {
            Self::Hermes
        }
    }

    /// What a call begins with.
    pub(crate) fn mark(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
            Self::Llama3 => "<|python_tag|>",
            Self::Mistral => "[TOOL_CALLS]",
        }
    }

    /// Whether a token of this text opens a call, although the text of an answer leaves it out.
    pub(crate) fn is_mark(self, token: &str) -> bool {
        self.mark() == token
    }
}

/// A call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ToolCall {
    /// The function.
    pub(crate) name: String,
    /// Its arguments, as JSON.
    pub(crate) arguments: String,
}

/// What a piece of an answer turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// Text.
    Text(String),
    /// A call.
    Call(ToolCall),
}

/// Takes calls out of a text that comes in pieces.
#[derive(Debug)]
pub(crate) struct ToolReader {
    syntax: ToolSyntax,
    /// What is not told yet.
    held: String,
    /// Whether a call has begun.
    in_call: bool,
    /// Whether anything but space was told.
    has_spoken: bool,
    /// Whether the last thing told is a call: the space behind it says nothing.
    is_behind_call: bool,
}

impl ToolReader {
    /// A reader of calls in this form.
    pub(crate) fn new(syntax: ToolSyntax) -> Self {
        Self {
            syntax,
            held: String::new(),
            in_call: false,
            has_spoken: false,
            is_behind_call: false,
        }
    }

    /// Reads the next piece.
    pub(crate) fn push(&mut self, piece: &str) -> Vec<Said> {
        self.held.push_str(piece);
        let mut said = Vec::new();
        while self.step(&mut said) {}
        if self.held.len() > MAX_CALL_BYTES {
            self.in_call = false;
            let text = std::mem::take(&mut self.held);
            self.tell(text, &mut said);
        }
        said
    }

    /// Reads what is left, at the end.
    pub(crate) fn finish(&mut self) -> Vec<Said> {
        let mut said = self.push("");
        let rest = std::mem::take(&mut self.held);
        if rest.is_empty() {
            return said;
        }
        let calls = if self.in_call { self.calls(&rest) } else { None };
        match calls {
            Some(calls) => said.extend(calls.into_iter().map(Said::Call)),
            None => self.tell(rest, &mut said),
        }
        said
    }

    /// One step; whether there may be another.
    fn step(&mut self, said: &mut Vec<Said>) -> bool {
        if self.in_call {
            return self.syntax == ToolSyntax::Hermes && self.close_hermes(said);
        }
        if self.is_behind_call {
            let n_space = self.held.len() - self.held.trim_start().len();
            self.held.drain(..n_space);
            if self.held.is_empty() {
                return false;
            }
            self.is_behind_call = false;
        }
        // Llama 3 may begin a call without a mark, which then is the whole answer.
        if self.syntax == ToolSyntax::Llama3 && !self.has_spoken {
            match self.held.trim_start().chars().next() {
                None => return false,
                Some('{') => {
                    self.in_call = true;
                    return false;
                }
                Some(_) => {}
            }
        }
        let mark = self.syntax.mark();
        if let Some(at) = self.held.find(mark) {
            let call = self.held.split_off(at);
            let text = std::mem::replace(&mut self.held, call);
            self.tell(text, said);
            self.in_call = true;
            return true;
        }
        let kept = kept_bytes(&self.held, mark);
        let call = self.held.split_off(self.held.len() - kept);
        let text = std::mem::replace(&mut self.held, call);
        self.tell(text, said);
        false
    }

    fn close_hermes(&mut self, said: &mut Vec<Said>) -> bool {
        const END: &str = "</tool_call>";
        let Some(at) = self.held.find(END) else { return false };
        let rest = self.held.split_off(at + END.len());
        let whole = std::mem::replace(&mut self.held, rest);
        self.in_call = false;
        match self.calls(whole.get(..at).unwrap_or_default()) {
            Some(calls) => {
                said.extend(calls.into_iter().map(Said::Call));
                self.is_behind_call = true;
            }
            None => self.tell(whole, said),
        }
        true
    }

    fn tell(&mut self, text: String, said: &mut Vec<Said>) {
        if text.is_empty() {
            return;
        }
        self.has_spoken |= !text.trim().is_empty();
        match said.last_mut() {
            Some(Said::Text(before)) => before.push_str(&text),
            _ => said.push(Said::Text(text)),
        }
    }

    /// The calls that `text`, mark included, makes; none if it makes none.
    fn calls(&self, text: &str) -> Option<Vec<ToolCall>> {
        let text = text.trim();
        let body = text.strip_prefix(self.syntax.mark()).unwrap_or(text).trim();
        let calls = match self.syntax {
            ToolSyntax::Hermes => values(body, "")?.iter().map(call).collect::<Option<Vec<_>>>(),
            ToolSyntax::Llama3 => values(body, ";")?.iter().map(call).collect(),
            ToolSyntax::Mistral => mistral(body),
        };
        calls.filter(|calls| !calls.is_empty())
    }
}

/// How many bytes at the end of `text` may be the beginning of `mark`.
fn kept_bytes(text: &str, mark: &str) -> usize {
    (1..mark.len()).rev().find(|n| text.ends_with(mark.get(..*n).unwrap_or("\0"))).unwrap_or(0)
}

/// The JSON values that stand in `text`, `between` them.
fn values(text: &str, between: &str) -> Option<Vec<Value>> {
    let mut values = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        values.push(stream.next()?.ok()?);
        rest = rest.get(stream.byte_offset()..).unwrap_or_default().trim_start();
        rest = rest.strip_prefix(between).unwrap_or(rest).trim_start();
    }
    Some(values)
}

/// `{"name": .., "arguments": ..}`, or `parameters`.
fn call(value: &Value) -> Option<ToolCall> {
    let object = value.as_object()?;
    let name = object.get("name")?.as_str()?.to_owned();
    let arguments = match object.get("arguments").or_else(|| object.get("parameters")) {
        None | Some(Value::Null) => Value::Object(Map::new()).to_string(),
        // Some models write the arguments as text that is JSON.
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    Some(ToolCall { name, arguments })
}

/// A list of calls, or `name{..}` once or more, with `[ARGS]` before the arguments or not.
fn mistral(body: &str) -> Option<Vec<ToolCall>> {
    if body.starts_with(['[', '{']) {
        let found = values(body, "")?;
        let list = match found.into_iter().next()? {
            Value::Array(list) => list,
            one => vec![one],
        };
        return list.iter().map(call).collect();
    }
    body.split("[TOOL_CALLS]")
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| {
            let at = part.find('{')?;
            let (head, arguments) = part.split_at(at);
            let name = head.split(['[', ' ']).next().unwrap_or_default().trim();
            serde_json::from_str::<Value>(arguments).ok()?;
            (!name.is_empty())
                .then(|| ToolCall { name: name.to_owned(), arguments: arguments.trim().to_owned() })
        })
        .collect()
}

/// The calls of an answer that a grammar made a list of calls.
pub(crate) fn forced_calls(text: &str) -> Option<Vec<ToolCall>> {
    match serde_json::from_str::<Value>(text.trim()).ok()? {
        Value::Array(list) => list.iter().map(call).collect(),
        one => Some(vec![call(&one)?]),
    }
}

#[cfg(test)]
mod tests;
