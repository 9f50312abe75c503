//! Generated text on DJL's routes: which schema answers, and its shapes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::http::Request;
use serde_json::{Value, json};

use crate::engines::{Controls, INTERNAL};
use crate::support::{Answer, Served, post};

const JSON: &str = "application/json";
const LMI: &str = "option.rolling_batch=auto\n";
const TGI: &str = "option.tgi_compat=true\n";
const ASYNC: &str = "option.async_mode=true\n";

/// A decoder whose prompts are short, and which ends at the given position.
fn served(properties: &str, end_at: u64) -> (Served, Arc<Controls>) {
    let controls = Arc::new(Controls::default());
    controls.end_at.store(end_at, Ordering::SeqCst);
    (Served::generating(&controls, properties, &[]), controls)
}

async fn ask(served: &Served, body: &Value) -> Answer {
    served.post("/invocations", JSON, body.to_string().as_bytes()).await
}

fn json_of(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.headers["content-type"], "application/json");
    serde_json::from_str(&answer.body).unwrap()
}

/// The lines of a body, or the events without their prefix.
fn pieces(answer: &Answer, content_type: &str) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.headers["content-type"], content_type);
    let (end, prefix) = match content_type {
        "text/event-stream" => ("\n\n", "data: "),
        _ => ("\n", ""),
    };
    assert!(answer.body.ends_with(end), "{:?}", answer.body);
    answer
        .body
        .split_terminator(end)
        .map(|piece| piece.strip_prefix(prefix).unwrap())
        .filter(|piece| !piece.is_empty() && *piece != "[DONE]")
        .map(|piece| serde_json::from_str(piece).unwrap())
        .collect()
}

#[tokio::test]
async fn a_model_that_says_nothing_keeps_the_pipelines_answer() {
    let (served, _) = served("", 0);
    let body = json!({"inputs": "serving", "parameters": {"max_new_tokens": 3}});
    let list = json_of(&ask(&served, &body).await);
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert!(list[0]["generated_text"].as_str().unwrap().starts_with("serving"));
    for off in ["batch_size=4\n", "option.rolling_batch=disable\n"] {
        let served = Served::generating(&Arc::default(), off, &[]);
        assert!(json_of(&ask(&served, &body).await).is_array(), "{off}");
    }
}

#[tokio::test]
async fn lmi_answers_one_object() {
    let (served, controls) = served(LMI, 0);
    let body = json!({"inputs": "serving"});
    let object = json_of(&ask(&served, &body).await);
    assert_eq!(object.as_object().unwrap().keys().collect::<Vec<_>>(), ["generated_text"]);
    // 30 new tokens unless set.
    let n_default = controls.n_passes.load(Ordering::SeqCst);
    assert!((29..=31).contains(&n_default), "{n_default}");
    let body = json!({"inputs": "serving", "parameters": {"max_new_tokens": 4, "details": true}});
    let object = json_of(&ask(&served, &body).await);
    assert_eq!(object["details"]["finish_reason"], "length");
    assert_eq!(object["details"]["generated_tokens"], 4);
    assert_eq!(object["details"]["inputs"], "serving");
    assert!(object["details"]["tokens"].is_array());
    let new = object["generated_text"].as_str().unwrap();
    assert!(!new.starts_with("serving"));
    let body = json!({
        "inputs": ["serving", "a"],
        "parameters": {"max_new_tokens": 4, "return_full_text": true},
    });
    let list = json_of(&ask(&served, &body).await);
    assert_eq!(list[0]["generated_text"], format!("serving{new}"));
    assert_eq!(list.as_array().unwrap().len(), 2);
    let plain = served.post("/predictions/m", "text/plain", b"serving").await;
    assert!(json_of(&plain)["generated_text"].is_string());
}

#[tokio::test]
async fn a_model_that_ends_says_so() {
    let (served, _) = served(LMI, 6);
    let body = json!({"inputs": "serving", "parameters": {"details": true}});
    let object = json_of(&ask(&served, &body).await);
    assert_eq!(object["details"]["finish_reason"], "eos_token");
}

