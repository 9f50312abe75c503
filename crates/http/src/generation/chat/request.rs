//! A request for chat completions.

use drivetrain_host::{Chat, Naming};
use serde_json::{Map, Value, json};

use super::print::ChatForm;
use crate::generation::openai::{n_choices, settle, stream_options};
use crate::generation::schema::{
    Field, Fields, Invalid, Kind, MIN_TOKENS, OPENAI_NAMES, SAMPLING, here, host, ignore_unknown,
    nobody, read,
};

/// Most messages of a conversation.
const MAX_MESSAGES: usize = 4096;
/// Most tools.
const MAX_TOOLS: usize = 128;
/// Most parts of a message's content.
const MAX_PARTS: usize = 1024;

/// The fields beside [`SAMPLING`].
pub(crate) const CHAT: &[Field] = &[
    here(
        "messages",
        Kind::List(MAX_MESSAGES),
        "The conversation: objects with `role` and `content`.",
    ),
    here(
        "max_tokens",
        Kind::Whole(1, i32::MAX as i64),
        "New tokens at most; the rest of the context unless set.",
    ),
    here("max_completion_tokens", Kind::Whole(1, i32::MAX as i64), "The same, by its newer name."),
    here("logprobs", Kind::Flag, "Whether tokens are listed with their log-probabilities."),
    here(
        "top_logprobs",
        Kind::Whole(0, 20),
        "Likeliest tokens to list at each place; needs logprobs.",
    ),
    here("tools", Kind::List(MAX_TOOLS), "The functions that the model may call."),
    here("tool_choice", Kind::Any, "`auto`, `none`, `required`, or a function by its name."),
    here(
        "parallel_tool_calls",
        Kind::Flag,
        "Whether an answer may make several calls; true unless set.",
    ),
    here(
        "add_generation_prompt",
        Kind::Flag,
        "Whether the answer's head is put at the end; true unless set.",
    ),
    here("continue_final_message", Kind::Flag, "Whether the last message is continued."),
    here("chat_template_kwargs", Kind::Object, "Further values for the template."),
    here("documents", Kind::List(1024), "Documents for the template."),
    here("chat_template", Kind::Any, "Refused: the operator sets option.chat_template."),
    host("best_of", "best_of", Kind::Whole(1, 128), "As in text completions."),
    host("prompt_logprobs", "prompt_logprobs", Kind::Whole(0, 20), "As in text completions."),
    nobody("metadata", "Accepted; nobody reads it."),
    nobody("store", "Accepted; nothing is stored."),
    nobody("service_tier", "Accepted; there is one."),
    nobody(
        "reasoning_effort",
        "Accepted; templates that know it take it from chat_template_kwargs.",
    ),
];

const COMPLETION_NAMES: Naming =
    Naming { prefix: "", renamed: &[("max_new_tokens", "max_completion_tokens"), MIN_TOKENS] };

/// A request, read.
#[derive(Debug)]
pub(crate) struct ChatRequest {
    pub(crate) chat: Chat,
    pub(crate) fields: Fields,
    pub(crate) naming: Naming,
    pub(crate) how: ChatForm,
    pub(crate) model: Option<String>,
    pub(crate) is_streamed: bool,
}

/// What the model is to do with its tools.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum ToolChoice {
    /// There are none, or they are not to be called.
    #[default]
    None,
    /// The model decides.
    Auto,
    /// At least one call, whose form a grammar holds.
    Required,
    /// A call of this function, whose arguments a grammar holds.
    Named(String),
}

