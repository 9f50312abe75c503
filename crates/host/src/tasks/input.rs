//! What a request's inputs are: texts, pairs of texts, objects with the fields of a task.

use serde_json::{Map, Value};

use crate::HostError;

/// One input of a request.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Input {
    /// A text.
    Text(String),
    /// Tokens of a text, special ones included: for sentence embeddings.
    Tokens(Vec<u32>),
    /// An object with the fields of the task: `question` and `context`, `text` and `text_pair`, ..
    Object(Map<String, Value>),
    /// A text that is cut into words already: for token classification.
    Words(Vec<String>),
}

impl Input {
    /// Bytes of text that it holds.
    pub fn n_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Tokens(ids) => ids.len().saturating_mul(4),
            Self::Words(words) => words.iter().map(String::len).sum(),
            Self::Object(map) => map.values().map(n_bytes).sum(),
        }
    }

    fn shown(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Tokens(_) => "a list of token ids",
            Self::Object(_) => "an object",
            Self::Words(_) => "a list of words",
        }
    }
}

impl From<String> for Input {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Input {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

fn n_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(n_bytes).sum(),
        Value::Object(map) => map.values().map(n_bytes).sum(),
        _ => 8,
    }
}

/// The text that `input`, called `place`, has to be.
///
/// # Errors
/// `BadRequest`: it is something else.
pub(super) fn text_of<'a>(place: &str, input: &'a Input) -> Result<&'a str, HostError> {
    match input {
        Input::Text(text) => Ok(text),
        other => Err(HostError::bad_request(format!(
            "{place} is {}: this task takes a string",
            other.shown()
        ))),
    }
}

/// A text, or a text with its pair: a string, or an object with `text` and perhaps `text_pair`.
///
/// # Errors
/// `BadRequest` that names the field.
pub(super) fn pair_of<'a>(
    place: &str,
    input: &'a Input,
) -> Result<(&'a str, Option<&'a str>), HostError> {
    let Input::Object(map) = input else { return Ok((text_of(place, input)?, None)) };
    let known = ["text", "text_pair"];
    if let Some(other) = map.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(HostError::bad_request(format!(
            "{place} has the key {other:?}: expected a string, or an object with text and \
             text_pair"
        )));
    }
    let pair = match map.get("text_pair") {
        None | Some(Value::Null) => None,
        Some(_) => Some(field(place, map, "text_pair")?),
    };
    Ok((field(place, map, "text")?, pair))
}

/// A text that an object has to have.
///
/// # Errors
/// `BadRequest` that names the field.
pub(super) fn field<'a>(
    place: &str,
    map: &'a Map<String, Value>,
    name: &str,
) -> Result<&'a str, HostError> {
    match map.get(name) {
        Some(Value::String(text)) => Ok(text),
        None => Err(HostError::bad_request(format!("{place} has no key {name:?}: give a string"))),
        Some(other) => {
            let other: String = other.to_string().chars().take(60).collect();
            Err(HostError::bad_request(format!("{place}.{name}={other}: expected a string")))
        }
    }
}