#[tokio::test]
async fn tgi_answers_a_list_with_details() {
    let (served, _) = served(TGI, 0);
    let body = json!({"inputs": "serving", "parameters": {"max_new_tokens": 2}});
    let list = json_of(&ask(&served, &body).await);
    assert_eq!(list[0]["details"]["generated_tokens"], 2);
    let body = json!({
        "inputs": "serving", "stream": true,
        "parameters": {"max_new_tokens": 2, "details": false},
    });
    let events = pieces(&ask(&served, &body).await, "text/event-stream");
    assert_eq!(events.len(), 2, "{events:?}");
    assert!(events[0]["token"].get("logprob").is_some(), "{events:?}");
    assert!(events[1].get("details").is_none());
}

#[tokio::test]
async fn a_stream_has_a_line_a_token_and_the_text_in_the_last() {
    let body = json!({
        "inputs": "serving", "stream": true,
        "parameters": {"max_new_tokens": 3, "details": true},
    });
    // `stream` is LMI's: a model without settings answers it, too.
    for properties in [LMI, "", "option.output_formatter=json\n"] {
        let (served, _) = served(properties, 0);
        let lines = pieces(&ask(&served, &body).await, "application/jsonlines");
        assert_eq!(lines.len(), 3, "{lines:?}");
        for line in &lines[..2] {
            assert_eq!(line.as_object().unwrap().keys().collect::<Vec<_>>(), ["token"]);
        }
        let token = lines[0]["token"].as_object().unwrap();
        assert_eq!(token.keys().collect::<Vec<_>>(), ["id", "text", "log_prob"]);
        let text: String = lines.iter().map(|l| l["token"]["text"].as_str().unwrap()).collect();
        assert_eq!(lines[2]["generated_text"], text);
        assert_eq!(lines[2]["details"]["finish_reason"], "length");
        assert_eq!(lines[2]["details"]["generated_tokens"], 3);
        assert!(lines[2]["details"].get("tokens").is_none());
    }
}

#[tokio::test]
async fn the_form_is_asked_for_or_set() {
    let parameters = json!({"max_new_tokens": 2});
    let ask_with = async |properties: &str, name: Value, accept: &'static str| {
        let (served, _) = served(properties, 0);
        let body = json!({"inputs": "serving", "output_formatter": name, "parameters": parameters});
        let mut request = post("/invocations", JSON, body.to_string().as_bytes());
        request.headers_mut().insert("accept", accept.parse().unwrap());
        served.ask(request).await
    };
    let any = "*/*";
    let sse = "text/event-stream";
    let lines = "application/jsonlines";
    let none = Value::Null;
    let of = |name: &str| format!("option.output_formatter={name}\n");
    assert_eq!(pieces(&ask_with(&of("sse"), none.clone(), any).await, sse).len(), 2);
    assert_eq!(pieces(&ask_with(&of("jsonlines"), none.clone(), any).await, lines).len(), 2);
    assert_eq!(pieces(&ask_with(&of("jsonlines"), none.clone(), sse).await, sse).len(), 2);
    assert_eq!(pieces(&ask_with(LMI, json!("sse"), any).await, sse).len(), 2);
    json_of(&ask_with(&of("sse"), json!("json"), any).await);
    let chat = ask_with(&of("sse_chat"), none.clone(), any).await;
    assert!(chat.body.ends_with("data: [DONE]\n\n"), "{}", chat.body);
    let chunks = pieces(&chat, sse);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(chunks[0]["object"], "chat.completion.chunk");
    let chat = json_of(&ask_with(LMI, json!("json_chat"), any).await);
    assert_eq!(chat["object"], "chat.completion");
    assert_eq!(chat["usage"]["completion_tokens"], 2);
    let text = ask_with(&of("none"), none, any).await;
    assert!(text.headers["content-type"].to_str().unwrap().starts_with("text/plain"));
    assert!(!text.body.contains('{'));
    let refused = ask_with(LMI, json!("xml"), any).await;
    assert_eq!(refused.status, 424);
    assert!(
        refused.body.contains("output_formatter=\\\"xml\\\": expected json"),
        "{}",
        refused.body
    );
}

