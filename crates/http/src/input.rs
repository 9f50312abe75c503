//! From a request's body to what a native task takes: texts and parameters.

use std::fmt;

use bytes::Bytes;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::bounded::{BoundedObject, Budget};
use crate::content_type::{BodyFormat, ContentType, decode_utf8};
use crate::failure::ApiError;
use crate::fields::quoted;

/// Most texts in one request.
pub(crate) const MAX_INPUTS: usize = 1 << 16;
/// Most values, nested ones included, in a request's `parameters`.
const MAX_PARAMETER_VALUES: usize = 1 << 14;
/// What a native task reads, for messages.
const READABLE: &str = "text/plain, application/json, text/csv, application/x-www-form-urlencoded \
                        or multipart/form-data";

/// How much a features reply nests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplyShape {
    /// `[1][n_tokens][dim]`: what the answer to a plain text is.
    Single,
    /// A list with one such array for each input.
    List,
}

/// A decoded body.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TaskInput {
    /// The texts; at least one.
    pub(crate) inputs: Vec<String>,
    /// The keyword arguments of the task.
    pub(crate) parameters: Map<String, Value>,
    /// How the reply nests.
    pub(crate) shape: ReplyShape,
}

impl TaskInput {
    fn list(inputs: Vec<String>, parameters: Map<String, Value>) -> Result<Self, ApiError> {
        if inputs.is_empty() {
            return Err(ApiError::untranslatable(
                "the list of inputs is empty: give at least one text",
            ));
        }
        Ok(Self { inputs, parameters, shape: ReplyShape::List })
    }
}

/// Reads a body that is not a form.
///
/// # Errors
/// A body that is empty, not what its content type says, or holds no texts; the message says what
/// and where.
pub(crate) fn decode_body(content_type: &ContentType, body: &[u8]) -> Result<TaskInput, ApiError> {
    if body.is_empty() {
        return Err(ApiError::untranslatable(
            "the request body is empty: send the text as text/plain, or {\"inputs\": \"text\"} as \
             application/json",
        ));
    }
    match content_type.format {
        BodyFormat::Json => decode_json(&content_type.decode(body)?),
        BodyFormat::Text => Ok(TaskInput {
            inputs: vec![content_type.decode(body)?.into_owned()],
            parameters: Map::new(),
            shape: ReplyShape::Single,
        }),
        BodyFormat::Csv => decode_csv(&content_type.decode(body)?),
        BodyFormat::Form | BodyFormat::Multipart | BodyFormat::Binary => {
            Err(ApiError::untranslatable(format!(
                "content-type {:?} is not text, and this model's task reads text: send {READABLE}",
                content_type.text
            )))
        }
    }
}

/// Reads a form: every field `inputs`, else `data`, else the first field that has a value. A field
/// `parameters` is a JSON object.
///
/// # Errors
/// A form without a text, or a field that is not UTF-8 or not JSON.
pub(crate) fn decode_fields(fields: &[(String, Bytes)]) -> Result<TaskInput, ApiError> {
    if fields.is_empty() {
        return Err(ApiError::untranslatable(
            "the form has no fields: send the text in a field named inputs",
        ));
    }
    let text = |name: &str, value: &[u8]| -> Result<String, ApiError> {
        decode_utf8(value).map(str::to_owned).map_err(|error| {
            ApiError::untranslatable(format!("form field {}: {}", quoted(name), error.message))
        })
    };
    let mut parameters = Map::new();
    if let Some((name, value)) = fields.iter().find(|(name, _)| name == "parameters") {
        let mut json = serde_json::Deserializer::from_slice(value);
        parameters = BoundedObject(Budget::new("parameters", MAX_PARAMETER_VALUES))
            .deserialize(&mut json)
            .and_then(|parameters| json.end().map(|()| parameters))
            .map_err(|error| {
                ApiError::untranslatable(format!("form field {name:?} is not json: {error}"))
            })?;
    }
    for wanted in ["inputs", "data"] {
        let inputs = fields
            .iter()
            .filter(|(name, _)| name == wanted)
            .map(|(name, value)| text(name, value))
            .collect::<Result<Vec<_>, _>>()?;
        if !inputs.is_empty() {
            return TaskInput::list(inputs, parameters);
        }
    }
    // `curl -d` says that JSON and plain text are a form: its text ends up as a field's name.
    if let Some((name, _)) = fields.first()
        && name.trim_start().starts_with(['{', '[', '"'])
    {
        return Err(ApiError::untranslatable(
            "content-type says a form, but the body looks like json: send it with the header \
             content-type: application/json",
        ));
    }
    let reserved = ["parameters", "model_name", "model_version"];
    let first =
        fields.iter().find(|(name, value)| !value.is_empty() && !reserved.contains(&name.as_str()));
    match first {
        Some((name, value)) => TaskInput::list(vec![text(name, value)?], parameters),
        None => Err(ApiError::untranslatable(format!(
            "the form has no text: its fields are {}; send the text in a field named inputs, or \
             with the header content-type: text/plain",
            fields.iter().map(|(name, _)| quoted(name)).take(8).collect::<Vec<_>>().join(", ")
        ))),
    }
}

