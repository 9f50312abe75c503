//! A conversation's messages as templates read them.

use serde_json::{Map, Value};

use crate::HostError;

/// Names that a message's reasoning goes by; templates read the first, some the second.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// The messages with what clients write differently made the same: keys that are null left out,
/// arguments of tool calls as objects, reasoning under each of its names, and contents of several
/// parts as one text, unless the template `takes_parts`.
///
/// # Errors
/// `BadRequest` that names the first message of a wrong form.
pub(super) fn normalised(messages: &[Value], takes_parts: bool) -> Result<Vec<Value>, HostError> {
    if messages.is_empty() {
        return Err(HostError::bad_request("messages is empty: give at least one message"));
    }
    messages
        .iter()
        .enumerate()
        .map(|(idx, message)| Ok(Value::Object(one(idx, message, takes_parts)?)))
        .collect()
}

fn one(idx: usize, message: &Value, takes_parts: bool) -> Result<Map<String, Value>, HostError> {
    let wrong = |what: &str| HostError::bad_request(format!("messages[{idx}]{what}"));
    let Some(message) = message.as_object() else {
        return Err(wrong(": expected an object with role and content"));
    };
    if !message.get("role").is_some_and(Value::is_string) {
        return Err(wrong(".role: expected a string, such as \"user\""));
    }
    let mut kept: Map<String, Value> = message
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    match kept.get_mut("content") {
        None | Some(Value::String(_)) => {}
        Some(content @ Value::Array(_)) => {
            let texts = texts(idx, content)?;
            *content = if takes_parts { as_parts(&texts) } else { texts.join("\n").into() };
        }
        Some(_) => return Err(wrong(".content: expected a string or a list of parts")),
    }
    if let Some(calls) = kept.get_mut("tool_calls") {
        let calls = calls.as_array_mut().ok_or_else(|| wrong(".tool_calls: expected a list"))?;
        calls.iter_mut().for_each(parse_arguments);
    }
    let reasoning = REASONING.iter().find_map(|name| kept.get(*name)).cloned();
    if let Some(reasoning) = reasoning {
        kept.entry("thinking").or_insert_with(|| reasoning.clone());
        kept.insert("reasoning_content".to_owned(), reasoning);
    }
    Ok(kept)
}

/// The texts of a content of several parts.
fn texts(idx: usize, content: &Value) -> Result<Vec<String>, HostError> {
    let parts = content.as_array().map_or(&[][..], Vec::as_slice);
    let mut texts = Vec::with_capacity(parts.len());
    for (part_idx, part) in parts.iter().enumerate() {
        let kind = part.get("type").and_then(Value::as_str);
        let text = match (kind, part) {
            (_, Value::String(text)) => Some(text.as_str()),
            (Some("text" | "input_text" | "output_text") | None, part) => {
                part.get("text").and_then(Value::as_str)
            }
            (Some("refusal"), part) => part.get("refusal").and_then(Value::as_str),
            _ => None,
        };
        texts.push(text.map(str::to_owned).ok_or_else(|| {
            HostError::bad_request(format!(
                "messages[{idx}].content[{part_idx}]: expected {{\"type\": \"text\", \"text\": \
                 \"...\"}}: this server takes text only"
            ))
        })?);
    }
    Ok(texts)
}

fn as_parts(texts: &[String]) -> Value {
    texts.iter().map(|text| serde_json::json!({"type": "text", "text": text})).collect()
}

/// Clients send a call's arguments as JSON in a string; templates expect the object.
fn parse_arguments(call: &mut Value) {
    let Some(function) = call.get_mut("function").and_then(Value::as_object_mut) else { return };
    let Some(Value::String(text)) = function.get("arguments") else { return };
    let parsed = if text.trim().is_empty() {
        Some(Value::Object(Map::new()))
    } else {
        serde_json::from_str(text).ok().filter(|value: &Value| value.is_object())
    };
    if let Some(parsed) = parsed {
        function.insert("arguments".to_owned(), parsed);
    }
}

/// Puts `mark` behind the last message's text, and gives that text.
///
/// # Errors
/// `BadRequest` if it has none.
pub(super) fn mark_last(messages: &mut [Value], mark: &str) -> Result<String, HostError> {
    let content = messages.last_mut().and_then(|message| message.get_mut("content"));
    let text = match content {
        Some(Value::Array(parts)) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")),
        content => content,
    };
    let Some(Value::String(text)) = text else {
        return Err(HostError::bad_request(
            "continue_final_message=true: the last message has no text that could be continued",
        ));
    };
    let last = text.clone();
    text.push_str(mark);
    Ok(last)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn messages_are_made_the_same() {
        let check = |message: Value, takes_parts, expect: Value| {
            assert_eq!(normalised(&[message], takes_parts).unwrap(), [expect]);
        };
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        let message = json!({"role": "user", "content": parts, "name": null});
        check(message.clone(), false, json!({"role": "user", "content": "a\nb"}));
        check(message, true, json!({"role": "user", "content": parts}));
        check(
            json!({"role": "assistant", "content": null, "tool_calls": [
                {"function": {"name": "f", "arguments": "{\"x\": 1}"}},
                {"function": {"name": "g", "arguments": ""}},
                {"function": {"name": "h", "arguments": "no json"}},
            ]}),
            false,
            json!({"role": "assistant", "tool_calls": [
                {"function": {"name": "f", "arguments": {"x": 1}}},
                {"function": {"name": "g", "arguments": {}}},
                {"function": {"name": "h", "arguments": "no json"}},
            ]}),
        );
        check(
            json!({"role": "assistant", "content": "a", "reasoning": "b"}),
            false,
            json!({
                "role": "assistant", "content": "a", "reasoning": "b", "thinking": "b",
                "reasoning_content": "b",
            }),
        );
    }

    #[test]
    fn wrong_messages_are_named() {
        let check = |messages: Value, expect: &str| {
            let error = normalised(messages.as_array().unwrap(), false).unwrap_err();
            assert!(error.to_string().contains(expect), "{error}");
        };
        let user = json!({"role": "user", "content": "a"});
        check(json!([]), "messages is empty");
        check(json!([user, "a"]), "messages[1]: expected an object");
        check(json!([{"content": "a"}]), "messages[0].role");
        check(json!([{"role": "user", "content": 3}]), "messages[0].content: expected a string");
        check(json!([{"role": "user", "tool_calls": {}}]), "messages[0].tool_calls");
        let image = json!([{"type": "image_url", "image_url": {"url": "data:"}}]);
        check(json!([user, {"role": "user", "content": image}]), "messages[1].content[0]");
    }
}