#[tokio::test]
async fn the_asynchronous_service_has_its_own_lines() {
    let (served, _) = served(ASYNC, 0);
    let body = json!({
        "inputs": "serving", "stream": true,
        "parameters": {"max_new_tokens": 2, "details": true, "do_sample": false},
    });
    let lines = pieces(&ask(&served, &body).await, "application/jsonlines");
    assert_eq!(lines.len(), 2);
    let keys = ["index", "token", "generated_text", "details"];
    assert_eq!(lines[0].as_object().unwrap().keys().collect::<Vec<_>>(), keys);
    assert!(lines[0]["generated_text"].is_null() && lines[0]["details"].is_null());
    assert!(lines[1]["generated_text"].is_string());
    assert!(lines[1]["details"]["input_length"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn a_body_with_prompt_is_a_completion() {
    for properties in [LMI, ""] {
        let (served, _) = served(properties, 0);
        let body = json!({"prompt": "serving", "max_tokens": 2, "temperature": 0});
        let object = json_of(&ask(&served, &body).await);
        assert_eq!(object["object"], "text_completion");
        let body = json!({"prompt": "serving", "max_tokens": 2, "temperature": 0, "stream": true});
        let answer = ask(&served, &body).await;
        // Bare lines, and an empty one where OpenAI's frames have [DONE].
        assert!(answer.body.ends_with("}\n\n"), "{:?}", answer.body);
        assert_eq!(pieces(&answer, "application/jsonlines").len(), 3);
        let mut request = post("/invocations", JSON, body.to_string().as_bytes());
        request.headers_mut().insert("accept", "text/event-stream".parse().unwrap());
        let answer = served.ask(request).await;
        assert!(answer.body.ends_with("data: [DONE]\n\n"), "{:?}", answer.body);
    }
}

#[tokio::test]
async fn enable_streaming_sends_a_line_a_step() {
    let (served, _) = served("option.rolling_batch=disable\noption.enable_streaming=true\n", 0);
    let body = json!({"inputs": ["serving", "a"], "parameters": {"max_new_tokens": 3}});
    let lines = pieces(&ask(&served, &body).await, "application/jsonlines");
    assert_eq!(lines.len(), 3, "{lines:?}");
    for line in &lines {
        assert_eq!(line["outputs"].as_array().unwrap().len(), 2);
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_a_424_and_what_fails_says_so() {
    let (served, controls) = served(LMI, 0);
    for body in [
        "{}",
        "[]",
        "{",
        "1",
        r#"{"inputs": ""}"#,
        r#"{"inputs": []}"#,
        r#"{"inputs": [""]}"#,
        r#"{"inputs": 1}"#,
        r#"{"inputs": "a", "parameters": 1}"#,
        r#"{"inputs": "a", "parameters": {"max_new_tokens": 0}}"#,
        r#"{"inputs": "a", "parameters": {"details": 1}}"#,
        r#"{"inputs": ["a", "b"], "stream": true}"#,
    ] {
        let answer = served.post("/invocations", JSON, body.as_bytes()).await;
        assert_eq!(answer.status, 424, "{body}: {}", answer.body);
        let object: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(object["code"], 424);
        let error = object["error"].as_str().unwrap();
        assert!(error.starts_with("Input Parsing failed: "), "{error}");
    }
    let body = json!({"inputs": "a", "parameters": {"repetition_penalty": -1}});
    let answer = ask(&served, &body).await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("parameters.repetition_penalty=-1"), "{}", answer.body);
    controls.mode.store(INTERNAL, Ordering::SeqCst);
    let answer = ask(&served, &json!({"inputs": "a"})).await;
    assert_eq!(answer.status, 500);
    let object: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(object["details"]["finish_reason"], "error");
    assert!(object["generated_text"].is_null());
}

#[tokio::test]
async fn a_conversation_is_read_wherever_it_comes() {
    let (served, _) = served(LMI, 0);
    // The test's model has no chat template.
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "temperature": 0});
    let answer = ask(&served, &body).await;
    assert!(answer.status.is_client_error(), "{}", answer.body);
    let object: Value = serde_json::from_str(&answer.body).unwrap();
    assert!(object["error"].is_string(), "{}", answer.body);
    let body = json!({"messages": [], "inputs": "serving"});
    let request = Request::post("/invocations").header("content-type", JSON);
    let answer = served.ask(request.body(body.to_string().into()).unwrap()).await;
    assert_eq!(answer.status, 424);
    assert!(answer.body.contains("messages: missing or empty"), "{}", answer.body);
}
