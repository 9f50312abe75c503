//! The reply token by token, in lines or events.
//!
//! The last line carries the whole text. A token that may be its choice's last is held back until
//! it is known, which is no wait where the length or the end token says so.

use drivetrain_host::{Event, HostError, PromptInfo, TokenDetail};
use serde::Serialize;
use utoipa::ToSchema;

use super::document::{Entry, LmiDetails, entries, finish_word, full_text, top_entries};
use super::{Dialect, LmiRequest};
use crate::failure::{ApiError, openai};
use crate::generation::stream::{Framing, Printer};

/// A line of a stream.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LmiLine {
    /// Which choice; LMI's asynchronous service only.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    /// The token.
    #[schema(value_type = Object)]
    token: Entry,
    /// The whole text, in the last line.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    generated_text: Option<Option<String>>,
    /// In the last line, where it was asked for or the answer broke off.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<LmiDetails>)]
    details: Option<Option<LmiDetails>>,
}

#[derive(Serialize)]
struct ErrorLine {
    error: serde_json::Value,
}

/// Writes lines.
pub(crate) struct LmiLines {
    request: LmiRequest,
    dialect: Dialect,
    framing: Framing,
    prompt: PromptInfo,
    prompt_tokens: Vec<TokenDetail>,
    text: String,
    tokens: Vec<TokenDetail>,
    held: Option<(TokenDetail, String)>,
    n_tokens: u64,
    holds_all: bool,
}

impl LmiLines {
    /// Lines for the answer to `prompt`; the model takes `max_positions` tokens.
    pub(crate) fn new(
        request: LmiRequest,
        dialect: Dialect,
        framing: Framing,
        prompt: PromptInfo,
        max_positions: u64,
    ) -> Self {
        let room = (max_positions + 1).saturating_sub(prompt.ids.len() as u64);
        let request = LmiRequest { max_new: request.max_new.min(room.max(1)), ..request };
        Self {
            holds_all: request.may_stop_anywhere(),
            request,
            dialect,
            framing,
            prompt,
            prompt_tokens: Vec::new(),
            text: String::new(),
            tokens: Vec::new(),
            held: None,
            n_tokens: 0,
        }
    }

    fn line(&self, token: Entry, out: &mut Vec<u8>) {
        let is_async = self.dialect == Dialect::Async;
        let line = LmiLine {
            index: is_async.then_some(0),
            token,
            generated_text: is_async.then_some(None),
            details: is_async.then_some(None),
        };
        self.framing.frame(out, &line);
    }

    fn last(&self, token: Entry, text: String, details: LmiDetails, out: &mut Vec<u8>) {
        let is_async = self.dialect == Dialect::Async;
        let wanted = self.request.details || token.error.is_some();
        let line = LmiLine {
            index: is_async.then_some(0),
            token,
            generated_text: Some(Some(text)),
            details: match wanted {
                true => Some(Some(details)),
                false => is_async.then_some(None),
            },
        };
        self.framing.frame(out, &line);
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        if let Some((token, text)) = self.held.take() {
            self.line(Entry::new(self.dialect, &token, text), out);
        }
    }

    fn details(&self, finish_reason: &'static str) -> LmiDetails {
        let is_async = self.dialect == Dialect::Async;
        LmiDetails {
            finish_reason,
            generated_tokens: self.n_tokens as usize,
            inputs: (!is_async).then(|| self.prompt.text.clone()),
            input_length: is_async.then_some(self.prompt.ids.len()),
            prefill: self.request.prefill.then(|| entries(self.dialect, &self.prompt_tokens)),
            top_tokens: (self.request.top_n > 0).then(|| top_entries(self.dialect, &self.tokens)),
            ..LmiDetails::default()
        }
    }
}

impl Printer for LmiLines {
    fn event(&mut self, event: Event, out: &mut Vec<u8>) {
        match event {
            Event::Prompt { tokens, .. } => self.prompt_tokens = tokens,
            Event::Token { token, text, .. } => {
                self.flush(out);
                self.text.push_str(&text);
                self.n_tokens += 1;
                if self.request.top_n > 0 {
                    self.tokens.push(token.clone());
                }
                let may_end = token.is_special || self.n_tokens >= self.request.max_new;
                self.held = Some((token, text));
                if !self.holds_all && !may_end {
                    self.flush(out);
                }
            }
            Event::Done { text, completion } => {
                let token = match self.held.take() {
                    Some((token, before)) => {
                        Entry::new(self.dialect, &token, format!("{before}{text}"))
                    }
                    // It ended where nothing said it might.
                    None => {
                        let id = completion.ids.last().copied().unwrap_or_default();
                        let token = completion.tokens.last().cloned().unwrap_or(TokenDetail {
                            id,
                            text: String::new(),
                            bytes: Vec::new(),
                            logprob: Some(0.0),
                            is_special: false,
                            top: Vec::new(),
                        });
                        Entry::new(self.dialect, &token, text)
                    }
                };
                let mut details = self.details(finish_word(completion.finish));
                details.generated_tokens = completion.ids.len();
                details.seed = (self.dialect == Dialect::Async).then_some(completion.seed);
                let whole = full_text(&self.request, &self.prompt, &completion);
                self.last(token, whole, details, out);
            }
            _ => {}
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        self.flush(out);
    }

    fn failed(&mut self, error: HostError, out: &mut Vec<u8>) {
        self.flush(out);
        let error = ApiError::of_task(error);
        if self.dialect == Dialect::Async {
            return self.framing.frame(out, &ErrorLine { error: openai::object(&error) });
        }
        let token = Entry::broken(self.dialect, error.message);
        self.last(token, self.text.clone(), self.details("error"), out);
    }
}
