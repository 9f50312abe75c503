//! A request's fields as a table: what each may hold, where it goes, and its line in the OpenAPI
//! document. Validation and documentation are read off the same rows.

use drivetrain_host::Naming;
use serde_json::{Map, Value};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{
    AnyOfBuilder, Array, Object, ObjectBuilder, Schema, SchemaType, Type,
};

/// Most characters of a value that a message repeats.
const MAX_SHOWN_CHARS: usize = 60;
/// Most bytes of one stop string.
const MAX_STOP_BYTES: usize = 4096;

/// A field of an object.
#[derive(Debug)]
pub(crate) struct Field {
    /// The client's name.
    pub(crate) name: &'static str,
    /// What it may hold; null stands for its absence.
    pub(crate) kind: Kind,
    /// Who reads it.
    pub(crate) to: To,
    /// What it means, for the OpenAPI document.
    pub(crate) doc: &'static str,
}

/// What a field may hold.
#[derive(Debug)]
pub(crate) enum Kind {
    /// `true` or `false`.
    Flag,
    /// A whole number between two, both included.
    Whole(i64, i64),
    /// A number between two, both included.
    Number(f64, f64),
    /// A text.
    Text,
    /// A text that is not empty, or a list of at most so many.
    Stops(usize),
    /// An object.
    Object,
    /// A list of at most so many entries.
    List(usize),
    /// Whatever its reader makes of it.
    Any,
}

/// Who reads a field.
#[derive(Debug)]
pub(crate) enum To {
    /// The host, under this name.
    Host(&'static str),
    /// The protocol.
    Here,
    /// Nobody: it is accepted because clients send it, and means nothing here.
    Nobody,
}

/// What is wrong with a request, in words that name the field and what it may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invalid {
    /// The field.
    pub(crate) field: String,
    /// The whole message.
    pub(crate) message: String,
}

impl Invalid {
    /// `field`: what is wrong.
    pub(crate) fn new(field: impl Into<String>, what: impl std::fmt::Display) -> Self {
        let field = field.into();
        let message = format!("{field}: {what}");
        Self { field, message }
    }

    /// `field=value: expected ..`.
    pub(crate) fn value(field: impl Into<String>, value: &Value, wanted: &str) -> Self {
        let field = field.into();
        let message = format!("{field}={}: expected {wanted}", shown(value));
        Self { field, message }
    }
}

/// A request's fields, sorted by who reads them.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    /// For the host, by its names.
    pub(crate) host: Map<String, Value>,
    /// For the protocol, by the client's.
    pub(crate) here: Map<String, Value>,
}

impl Fields {
    /// Whether a flag is set.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.here.get(name).and_then(Value::as_bool).unwrap_or(false)
    }

    /// A whole number that is not negative.
    pub(crate) fn whole(&self, name: &str) -> Option<u64> {
        self.here.get(name).and_then(Value::as_u64)
    }

    /// A text.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.here.get(name).and_then(Value::as_str)
    }

    /// Takes a value out.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.here.remove(name)
    }
}

/// Sorts and checks the fields of `object` by `tables`; a null is no field.
///
/// `prefix` stands before names in messages. A field in no table goes to `unknown`.
///
/// # Errors
/// The first field of a wrong type or out of its range.
pub(crate) fn read(
    object: Map<String, Value>,
    tables: &[&[Field]],
    prefix: &str,
    mut unknown: impl FnMut(&mut Fields, String, Value),
) -> Result<Fields, Invalid> {
    let mut fields = Fields::default();
    for (name, value) in object {
        if value.is_null() {
            continue;
        }
        let Some(field) = tables.iter().flat_map(|t| t.iter()).find(|f| f.name == name) else {
            unknown(&mut fields, name, value);
            continue;
        };
        check(field, &value, prefix)?;
        match field.to {
            To::Host(ours) => drop(fields.host.insert(ours.to_owned(), value)),
            To::Here => drop(fields.here.insert(name, value)),
            To::Nobody => {}
        }
    }
    Ok(fields)
}

/// Says in the log that a field means nothing here.
pub(crate) fn ignore_unknown(_: &mut Fields, name: String, _: Value) {
    tracing::warn!(field = crate::fields::quoted(&name), "the field is not known; ignored");
}