impl ChatRequest {
    /// Reads the document of a request; `keeps_parts` leaves the parts of messages to the template.
    ///
    /// # Errors
    /// The first field of a wrong type, out of range, or against another.
    pub(crate) fn read(object: Map<String, Value>, keeps_parts: bool) -> Result<Self, Invalid> {
        let mut fields = read(object, &[CHAT, SAMPLING], "", ignore_unknown)?;
        if fields.here.contains_key("chat_template") {
            return Err(Invalid::new(
                "chat_template",
                "a template is code, and comes from the operator: leave it out",
            ));
        }
        let messages = messages(fields.take("messages"), keeps_parts)?;
        settle(&mut fields)?;
        let options = stream_options(&mut fields)?;
        let tools = tools(fields.take("tools"))?;
        let choice = tool_choice(fields.take("tool_choice"), &tools)?;
        let naming = lengths(&mut fields)?;
        let top = fields.whole("top_logprobs");
        if top.is_some_and(|n| n > 0) && !fields.flag("logprobs") {
            return Err(Invalid::new("top_logprobs", "only with logprobs=true"));
        }
        let logprobs = fields.flag("logprobs").then_some(top.unwrap_or(0));
        if let Some(n_top) = logprobs {
            fields.host.insert("logprobs".to_owned(), n_top.into());
        }
        force(&mut fields, &tools, &choice)?;
        let how = ChatForm {
            logprobs,
            n_choices: n_choices(&fields),
            options,
            single_call: fields.take("parallel_tool_calls") == Some(Value::Bool(false)),
            choice,
        };
        let chat = conversation(&mut fields, messages, tools, &how.choice)?;
        let model = fields.text("model").map(str::to_owned);
        let is_streamed = fields.flag("stream");
        Ok(Self { chat, fields, naming, how, model, is_streamed })
    }
}

fn conversation(
    fields: &mut Fields,
    messages: Vec<Value>,
    tools: Vec<Value>,
    choice: &ToolChoice,
) -> Result<Chat, Invalid> {
    let mut extra = match fields.take("chat_template_kwargs") {
        Some(Value::Object(extra)) => extra,
        _ => Map::new(),
    };
    if let Some(documents) = fields.take("documents") {
        extra.insert("documents".to_owned(), documents);
    }
    let continues_last = fields.flag("continue_final_message");
    let opens_answer = match fields.take("add_generation_prompt") {
        Some(said) => said == Value::Bool(true),
        None => !continues_last,
    };
    if opens_answer && continues_last {
        return Err(Invalid::new(
            "continue_final_message",
            "true needs add_generation_prompt=false: an answer is continued or begun",
        ));
    }
    let tools = if *choice == ToolChoice::None { Vec::new() } else { tools };
    Ok(Chat { messages, tools, extra, opens_answer, continues_last })
}

/// The limit of new tokens, by either name.
fn lengths(fields: &mut Fields) -> Result<Naming, Invalid> {
    let old = fields.whole("max_tokens");
    let new = fields.whole("max_completion_tokens");
    if let (Some(old), Some(new)) = (old, new)
        && old != new
    {
        return Err(Invalid::new(
            "max_tokens",
            format!("{old} is not max_completion_tokens={new}: give one of them"),
        ));
    }
    if let Some(max_new) = new.or(old) {
        fields.host.insert("max_new_tokens".to_owned(), max_new.into());
    }
    Ok(if new.is_some() { COMPLETION_NAMES } else { OPENAI_NAMES })
}

fn messages(messages: Option<Value>, keeps_parts: bool) -> Result<Vec<Value>, Invalid> {
    let list = match messages {
        Some(Value::Array(list)) if !list.is_empty() => list,
        _ => return Err(Invalid::new("messages", "missing or empty: give at least one message")),
    };
    list.into_iter()
        .enumerate()
        .map(|(idx, message)| {
            let place = format!("messages[{idx}]");
            match message {
                Value::Object(map) => read_message(map, &place, keeps_parts).map(Value::Object),
                other => Err(Invalid::value(place, &other, "an object with role and content")),
            }
        })
        .collect()
}

