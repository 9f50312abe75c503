//! What is a call and what is text, however the pieces fall.

use super::*;

fn text(text: &str) -> Said {
    Said::Text(text.to_owned())
}

fn call_of(name: &str, arguments: &str) -> Said {
    Said::Call(ToolCall { name: name.to_owned(), arguments: arguments.to_owned() })
}

/// Joins texts that follow each other.
fn joined(said: Vec<Said>) -> Vec<Said> {
    let mut all: Vec<Said> = Vec::new();
    for one in said {
        match (all.last_mut(), one) {
            (Some(Said::Text(before)), Said::Text(after)) => before.push_str(&after),
            (_, one) => all.push(one),
        }
    }
    all
}

/// Reads `answer` whole and in pieces of every small size; all must agree.
fn check(syntax: ToolSyntax, answer: &str, expect: &[Said]) {
    let chars: Vec<char> = answer.chars().collect();
    for size in [chars.len().max(1), 1, 2, 3, 7] {
        let mut reader = ToolReader::new(syntax);
        let mut said = Vec::new();
        for piece in chars.chunks(size) {
            said.extend(reader.push(&piece.iter().collect::<String>()));
        }
        said.extend(reader.finish());
        assert_eq!(joined(said), expect, "{answer:?} in pieces of {size}");
    }
}

#[test]
fn hermes_calls_stand_in_tags() {
    use ToolSyntax::Hermes;
    check(Hermes, "just text < that", &[text("just text < that")]);
    check(Hermes, "a <tool", &[text("a <tool")]);
    check(
        Hermes,
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\": 1, \"a\": [\"x\"]}}\n</tool_call>",
        &[call_of("f", r#"{"b":1,"a":["x"]}"#)],
    );
    check(
        Hermes,
        "Let me see.\n<tool_call>{\"name\":\"f\"}</tool_call>\n<tool_call>{\"name\":\"g\",\
         \"arguments\":{}}</tool_call>",
        &[text("Let me see.\n"), call_of("f", "{}"), call_of("g", "{}")],
    );
    // The end token came before the tag was closed.
    check(
        Hermes,
        "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":1}}",
        &[call_of("f", r#"{"a":1}"#)],
    );
    let broken = "<tool_call>{\"name\": </tool_call> so";
    check(Hermes, broken, &[text(broken)]);
}

#[test]
fn llama_calls_are_the_whole_answer_or_follow_a_tag() {
    use ToolSyntax::Llama3;
    check(
        Llama3,
        "{\"name\": \"f\", \"parameters\": {\"a\": \"{;}\"}}",
        &[call_of("f", r#"{"a":"{;}"}"#)],
    );
    check(
        Llama3,
        "<|python_tag|>{\"name\": \"f\", \"parameters\": {}}; {\"name\": \"g\"}",
        &[call_of("f", "{}"), call_of("g", "{}")],
    );
    check(Llama3, "{\"a\": 1}", &[text("{\"a\": 1}")]);
    check(Llama3, "use {braces}", &[text("use {braces}")]);
    check(Llama3, "{not json", &[text("{not json")]);
}

#[test]
fn mistral_calls_are_a_list_or_names_with_arguments() {
    use ToolSyntax::Mistral;
    check(
        Mistral,
        "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": 1}}, {\"name\": \"g\"}]",
        &[call_of("f", r#"{"a":1}"#), call_of("g", "{}")],
    );
    check(
        Mistral,
        "Well. [TOOL_CALLS]f{\"a\": 1}[TOOL_CALLS]g[ARGS]{}",
        &[text("Well. "), call_of("f", "{\"a\": 1}"), call_of("g", "{}")],
    );
    check(Mistral, "[TOOL", &[text("[TOOL")]);
    check(Mistral, "[TOOL_CALLS]nothing", &[text("[TOOL_CALLS]nothing")]);
}

#[test]
fn the_form_is_named_or_found() {
    assert_eq!(ToolSyntax::of_name(" Hermes"), Some(ToolSyntax::Hermes));
    assert_eq!(ToolSyntax::of_name("llama3_json"), Some(ToolSyntax::Llama3));
    assert_eq!(ToolSyntax::of_name("pythonic"), None);
    assert_eq!(ToolSyntax::of_prompt("within <tool_call></tool_call> tags"), ToolSyntax::Hermes);
    assert_eq!(ToolSyntax::of_prompt("[AVAILABLE_TOOLS][]"), ToolSyntax::Mistral);
    assert_eq!(ToolSyntax::of_prompt("<|start_header_id|>user"), ToolSyntax::Llama3);
}

#[test]
fn forced_calls_are_json() {
    let calls = forced_calls(r#"[{"name": "f", "parameters": {"a": 1}}]"#).unwrap();
    assert_eq!(calls, [ToolCall { name: "f".to_owned(), arguments: r#"{"a":1}"#.to_owned() }]);
    assert_eq!(forced_calls("[1]"), None);
    assert_eq!(forced_calls("["), None);
}