fn check(field: &Field, value: &Value, prefix: &str) -> Result<(), Invalid> {
    let fits = match &field.kind {
        Kind::Flag => value.is_boolean(),
        Kind::Whole(low, high) => whole(value).is_some_and(|n| (*low..=*high).contains(&n)),
        Kind::Number(low, high) => value.as_f64().is_some_and(|n| (*low..=*high).contains(&n)),
        Kind::Text => value.is_string(),
        Kind::Stops(most) => match value {
            Value::Array(list) => list.len() <= *most && list.iter().all(is_stop),
            one => is_stop(one),
        },
        Kind::Object => value.is_object(),
        Kind::List(most) => value.as_array().is_some_and(|list| list.len() <= *most),
        Kind::Any => true,
    };
    if fits {
        return Ok(());
    }
    Err(Invalid::value(format!("{prefix}{}", field.name), value, &wanted(&field.kind)))
}

fn whole(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        let number = value.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 9e15)?;
        Some(number as i64)
    })
}

fn is_stop(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.is_empty() && text.len() <= MAX_STOP_BYTES)
}

fn wanted(kind: &Kind) -> String {
    match kind {
        Kind::Flag => "true or false".to_owned(),
        Kind::Whole(low, i64::MAX) => format!("a whole number, {low} or more"),
        Kind::Whole(low, high) => format!("a whole number from {low} to {high}"),
        Kind::Number(low, high) => format!("a number from {low} to {high}"),
        Kind::Text => "a string".to_owned(),
        Kind::Stops(most) => {
            format!("a string or a list of at most {most}, each of 1 to {MAX_STOP_BYTES} bytes")
        }
        Kind::Object => "an object".to_owned(),
        Kind::List(most) => format!("a list of at most {most} entries"),
        Kind::Any => "another value".to_owned(),
    }
}

/// A value for a message: its first characters, without writing all of a large one.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("[{} entries]", list.len()),
        Value::Object(map) => format!("{{{} keys}}", map.len()),
        Value::String(text) => {
            let cut: String = text.chars().take(MAX_SHOWN_CHARS).collect();
            if cut.len() < text.len() { format!("{cut:?}..") } else { format!("{cut:?}") }
        }
        other => other.to_string(),
    }
}

/// The schema of an object of these fields.
pub(crate) fn object_schema(tables: &[&[Field]], required: &[&str], doc: &str) -> Object {
    let mut object = ObjectBuilder::new().description(Some(doc));
    for field in tables.iter().flat_map(|table| table.iter()) {
        object = object.property(field.name, field_schema(field));
    }
    for name in required {
        object = object.required(*name);
    }
    object.build()
}

fn field_schema(field: &Field) -> RefOr<Schema> {
    let typed = |kind: Type| ObjectBuilder::new().schema_type(kind).description(Some(field.doc));
    let object = match field.kind {
        Kind::Flag => typed(Type::Boolean),
        Kind::Whole(low, high) => {
            let object = typed(Type::Integer).minimum(Some(low as f64));
            if high == i64::MAX { object } else { object.maximum(Some(high as f64)) }
        }
        Kind::Number(low, high) => typed(Type::Number).minimum(Some(low)).maximum(Some(high)),
        Kind::Text => typed(Type::String),
        Kind::Object => typed(Type::Object),
        Kind::Any => {
            ObjectBuilder::new().schema_type(SchemaType::AnyValue).description(Some(field.doc))
        }
        Kind::List(most) => {
            let mut array = Array::new(ObjectBuilder::new().schema_type(SchemaType::AnyValue));
            array.max_items = Some(most);
            array.description = Some(field.doc.to_owned());
            return RefOr::T(Schema::Array(array));
        }
        Kind::Stops(most) => {
            let text = || ObjectBuilder::new().schema_type(Type::String).min_length(Some(1));
            let mut array = Array::new(text());
            array.max_items = Some(most);
            let either = AnyOfBuilder::new().item(text()).item(Schema::Array(array));
            return RefOr::T(Schema::AnyOf(either.description(Some(field.doc)).build()));
        }
    };
    RefOr::T(Schema::Object(object.build()))
}

/// A row that the host reads.
pub(crate) const fn host(
    name: &'static str,
    ours: &'static str,
    kind: Kind,
    doc: &'static str,
) -> Field {
    Field { name, kind, to: To::Host(ours), doc }
}

/// A row that the protocol reads.
pub(crate) const fn here(name: &'static str, kind: Kind, doc: &'static str) -> Field {
    Field { name, kind, to: To::Here, doc }
}

/// A row that nobody reads.
pub(crate) const fn nobody(name: &'static str, doc: &'static str) -> Field {
    Field { name, kind: Kind::Any, to: To::Nobody, doc }
}

/// The names of parameters in OpenAI's requests.
pub(crate) const OPENAI_NAMES: Naming =
    Naming { prefix: "", renamed: &[("max_new_tokens", "max_tokens"), MIN_TOKENS] };

/// What both kinds of completions call the least new tokens.
pub(crate) const MIN_TOKENS: (&str, &str) = ("min_new_tokens", "min_tokens");

