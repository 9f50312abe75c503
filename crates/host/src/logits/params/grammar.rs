//! What a text has to follow: the fields of vLLM, of OpenAI and of text-generation-inference.

use serde_json::{Map, Value};

use super::Params;
use crate::HostError;
use crate::constraint::Grammar;

/// Most bytes of a regular expression, a grammar or the choices. A schema is as large as the request
/// may be.
const MAX_BYTES: usize = 64 * 1024;

/// Most choices.
const MAX_CHOICES: usize = 1024;

/// One field with its reader.
type Field = (&'static str, fn(&Value) -> Result<Option<Grammar>, String>);

const FIELDS: [Field; 8] = [
    ("guided_json", |value| schema(value).map(Some)),
    ("guided_regex", |value| regex(value).map(Some)),
    ("guided_choice", |value| choice(value).map(Some)),
    ("guided_grammar", |value| lark(value).map(Some)),
    ("guided_json_object", json_object),
    ("grammar", tagged),
    ("response_format", response_format),
    ("structured_outputs", structured),
];

/// The grammar that a request asks for, and the field that says it.
///
/// # Errors
/// `BadRequest` if there are two, or one is not of its form.
pub(super) fn read(params: Params<'_>) -> Result<Option<(Grammar, &'static str)>, HostError> {
    let mut found: Option<(Grammar, &'static str)> = None;
    for (name, reader) in FIELDS {
        let Some(value) = params.get(name) else { continue };
        let grammar = reader(value).map_err(|wanted| params.wrong(name, value, &wanted))?;
        let Some(grammar) = grammar else { continue };
        if let Some((_, first)) = found {
            let (first, second) = (params.shown(first), params.shown(name));
            return Err(HostError::bad_request(format!(
                "{first} and {second}: a text follows one grammar; give one of them"
            )));
        }
        found = Some((grammar, name));
    }
    Ok(found)
}

/// A schema, as an object or as its text.
fn schema(value: &Value) -> Result<Grammar, String> {
    let wanted = "a JSON schema, as an object or as its text";
    match value {
        Value::Object(_) | Value::Bool(_) => Ok(Grammar::JsonSchema(value.clone())),
        Value::String(text) => match serde_json::from_str(text) {
            Ok(schema @ (Value::Object(_) | Value::Bool(_))) => Ok(Grammar::JsonSchema(schema)),
            _ => Err(wanted.to_owned()),
        },
        _ => Err(wanted.to_owned()),
    }
}

fn bounded(value: &Value, what: &str) -> Result<String, String> {
    let text = value.as_str().filter(|text| !text.is_empty() && text.len() <= MAX_BYTES);
    text.map(str::to_owned).ok_or_else(|| format!("{what} of 1 to {MAX_BYTES} bytes"))
}

fn regex(value: &Value) -> Result<Grammar, String> {
    bounded(value, "a regular expression").map(Grammar::Regex)
}

fn lark(value: &Value) -> Result<Grammar, String> {
    bounded(value, "a grammar").map(Grammar::Lark)
}

fn choice(value: &Value) -> Result<Grammar, String> {
    let read = || {
        let list = value.as_array().filter(|list| (1..=MAX_CHOICES).contains(&list.len()))?;
        let mut n_bytes = 0;
        let text = |text: &Value| {
            let text = text.as_str().filter(|text| !text.is_empty())?;
            n_bytes += text.len();
            (n_bytes <= MAX_BYTES).then(|| text.to_owned())
        };
        list.iter().map(text).collect::<Option<_>>().map(Grammar::Choice)
    };
    read().ok_or_else(|| {
        format!("a list of 1 to {MAX_CHOICES} texts, none empty, {MAX_BYTES} bytes in all")
    })
}

fn json_object(value: &Value) -> Result<Option<Grammar>, String> {
    let asked = value.as_bool().ok_or_else(|| "true or false".to_owned())?;
    Ok(asked.then_some(Grammar::JsonObject))
}

/// text-generation-inference's `{"type": ..., "value": ...}`.
fn tagged(value: &Value) -> Result<Option<Grammar>, String> {
    let wanted = || {
        "{\"type\": \"json\", \"value\": a schema} or {\"type\": \"regex\", \"value\": an expression}"
            .to_owned()
    };
    let tag = value.get("type").and_then(Value::as_str).ok_or_else(wanted)?;
    let inner = value.get("value").ok_or_else(wanted)?;
    let grammar = match tag {
        "json" | "json_object" => schema(inner)?,
        "json_schema" => schema(inner.get("schema").ok_or_else(wanted)?)?,
        "regex" => regex(inner)?,
        _ => return Err(wanted()),
    };
    Ok(Some(grammar))
}

/// OpenAI's; text-generation-inference takes its own form under this name too.
fn response_format(value: &Value) -> Result<Option<Grammar>, String> {
    let wanted = || {
        "{\"type\": \"text\"}, {\"type\": \"json_object\"} or {\"type\": \"json_schema\", \
         \"json_schema\": {\"schema\": ...}}"
            .to_owned()
    };
    let tag = value.get("type").and_then(Value::as_str).ok_or_else(wanted)?;
    match (tag, value.get("json_schema")) {
        ("text", _) => Ok(None),
        ("json_schema", Some(inner)) => schema(inner.get("schema").ok_or_else(wanted)?).map(Some),
        _ if value.get("value").is_some() => tagged(value),
        ("json_object", _) => Ok(Some(Grammar::JsonObject)),
        _ => Err(wanted()),
    }
}

/// vLLM's `{"json": ...}`, `{"regex": ...}` and so on, one of them.
fn structured(value: &Value) -> Result<Option<Grammar>, String> {
    let wanted = || "an object with one of json, regex, choice, grammar and json_object".to_owned();
    let object: &Map<String, Value> = value.as_object().ok_or_else(wanted)?;
    let mut grammars = Vec::new();
    for (key, value) in object.iter().filter(|(_, value)| !value.is_null()) {
        let grammar = match key.as_str() {
            "json" => schema(value).map(Some),
            "regex" => regex(value).map(Some),
            "choice" => choice(value).map(Some),
            "grammar" => lark(value).map(Some),
            "json_object" => json_object(value),
            _ => continue,
        };
        grammars.extend(grammar.map_err(|wanted| format!("{key} to be {wanted}"))?);
    }
    match grammars.len() {
        0 | 1 => Ok(grammars.pop()),
        _ => Err(wanted()),
    }
}