fn read_message(
    mut message: Map<String, Value>,
    place: &str,
    keeps_parts: bool,
) -> Result<Map<String, Value>, Invalid> {
    let role = match message.get("role") {
        Some(Value::String(role)) if !role.is_empty() => role.clone(),
        Some(other) => {
            return Err(Invalid::value(format!("{place}.role"), other, "a string"));
        }
        None => return Err(Invalid::new(format!("{place}.role"), "missing: give a string")),
    };
    let has_calls = read_calls(&mut message, place)?;
    match message.get("content") {
        Some(Value::String(_)) => {}
        Some(Value::Array(parts)) => {
            let texts = part_texts(parts, place)?;
            if !keeps_parts {
                message.insert("content".to_owned(), texts.join("\n").into());
            }
        }
        None | Some(Value::Null) if has_calls && role == "assistant" => {
            message.insert("content".to_owned(), "".into());
        }
        None | Some(Value::Null) => {
            return Err(Invalid::new(
                format!("{place}.content"),
                "missing: give a string or a list of parts",
            ));
        }
        Some(other) => {
            let wanted = "a string or a list of parts";
            return Err(Invalid::value(format!("{place}.content"), other, wanted));
        }
    }
    Ok(message)
}

fn part_texts<'a>(parts: &'a [Value], place: &str) -> Result<Vec<&'a str>, Invalid> {
    if parts.len() > MAX_PARTS {
        let what = format!("has {} parts: give at most {MAX_PARTS}", parts.len());
        return Err(Invalid::new(format!("{place}.content"), what));
    }
    let parts = parts.iter().enumerate().map(|(idx, part)| {
        let place = format!("{place}.content[{idx}]");
        match (part.get("type").and_then(Value::as_str), part.get("text")) {
            (Some("text"), Some(Value::String(text))) => Ok(text.as_str()),
            (Some("text"), _) => Err(Invalid::new(format!("{place}.text"), "expected a string")),
            (Some(other), _) => Err(Invalid::value(
                format!("{place}.type"),
                &Value::from(other),
                "\"text\": this server reads no images, sounds or files",
            )),
            (None, _) => Err(Invalid::new(format!("{place}.type"), "expected \"text\"")),
        }
    });
    parts.collect()
}

/// Earlier calls: templates want arguments as objects, clients send them as text.
fn read_calls(message: &mut Map<String, Value>, place: &str) -> Result<bool, Invalid> {
    let Some(calls) = message.get_mut("tool_calls").filter(|calls| !calls.is_null()) else {
        message.remove("tool_calls");
        return Ok(false);
    };
    let place = format!("{place}.tool_calls");
    let Value::Array(calls) = calls else {
        return Err(Invalid::value(place, calls, "a list"));
    };
    let n_calls = calls.len();
    for (idx, call) in calls.iter_mut().enumerate() {
        let place = format!("{place}[{idx}].function");
        let Some(Value::Object(function)) = call.get_mut("function") else {
            return Err(Invalid::new(place, "expected an object with name and arguments"));
        };
        if !function.get("name").is_some_and(Value::is_string) {
            return Err(Invalid::new(format!("{place}.name"), "expected a string"));
        }
        match function.get("arguments") {
            Some(Value::String(text)) => {
                let parsed = if text.trim().is_empty() {
                    Ok(json!({}))
                } else {
                    serde_json::from_str::<Value>(text)
                };
                let parsed = parsed.map_err(|error| {
                    Invalid::new(format!("{place}.arguments"), format!("not json: {error}"))
                })?;
                function.insert("arguments".to_owned(), parsed);
            }
            Some(Value::Object(_)) | None => {}
            Some(other) => {
                let wanted = "json as a string";
                return Err(Invalid::value(format!("{place}.arguments"), other, wanted));
            }
        }
    }
    if n_calls == 0 {
        message.remove("tool_calls");
    }
    Ok(n_calls > 0)
}

