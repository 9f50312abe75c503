//! The reply as one document.

use drivetrain_host::{Completion, FinishReason, PromptInfo, TokenDetail, TopToken};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::Value;
use utoipa::ToSchema;

use super::{Dialect, LmiRequest};
use crate::generation::numbers::finite;
use crate::generation::running::Whole;

/// The answer to one prompt.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LmiReply {
    /// The new text, behind the prompt's where that was asked for.
    pub(crate) generated_text: String,
    /// What was asked for with `details`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) details: Option<LmiDetails>,
}

/// More about an answer.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct LmiDetails {
    /// `length`, `eos_token` or `stop_sequence`.
    pub(crate) finish_reason: &'static str,
    /// New tokens.
    pub(crate) generated_tokens: usize,
    /// The prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) inputs: Option<String>,
    /// What sampling followed from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seed: Option<Option<u64>>,
    /// Tokens of the prompt; of the last line of a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) input_length: Option<usize>,
    /// The prompt's tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<Object>)]
    pub(crate) prefill: Option<Vec<Entry>>,
    /// The new tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<Object>)]
    pub(crate) tokens: Option<Vec<Entry>>,
    /// The likeliest tokens at each place.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<Vec<Object>>)]
    pub(crate) top_tokens: Option<Vec<Vec<Entry>>>,
    /// The other choices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) best_of_sequences: Option<Vec<LmiSequence>>,
}

/// Another choice.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LmiSequence {
    generated_text: String,
    finish_reason: &'static str,
    generated_tokens: usize,
    #[schema(value_type = Vec<Object>)]
    tokens: Vec<Entry>,
}

/// A token: `{"id", "text", "log_prob"}`, and `special_token` where it is one.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    dialect: Dialect,
    pub(crate) id: i64,
    pub(crate) text: String,
    pub(crate) logprob: Option<f32>,
    pub(crate) is_special: bool,
    /// Why there is no more, in the last line of an answer that broke off.
    pub(crate) error: Option<String>,
}

impl Entry {
    /// A token whose text stands in the answer as `text`.
    pub(crate) fn new(dialect: Dialect, token: &TokenDetail, text: String) -> Self {
        Self {
            dialect,
            id: i64::from(token.id),
            text,
            logprob: token.logprob,
            is_special: token.is_special,
            error: None,
        }
    }

    /// What stands for a token where the answer broke off.
    pub(crate) fn broken(dialect: Dialect, error: String) -> Self {
        let (text, logprob) = (String::new(), Some(0.0));
        Self { dialect, id: -1, text, logprob, is_special: false, error: Some(error) }
    }

    fn top(dialect: Dialect, token: &TopToken) -> Self {
        Self {
            dialect,
            id: i64::from(token.id),
            text: token.text.clone(),
            logprob: Some(token.logprob),
            is_special: false,
            error: None,
        }
    }
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("id", &self.id)?;
        map.serialize_entry("text", &self.text)?;
        map.serialize_entry(self.dialect.logprob_key(), &self.logprob.map(finite))?;
        if self.is_special {
            map.serialize_entry(self.dialect.special_key(), &true)?;
        }
        if let Some(error) = &self.error {
            map.serialize_entry("error_msg", error)?;
        }
        map.end()
    }
}

/// The word for why a choice ended. A text that the server's end cut short has come to a limit.
pub(super) fn finish_word(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Shutdown => FinishReason::Length.name(),
        other => other.name(),
    }
}

/// A list of tokens as details show them.
pub(super) fn entries(dialect: Dialect, tokens: &[TokenDetail]) -> Vec<Entry> {
    tokens.iter().map(|token| Entry::new(dialect, token, token.text.clone())).collect()
}

/// The likeliest tokens at each place.
pub(super) fn top_entries(dialect: Dialect, tokens: &[TokenDetail]) -> Vec<Vec<Entry>> {
    let place = |token: &TokenDetail| token.top.iter().map(|t| Entry::top(dialect, t)).collect();
    tokens.iter().map(place).collect()
}

/// The prompt, if the reply repeats it, and the new text.
pub(super) fn full_text(request: &LmiRequest, prompt: &PromptInfo, done: &Completion) -> String {
    let wanted = request.parameters.get("return_full_text") == Some(&Value::Bool(true));
    match &done.full_text {
        Some(text) if wanted => text.clone(),
        _ if wanted => format!("{}{}", prompt.text, done.text),
        _ => done.text.clone(),
    }
}

/// The replies, one a prompt.
pub(crate) fn document(request: &LmiRequest, dialect: Dialect, whole: &Whole) -> Vec<LmiReply> {
    let prompts = whole.prompts.iter().enumerate();
    prompts
        .filter_map(|(idx, prompt)| {
            let of = whole.completions.iter().filter(|done| done.prompt == idx);
            let choices: Vec<&Completion> = of.collect();
            let first = choices.first()?;
            let mut reply =
                LmiReply { generated_text: full_text(request, prompt, first), details: None };
            if request.details {
                let mut details = details(request, dialect, prompt, &choices)?;
                let tokens = whole.prompt_tokens.get(idx).map_or(&[][..], Vec::as_slice);
                let is_listed = dialect == Dialect::Async || request.prefill;
                details.prefill = is_listed.then(|| entries(dialect, tokens));
                reply.details = Some(details);
            }
            Some(reply)
        })
        .collect()
}

fn details(
    request: &LmiRequest,
    dialect: Dialect,
    prompt: &PromptInfo,
    choices: &[&Completion],
) -> Option<LmiDetails> {
    let (first, others) = choices.split_first()?;
    let is_async = dialect == Dialect::Async;
    let sequences = others.iter().map(|done| LmiSequence {
        generated_text: full_text(request, prompt, done),
        finish_reason: finish_word(done.finish),
        generated_tokens: done.ids.len(),
        tokens: entries(dialect, &done.tokens),
    });
    Some(LmiDetails {
        finish_reason: finish_word(first.finish),
        generated_tokens: first.ids.len(),
        inputs: (!is_async).then(|| prompt.text.clone()),
        seed: is_async.then_some(first.seed),
        tokens: Some(entries(dialect, &first.tokens)),
        top_tokens: (request.top_n > 0).then(|| top_entries(dialect, &first.tokens)),
        best_of_sequences: (!others.is_empty()).then(|| sequences.collect()),
        ..LmiDetails::default()
    })
}