/// The parameters that the completions of both kinds share, vLLM's beyond OpenAI's included.
pub(crate) const SAMPLING: &[Field] = &[
    host("temperature", "temperature", Kind::Number(0.0, 2.0), "0 is greedy; 1 unless set."),
    host(
        "top_p",
        "top_p",
        Kind::Number(0.0, 1.0),
        "The share of probability that is sampled from.",
    ),
    host(
        "top_k",
        "top_k",
        Kind::Whole(-1, i64::MAX),
        "The likeliest tokens that are sampled from; 0 or -1 for all.",
    ),
    host(
        "min_p",
        "min_p",
        Kind::Number(0.0, 1.0),
        "Least probability, as a share of the likeliest token's.",
    ),
    host("n", "n", Kind::Whole(1, MAX_CHOICES as i64), "Choices for each prompt."),
    host("stop", "stop", Kind::Stops(MAX_STOPS), "Where to stop; the text is left out."),
    host("stop_token_ids", "stop_token_ids", Kind::List(MAX_STOPS), "Tokens to stop at."),
    host(
        "include_stop_str_in_output",
        "include_stop_str_in_output",
        Kind::Flag,
        "Whether the stop string stays.",
    ),
    host("ignore_eos", "ignore_eos", Kind::Flag, "Whether to go on past the end token."),
    host("seed", "seed", Kind::Whole(i64::MIN, i64::MAX), "What sampling follows from."),
    host(
        "presence_penalty",
        "presence_penalty",
        Kind::Number(-2.0, 2.0),
        "Against tokens that were said.",
    ),
    host(
        "frequency_penalty",
        "frequency_penalty",
        Kind::Number(-2.0, 2.0),
        "Against tokens by how often they were said.",
    ),
    host(
        "repetition_penalty",
        "repetition_penalty",
        Kind::Any,
        "Against tokens of the prompt and the answer; 1 for none.",
    ),
    host("length_penalty", "length_penalty", Kind::Any, "Of beam search."),
    host("early_stopping", "early_stopping", Kind::Any, "Of beam search."),
    host("use_beam_search", "use_beam_search", Kind::Flag, "Whether to search with n beams."),
    host("min_tokens", "min_new_tokens", Kind::Whole(0, i32::MAX as i64), "Least new tokens."),
    host(
        "skip_special_tokens",
        "skip_special_tokens",
        Kind::Flag,
        "Whether the text leaves special tokens out.",
    ),
    host(
        "spaces_between_special_tokens",
        "spaces_between_special_tokens",
        Kind::Flag,
        "As vLLM has it.",
    ),
    host(
        "truncate_prompt_tokens",
        "truncate_prompt_tokens",
        Kind::Whole(-1, i64::MAX),
        "Last tokens of the prompt to keep.",
    ),
    host(
        "add_special_tokens",
        "add_special_tokens",
        Kind::Flag,
        "Whether the tokenizer puts its special tokens around the prompt.",
    ),
    host("bad_words", "bad_words", Kind::Stops(1024), "Words that are not said."),
    host(
        "allowed_token_ids",
        "allowed_token_ids",
        Kind::List(1 << 17),
        "The only tokens that are said.",
    ),
    host("guided_json", "guided_json", Kind::Any, "A JSON schema that the answer follows."),
    host(
        "guided_regex",
        "guided_regex",
        Kind::Text,
        "A regular expression that the answer follows.",
    ),
    host("guided_choice", "guided_choice", Kind::List(4096), "Texts of which the answer is one."),
    host("guided_grammar", "guided_grammar", Kind::Text, "A grammar that the answer follows."),
    host(
        "structured_outputs",
        "structured_outputs",
        Kind::Object,
        "What the answer follows, as vLLM has it.",
    ),
    here("response_format", Kind::Object, "`text`, `json_object`, or `json_schema` with a schema."),
    here("logit_bias", Kind::Object, "Token ids and what is added to their logits, -100 to 100."),
    here("model", Kind::Text, "The model's name."),
    here("stream", Kind::Flag, "Whether the answer comes in pieces."),
    here(
        "stream_options",
        Kind::Object,
        "`include_usage`: whether a last piece counts the tokens.",
    ),
    here("priority", Kind::Whole(-1_000_000, 1_000_000), "Lower ones come first."),
    nobody("user", "Accepted; nobody reads it."),
    nobody("request_id", "Accepted; the header x-request-id counts."),
];

/// Most choices for a prompt.
pub(crate) const MAX_CHOICES: u64 = 128;
/// Most stop strings, and most stop tokens.
pub(crate) const MAX_STOPS: usize = 64;