fn tools(tools: Option<Value>) -> Result<Vec<Value>, Invalid> {
    let Some(Value::Array(tools)) = tools else { return Ok(Vec::new()) };
    for (idx, tool) in tools.iter().enumerate() {
        let place = format!("tools[{idx}]");
        match tool.get("type") {
            Some(Value::String(kind)) if kind == "function" => {}
            Some(other) => {
                return Err(Invalid::value(format!("{place}.type"), other, "\"function\""));
            }
            None => return Err(Invalid::new(format!("{place}.type"), "expected \"function\"")),
        }
        let function = tool.get("function");
        let name = function.and_then(|function| function.get("name")).and_then(Value::as_str);
        if !name.is_some_and(|name| !name.is_empty() && name.len() <= 256) {
            return Err(Invalid::new(
                format!("{place}.function.name"),
                "expected a string of 1 to 256 bytes",
            ));
        }
        if let Some(parameters) = function.and_then(|function| function.get("parameters"))
            && !parameters.is_object()
            && !parameters.is_null()
        {
            let place = format!("{place}.function.parameters");
            return Err(Invalid::value(place, parameters, "a json schema, which is an object"));
        }
    }
    Ok(tools)
}

/// The name of a tool's function.
fn tool_name(tool: &Value) -> Option<&str> {
    tool.get("function")?.get("name")?.as_str()
}

/// The schema of a tool's arguments.
fn tool_parameters(tool: &Value) -> Value {
    let parameters = tool.get("function").and_then(|function| function.get("parameters"));
    parameters.filter(|schema| !schema.is_null()).cloned().unwrap_or(json!({"type": "object"}))
}

fn tool_choice(choice: Option<Value>, tools: &[Value]) -> Result<ToolChoice, Invalid> {
    const WANTED: &str = "\"auto\", \"none\", \"required\" or {\"type\": \"function\", \
                          \"function\": {\"name\": ..}}";
    let needs_tools = |choice| match tools.is_empty() {
        false => Ok(choice),
        true => Err(Invalid::new("tool_choice", "there are no tools to choose from: give tools")),
    };
    match choice {
        None if tools.is_empty() => Ok(ToolChoice::None),
        None => Ok(ToolChoice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "none" => Ok(ToolChoice::None),
            "auto" if tools.is_empty() => Ok(ToolChoice::None),
            "auto" => Ok(ToolChoice::Auto),
            "required" => needs_tools(ToolChoice::Required),
            _ => Err(Invalid::value("tool_choice", &Value::from(word), WANTED)),
        },
        Some(object @ Value::Object(_)) => {
            let Some(name) = tool_name(&object) else {
                return Err(Invalid::new("tool_choice", format!("expected {WANTED}")));
            };
            if !tools.iter().any(|tool| tool_name(tool) == Some(name)) {
                return Err(Invalid::new(
                    "tool_choice.function.name",
                    format!("no tool is called {}", crate::fields::quoted(name)),
                ));
            }
            needs_tools(ToolChoice::Named(name.to_owned()))
        }
        Some(other) => Err(Invalid::value("tool_choice", &other, WANTED)),
    }
}

/// Has a grammar hold the form of calls that must be made.
fn force(fields: &mut Fields, tools: &[Value], choice: &ToolChoice) -> Result<(), Invalid> {
    let schema = match choice {
        ToolChoice::None | ToolChoice::Auto => return Ok(()),
        ToolChoice::Named(name) => tools
            .iter()
            .find(|tool| tool_name(tool) == Some(name))
            .map_or_else(|| json!({"type": "object"}), tool_parameters),
        ToolChoice::Required => {
            let calls: Vec<Value> = tools
                .iter()
                .map(|tool| {
                    json!({
                        "type": "object",
                        "properties": {
                            "name": {"const": tool_name(tool)},
                            "parameters": tool_parameters(tool),
                        },
                        "required": ["name", "parameters"],
                        "additionalProperties": false,
                    })
                })
                .collect();
            json!({"type": "array", "minItems": 1, "items": {"anyOf": calls}})
        }
    };
    const GRAMMARS: [&str; 6] = [
        "response_format",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "structured_outputs",
    ];
    if let Some(other) = GRAMMARS.iter().find(|name| fields.host.contains_key(**name)) {
        return Err(Invalid::new(
            *other,
            "a tool_choice that forces a call says what the answer follows: leave out one of them",
        ));
    }
    fields.host.insert("guided_json".to_owned(), schema);
    Ok(())
}
