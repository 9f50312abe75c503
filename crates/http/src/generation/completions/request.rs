//! A request for text completions.

use drivetrain_host::Prompt;
use serde_json::{Map, Value};

use crate::generation::openai::{StreamOptions, n_choices, settle, stream_options};
use crate::generation::schema::{
    Field, Fields, Invalid, Kind, MAX_CHOICES, SAMPLING, here, host, ignore_unknown, nobody, read,
};

/// New tokens where the request does not say how many.
const DEFAULT_NEW_TOKENS: u64 = 16;
/// Most prompts in one request.
const MAX_PROMPTS: usize = 1024;

/// The fields beside [`SAMPLING`].
pub(crate) const COMPLETION: &[Field] = &[
    here(
        "prompt",
        Kind::Any,
        "A text, a list of texts, a list of token ids, or a list of such lists.",
    ),
    here(
        "max_tokens",
        Kind::Whole(0, i32::MAX as i64),
        "New tokens at most; 16 unless set. 0 with echo reads the prompt only.",
    ),
    host(
        "best_of",
        "best_of",
        Kind::Whole(1, MAX_CHOICES as i64),
        "Choices made, of which the n likeliest are given.",
    ),
    here("echo", Kind::Flag, "Whether the text begins with the prompt."),
    here("logprobs", Kind::Whole(0, 20), "Likeliest tokens to list at each place."),
    host("prompt_logprobs", "prompt_logprobs", Kind::Whole(0, 20), "The same for the prompt."),
    here("suffix", Kind::Any, "Refused: nothing is inserted."),
    nobody("return_tokens_as_token_ids", "Accepted; tokens are shown as text."),
];

/// A request, read.
#[derive(Debug)]
pub(crate) struct CompletionRequest {
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) fields: Fields,
    pub(crate) how: CompletionForm,
    pub(crate) model: Option<String>,
    pub(crate) is_streamed: bool,
}

/// How the answer is written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CompletionForm {
    pub(crate) echo: bool,
    /// Whether only the prompt is wanted: `max_tokens` is 0.
    pub(crate) prompt_only: bool,
    pub(crate) logprobs: Option<u64>,
    pub(crate) n_choices: usize,
    pub(crate) options: StreamOptions,
}

impl CompletionRequest {
    /// Reads the document of a request.
    ///
    /// # Errors
    /// The first field of a wrong type, out of range, or against another.
    pub(crate) fn read(object: Map<String, Value>) -> Result<Self, Invalid> {
        let mut fields = read(object, &[COMPLETION, SAMPLING], "", ignore_unknown)?;
        if fields.text("suffix") != Some("") && fields.here.contains_key("suffix") {
            return Err(Invalid::new(
                "suffix",
                "nothing can be inserted before a text here: leave it out",
            ));
        }
        let prompts = prompts(fields.take("prompt"))?;
        settle(&mut fields)?;
        let options = stream_options(&mut fields)?;
        let how = CompletionForm {
            echo: fields.flag("echo"),
            prompt_only: fields.whole("max_tokens") == Some(0),
            logprobs: fields.whole("logprobs"),
            n_choices: n_choices(&fields),
            options,
        };
        let is_streamed = fields.flag("stream");
        if how.prompt_only && !how.echo {
            let zero = Value::from(0);
            return Err(Invalid::value("max_tokens", &zero, "1 or more, or 0 with echo=true"));
        }
        let best_of = fields.host.get("best_of").and_then(Value::as_u64);
        if is_streamed && best_of.is_some_and(|best_of| best_of > how.n_choices as u64) {
            return Err(Invalid::new(
                "best_of",
                "above n nothing is known before the end: leave it out or do not set stream",
            ));
        }
        let max_new = fields.whole("max_tokens").unwrap_or(DEFAULT_NEW_TOKENS).max(1);
        fields.host.insert("max_new_tokens".to_owned(), max_new.into());
        if let Some(n_top) = how.logprobs {
            fields.host.insert("logprobs".to_owned(), n_top.into());
            if how.echo {
                fields.host.entry("prompt_logprobs".to_owned()).or_insert(n_top.into());
            }
        }
        let model = fields.text("model").map(str::to_owned);
        Ok(Self { prompts, fields, how, model, is_streamed })
    }
}

fn prompts(prompt: Option<Value>) -> Result<Vec<Prompt>, Invalid> {
    const WANTED: &str = "a string, a list of strings, a list of token ids or a list of such lists";
    let list = match prompt {
        Some(Value::String(text)) => return Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(list)) if !list.is_empty() => list,
        Some(other) => return Err(Invalid::value("prompt", &other, WANTED)),
        None => return Err(Invalid::new("prompt", format!("missing: give {WANTED}"))),
    };
    if list.iter().all(Value::is_number) {
        return Ok(vec![Prompt::Tokens(tokens(&list, "prompt")?)]);
    }
    if list.len() > MAX_PROMPTS {
        let what = format!("has {} prompts: give at most {MAX_PROMPTS}", list.len());
        return Err(Invalid::new("prompt", what));
    }
    let is_text = list.first().is_some_and(Value::is_string);
    list.into_iter()
        .enumerate()
        .map(|(idx, value)| {
            let place = format!("prompt[{idx}]");
            match value {
                Value::String(text) if is_text => Ok(Prompt::Text(text)),
                Value::Array(ids) if !is_text => Ok(Prompt::Tokens(tokens(&ids, &place)?)),
                other if is_text => Err(Invalid::value(place, &other, "a string, as the first")),
                other => Err(Invalid::value(place, &other, "a list of token ids")),
            }
        })
        .collect()
}

/// A list of token ids.
pub(crate) fn tokens(list: &[Value], place: &str) -> Result<Vec<u32>, Invalid> {
    if list.is_empty() {
        return Err(Invalid::new(place, "is empty: give at least one token id"));
    }
    let ids = list.iter().enumerate().map(|(idx, value)| {
        value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
            Invalid::value(format!("{place}[{idx}]"), value, "a token id, which is a whole number")
        })
    });
    ids.collect()
}
