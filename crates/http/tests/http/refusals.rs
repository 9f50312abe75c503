//! Bad requests: each is refused with a 4xx that names the field, and the server goes on.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::support::Served;

const JSON: &str = "application/json";

/// Bodies of `/v1/completions`: the fields beside a good prompt, and the field that is named.
const COMPLETIONS: [(&str, &str); 58] = [
    (r#""prompt": 1"#, "prompt"),
    (r#""prompt": null"#, "prompt"),
    (r#""prompt": {}"#, "prompt"),
    (r#""prompt": []"#, "prompt"),
    (r#""prompt": [[]]"#, "prompt[0]"),
    (r#""prompt": ["a", 1]"#, "prompt[1]"),
    (r#""prompt": [1, "a"]"#, "prompt[0]"),
    (r#""prompt": [[1], "a"]"#, "prompt[1]"),
    (r#""prompt": [1, -1]"#, "prompt[1]"),
    (r#""prompt": [1.5]"#, "prompt[0]"),
    (r#""prompt": [4294967296]"#, "prompt[0]"),
    (r#""prompt": [[1, 2], [true]]"#, "prompt[1][0]"),
    (r#""max_tokens": -1"#, "max_tokens"),
    (r#""max_tokens": 0"#, "max_tokens"),
    (r#""max_tokens": 1.5"#, "max_tokens"),
    (r#""max_tokens": "1""#, "max_tokens"),
    (r#""max_tokens": 2147483648"#, "max_tokens"),
    (r#""max_tokens": 1e300"#, "max_tokens"),
    (r#""temperature": -0.1"#, "temperature"),
    (r#""temperature": 2.1"#, "temperature"),
    (r#""temperature": "hot""#, "temperature"),
    (r#""temperature": []"#, "temperature"),
    (r#""top_p": 1.1"#, "top_p"),
    (r#""top_p": -1"#, "top_p"),
    (r#""top_p": true"#, "top_p"),
    (r#""top_k": -2"#, "top_k"),
    (r#""top_k": 1.5"#, "top_k"),
    (r#""min_p": 1.5"#, "min_p"),
    (r#""n": 0"#, "n"),
    (r#""n": 129"#, "n"),
    (r#""n": 1e18"#, "n"),
    (r#""n": "2""#, "n"),
    (r#""best_of": 0"#, "best_of"),
    (r#""best_of": 129"#, "best_of"),
    (r#""n": 3, "best_of": 2"#, "best_of"),
    (r#""best_of": 2, "stream": true"#, "best_of"),
    (r#""stop": """#, "stop"),
    (r#""stop": 1"#, "stop"),
    (r#""stop": [1]"#, "stop"),
    (r#""stop": ["a", ""]"#, "stop"),
    (r#""presence_penalty": 2.5"#, "presence_penalty"),
    (r#""frequency_penalty": -2.5"#, "frequency_penalty"),
    (r#""logprobs": -1"#, "logprobs"),
    (r#""logprobs": 21"#, "logprobs"),
    (r#""logprobs": true"#, "logprobs"),
    (r#""echo": "yes""#, "echo"),
    (r#""stream": 1"#, "stream"),
    (r#""stream_options": {"include_usage": true}"#, "stream_options"),
    (r#""stream": true, "stream_options": {"include_usage": 1}"#, "stream_options.include_usage"),
    (r#""suffix": " end""#, "suffix"),
    (r#""seed": 1.5"#, "seed"),
    (r#""seed": "x""#, "seed"),
    (r#""logit_bias": []"#, "logit_bias"),
    (r#""logit_bias": {"a": 1}"#, "logit_bias[\"a\"]"),
    (r#""logit_bias": {"1": 101}"#, "logit_bias[\"1\"]"),
    (r#""logit_bias": {"1": "x"}"#, "logit_bias[\"1\"]"),
    (r#""response_format": {"type": "xml"}"#, "response_format.type"),
    (r#""guided_regex": 1"#, "guided_regex"),
];

/// The same of `/v1/chat/completions`, beside a good message.
const CHATS: [(&str, &str); 43] = [
    (r#""messages": null"#, "messages"),
    (r#""messages": []"#, "messages"),
    (r#""messages": {}"#, "messages"),
    (r#""messages": "hi""#, "messages"),
    (r#""messages": ["hi"]"#, "messages[0]"),
    (r#""messages": [{}]"#, "messages[0].role"),
    (r#""messages": [{"role": 1, "content": "a"}]"#, "messages[0].role"),
    (r#""messages": [{"role": "", "content": "a"}]"#, "messages[0].role"),
    (r#""messages": [{"role": "user"}]"#, "messages[0].content"),
    (r#""messages": [{"role": "user", "content": null}]"#, "messages[0].content"),
    (r#""messages": [{"role": "user", "content": 1}]"#, "messages[0].content"),
    (r#""messages": [{"role": "user", "content": ["a"]}]"#, "messages[0].content[0].type"),
    (
        r#""messages": [{"role": "user", "content": [{"type": "text"}]}]"#,
        "messages[0].content[0].text",
    ),
    (
        r#""messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]"#,
        "messages[0].content[0].type",
    ),
    (r#""messages": [{"role": "assistant", "tool_calls": 1}]"#, "messages[0].tool_calls"),
    (
        r#""messages": [{"role": "assistant", "tool_calls": [{}]}]"#,
        "messages[0].tool_calls[0].function",
    ),
    (
        r#""messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]"#,
        "messages[0].tool_calls[0].function.name",
    ),
    (
        r#""messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]"#,
        "messages[0].tool_calls[0].function.arguments",
    ),
    (
        r#""messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 1}}]}]"#,
        "messages[0].tool_calls[0].function.arguments",
    ),
    (r#""max_tokens": 0"#, "max_tokens"),
    (r#""max_completion_tokens": 0"#, "max_completion_tokens"),
    (r#""max_tokens": 1, "max_completion_tokens": 2"#, "max_tokens"),
    (r#""logprobs": 1"#, "logprobs"),
    (r#""top_logprobs": 1"#, "top_logprobs"),
    (r#""logprobs": true, "top_logprobs": 21"#, "top_logprobs"),
    (r#""tools": {}"#, "tools"),
    (r#""tools": [{}]"#, "tools[0].type"),
    (r#""tools": [{"type": "retrieval"}]"#, "tools[0].type"),
    (r#""tools": [{"type": "function"}]"#, "tools[0].function.name"),
    (r#""tools": [{"type": "function", "function": {"name": ""}}]"#, "tools[0].function.name"),
    (
        r#""tools": [{"type": "function", "function": {"name": "f", "parameters": 1}}]"#,
        "tools[0].function.parameters",
    ),
    (r#""tool_choice": "required""#, "tool_choice"),
    (r#""tool_choice": "maybe""#, "tool_choice"),
    (r#""tool_choice": 1"#, "tool_choice"),
    (r#""tool_choice": {}"#, "tool_choice"),
    (
        r#""tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": {"function": {"name": "g"}}"#,
        "tool_choice.function.name",
    ),
    (
        r#""tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required", "guided_regex": "a""#,
        "guided_regex",
    ),
    (r#""chat_template": "{{ x }}""#, "chat_template"),
    (r#""continue_final_message": true, "add_generation_prompt": true"#, "continue_final_message"),
    (r#""response_format": {}"#, "response_format.type"),
    (r#""response_format": {"type": "json_schema"}"#, "response_format.json_schema.schema"),
    (
        r#""response_format": {"type": "json_schema", "json_schema": {"schema": 1}}"#,
        "response_format.json_schema.schema",
    ),
    (r#""chat_template_kwargs": []"#, "chat_template_kwargs"),
];

/// An object of the good fields, replaced by the bad ones.
fn body(good: &str, bad: &str) -> String {
    // Of two entries of a name the last one counts.
    format!("{{{good}, {bad}}}")
}

async fn check(served: &Served, path: &str, body: &[u8], param: Option<&str>, part: &str) {
    let answer = served.post(path, JSON, body).await;
    let shown = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
    assert_eq!(answer.status, 400, "{shown}: {}", answer.body);
    let error: Value = serde_json::from_str(&answer.body).unwrap();
    let error = &error["error"];
    assert_eq!(error["type"], "invalid_request_error", "{shown}");
    assert_eq!(error["param"].as_str(), param, "{shown}: {}", answer.body);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(part), "{shown}: {message}");
    assert!(message.len() < 1000, "{shown}: {message}");
}

#[tokio::test]
async fn every_field_out_of_its_range_is_named() {
    let served = Served::generating(&Arc::default(), "", &[]);
    for (bad, param) in COMPLETIONS {
        let body = body(r#""prompt": "a""#, bad);
        check(&served, "/v1/completions", body.as_bytes(), Some(param), param).await;
    }
    let good = r#""messages": [{"role": "user", "content": "a"}]"#;
    for (bad, param) in CHATS {
        let body = body(good, bad);
        check(&served, "/v1/chat/completions", body.as_bytes(), Some(param), param).await;
    }
    let body = json!({"prompt": "a", "max_tokens": 1, "temperature": 0, "nonsense": {"a": 1}});
    let answer = served.post("/v1/completions", JSON, body.to_string().as_bytes()).await;
    assert_eq!(answer.status, 200, "an unknown field is ignored: {}", answer.body);
}

#[tokio::test]
async fn what_is_huge_is_refused_before_it_is_kept() {
    let served = Served::generating(&Arc::default(), "", &[]);
    let path = "/v1/completions";
    let deep = format!("{{\"prompt\": {}{}}}", "[".repeat(5000), "]".repeat(5000));
    let many = format!("{{\"prompt\": [{}1]}}", "1,".repeat(300_000));
    let stops = json!({"prompt": "a", "stop": vec!["a"; 65]}).to_string();
    let long_stop = json!({"prompt": "a", "stop": "a".repeat(4097)}).to_string();
    let prompts = json!({"prompt": vec!["a"; 1025]}).to_string();
    let bias: serde_json::Map<String, Value> =
        (0..1025).map(|id| (id.to_string(), json!(1))).collect();
    let bias = json!({"prompt": "a", "logit_bias": bias}).to_string();
    let long = json!({"prompt": "a", "model": 1, "x": "y".repeat(1 << 16)}).to_string();
    for (body, param, part) in [
        (deep, None, "recursion limit"),
        (many, None, "\"body\" holds more than 262144 values"),
        (stops, Some("stop"), "[65 entries]: expected a string or a list of at most 64"),
        (long_stop, Some("stop"), "each of 1 to 4096 bytes"),
        (prompts, Some("prompt"), "has 1025 prompts: give at most 1024"),
        (bias, Some("logit_bias"), "has 1025 tokens: give at most 1024"),
        (long, Some("model"), "expected a string"),
    ] {
        check(&served, path, body.as_bytes(), param, part).await;
    }
    let messages = vec![json!({"role": "user", "content": "a"}); 4097];
    let body = json!({ "messages": messages }).to_string();
    let part = "[4097 entries]: expected a list of at most 4096 entries";
    check(&served, "/v1/chat/completions", body.as_bytes(), Some("messages"), part).await;
}

#[tokio::test]
async fn bytes_that_are_no_text_or_no_json_are_refused() {
    let served = Served::generating(&Arc::default(), "", &[]);
    let path = "/v1/completions";
    for (body, part) in [
        (&b""[..], "the request body is empty"),
        (b"[]", "to be an object"),
        (b"\"a\"", "to be an object"),
        (b"{", "EOF"),
        (b"{\"prompt\": \"a\"} x", "trailing characters"),
        (b"{\"prompt\": \"\\ud800\"}", "hex escape"),
        (b"{\"prompt\": \"\\udc00a\"}", "hex escape"),
        (b"{\"prompt\": \"\xff\"}", "byte 0xff at offset 12"),
        (b"{\"prompt\": \"\xed\xa0\x80\"}", "not utf-8"),
        (b"{\"prompt\": \"a\nb\"}", "control character"),
        (b"{\"prompt\": \"a\", \"temperature\": NaN}", "expected value"),
        (b"{\"prompt\": \"a\", \"temperature\": 1e999}", "out of range"),
        (b"{'prompt': 'a'}", "key must be a string"),
    ] {
        check(&served, path, body, None, part).await;
    }
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "image/png"] {
        let answer = served.post(path, content_type, b"{\"prompt\": \"a\"}").await;
        assert_eq!(answer.status, 400, "{content_type}");
        assert!(answer.body.contains("expected application/json"), "{}", answer.body);
    }
    let good = br#"{"prompt": "a", "max_tokens": 1, "temperature": 0}"#;
    assert_eq!(served.post(path, JSON, good).await.status, 200);
    assert_eq!(served.post(path, "", good).await.status, 200);
}