fn decode_json(text: &str) -> Result<TaskInput, ApiError> {
    let mut json = serde_json::Deserializer::from_str(text);
    let document = json
        .deserialize_any(DocumentVisitor)
        .and_then(|document| json.end().map(|()| document))
        .map_err(|error| {
            use serde_json::error::Category;
            ApiError::untranslatable(match error.classify() {
                Category::Data => format!("body: {error}"),
                _ => format!(
                    "body is not json: {error}: send json, or plain text with the header \
                     content-type: text/plain"
                ),
            })
        })?;
    match document.inputs {
        Some(inputs) => TaskInput::list(inputs, document.parameters),
        None => Err(ApiError::untranslatable(format!(
            "body has no key \"inputs\": found {}; send {{\"inputs\": \"text\" or [\"text\", ..], \
             \"parameters\": {{..}}}}",
            if document.keys.is_empty() {
                "no keys".to_owned()
            } else {
                format!("keys {}", document.keys.join(", "))
            }
        ))),
    }
}

fn decode_csv(text: &str) -> Result<TaskInput, ApiError> {
    let mut reader = csv::ReaderBuilder::new().from_reader(text.as_bytes());
    let headers = reader
        .headers()
        .map_err(|error| ApiError::untranslatable(format!("body is not csv: {error}")))?;
    let Some(column) = headers.iter().position(|name| name.trim() == "inputs") else {
        let found: Vec<String> = headers.iter().take(8).map(quoted).collect();
        return Err(ApiError::untranslatable(format!(
            "csv header has no column \"inputs\": found {}; the first row names the columns",
            found.join(", ")
        )));
    };
    let mut inputs = Vec::new();
    for record in reader.records() {
        let record = record
            .map_err(|error| ApiError::untranslatable(format!("body is not csv: {error}")))?;
        if inputs.len() == MAX_INPUTS {
            return Err(ApiError::untranslatable(format!(
                "body has more than {MAX_INPUTS} inputs: send fewer in a request"
            )));
        }
        inputs.push(record.get(column).unwrap_or_default().to_owned());
    }
    TaskInput::list(inputs, Map::new())
}

/// What a JSON body holds. A text or a list of texts stands for `inputs`.
#[derive(Default)]
struct Document {
    inputs: Option<Vec<String>>,
    parameters: Map<String, Value>,
    /// Other keys, the first few, for the message when `inputs` is missing.
    keys: Vec<String>,
}

struct DocumentVisitor;

impl<'de> Visitor<'de> for DocumentVisitor {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the key \"inputs\", a string or a list of strings")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Document, E> {
        Ok(Document { inputs: Some(vec![text.to_owned()]), ..Document::default() })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Document, A::Error> {
        Ok(Document { inputs: Some(Inputs.visit_seq(seq)?), ..Document::default() })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
        let mut document = Document::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "inputs" => document.inputs = Some(map.next_value_seed(Inputs)?),
                "parameters" => {
                    document.parameters = map.next_value_seed(BoundedObject(Budget::new(
                        "parameters",
                        MAX_PARAMETER_VALUES,
                    )))?;
                }
                _ => {
                    if document.keys.len() < 8 {
                        document.keys.push(quoted(&key));
                    }
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(document)
    }
}

/// A text or a list of texts.
struct Inputs;

impl<'de> DeserializeSeed<'de> for Inputs {
    type Value = Vec<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<String>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Inputs {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"inputs\" to be a string or a list of strings")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<String>, E> {
        Ok(vec![text.to_owned()])
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Vec<String>, E> {
        Ok(vec![text])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<String>, A::Error> {
        let mut inputs = Vec::new();
        while let Some(text) = seq.next_element_seed(InputText)? {
            if inputs.len() == MAX_INPUTS {
                return Err(de::Error::custom(format_args!(
                    "\"inputs\" has more than {MAX_INPUTS} texts: send fewer in a request"
                )));
            }
            inputs.push(text);
        }
        Ok(inputs)
    }
}

struct InputText;

impl<'de> DeserializeSeed<'de> for InputText {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for InputText {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("each of the inputs to be a string")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<String, E> {
        Ok(text)
    }
}

#[cfg(test)]
mod tests;
