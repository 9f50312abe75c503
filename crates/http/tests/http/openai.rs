//! OpenAI's routes over the router.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use crate::engines::{Controls, Counting, INTERNAL, Obedient};
use crate::support::{Answer, Served};

const JSON: &str = "application/json";

fn served() -> (Served, Arc<Controls>) {
    let controls = Arc::new(Controls::default());
    (Served::generating(&controls, "option.served_model_name=mine,yours\n", &[]), controls)
}

async fn ask(served: &Served, path: &str, body: &Value) -> Answer {
    served.post(path, JSON, body.to_string().as_bytes()).await
}

async fn get(served: &Served, path: &str) -> Answer {
    served.ask(Request::get(path).body(Body::empty()).unwrap()).await
}

fn json_of(answer: &Answer) -> Value {
    serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {}", answer.body))
}

#[tokio::test]
async fn completions_of_every_kind_of_prompt() {
    let (served, _) = served();
    for (prompt, n) in
        [(json!("serving"), 1), (json!(["serving"]), 1), (json!(["serving", "a", "b"]), 3)]
    {
        let body = json!({"model": "m", "prompt": prompt, "max_tokens": 2, "temperature": 0});
        let answer = ask(&served, "/v1/completions", &body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let object = json_of(&answer);
        assert_eq!(object["object"], "text_completion");
        assert!(object["id"].as_str().unwrap().starts_with("cmpl-"));
        let choices = object["choices"].as_array().unwrap();
        assert_eq!(choices.len(), n);
        for (idx, choice) in choices.iter().enumerate() {
            assert_eq!(choice["index"], idx);
            assert_eq!(choice["finish_reason"], "length");
            assert!(choice["logprobs"].is_null());
        }
        assert_eq!(object["usage"]["completion_tokens"], 2 * n);
    }
    let echo = json!({"prompt": "serving", "max_tokens": 1, "temperature": 0, "echo": true});
    let object = json_of(&ask(&served, "/v1/completions", &echo).await);
    assert!(object["choices"][0]["text"].as_str().unwrap().starts_with("serving"));
    let only = json!({"prompt": "serving", "max_tokens": 0, "temperature": 0, "echo": true});
    let object = json_of(&ask(&served, "/v1/completions", &only).await);
    assert_eq!(object["choices"][0]["text"], "serving");
    assert_eq!(object["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn a_streamed_completion_ends_with_done() {
    let (served, _) = served();
    let body = json!({
        "prompt": ["serving", "a"], "max_tokens": 3, "temperature": 0, "stream": true,
        "stream_options": {"include_usage": true}, "echo": true,
    });
    let answer = ask(&served, "/v1/completions", &body).await;
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let frames: Vec<&str> = answer.body.split_terminator("\n\n").collect();
    assert_eq!(frames.last(), Some(&"data: [DONE]"));
    let chunks: Vec<Value> = frames[..frames.len() - 1]
        .iter()
        .map(|frame| serde_json::from_str(frame.strip_prefix("data: ").unwrap()).unwrap())
        .collect();
    let last = chunks.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 6);
    for index in 0..2 {
        let mine: Vec<&Value> = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"].get(0))
            .filter(|choice| choice["index"] == index)
            .collect();
        assert_eq!(mine[0]["text"], ["serving", "a"][index]);
        assert_eq!(mine.last().unwrap()["finish_reason"], "length");
        assert!(mine[..mine.len() - 1].iter().all(|choice| choice["finish_reason"].is_null()));
    }
}

#[tokio::test]
async fn the_model_goes_by_all_its_names() {
    let (served, _) = served();
    for (name, status) in [
        (json!("m"), 200),
        (json!("mine"), 200),
        (json!("yours"), 200),
        (json!("lmi"), 200),
        (Value::Null, 200),
        (json!(""), 200),
        (json!("gpt-4"), 404),
        (json!(7), 400),
    ] {
        let body = json!({"model": name, "prompt": "a", "max_tokens": 1, "temperature": 0});
        let answer = ask(&served, "/v1/completions", &body).await;
        assert_eq!(answer.status.as_u16(), status, "{name}: {}", answer.body);
        if status != 200 {
            assert_eq!(json_of(&answer)["error"]["param"], "model");
        }
    }
    let list = json_of(&get(&served, "/v1/models").await);
    let names: Vec<&str> =
        list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["m", "mine", "yours"]);
    assert_eq!(list["data"][0]["max_model_len"], 1024);
    assert_eq!(json_of(&get(&served, "/v1/models/mine").await)["root"], "m");
    let missing = get(&served, "/v1/models/some/where").await;
    assert_eq!(missing.status, 404);
    assert_eq!(json_of(&missing)["error"]["code"], "model_not_found");
}

#[tokio::test]
async fn errors_are_in_openais_form() {
    let (served, controls) = served();
    let answer = ask(&served, "/v1/completions", &json!({"prompt": "a", "max_tokens": -1})).await;
    assert_eq!(answer.status, 400);
    let error = json_of(&answer)["error"].clone();
    assert_eq!(error["type"], "invalid_request_error");
    assert_eq!(error["param"], "max_tokens");
    assert!(error["code"].is_null());
    let message = error["message"].as_str().unwrap();
    assert_eq!(message, "max_tokens=-1: expected a whole number from 0 to 2147483647");
    // The host's messages use the client's names.
    let body = json!({"prompt": "a", "repetition_penalty": -1, "temperature": 0});
    let answer = ask(&served, "/v1/completions", &body).await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("repetition_penalty=-1"), "{}", answer.body);
    controls.mode.store(INTERNAL, Ordering::SeqCst);
    let answer = ask(&served, "/v1/completions", &json!({"prompt": "a", "temperature": 0})).await;
    assert_eq!(answer.status, 500);
    assert_eq!(json_of(&answer)["error"]["type"], "server_error");
    let missing = get(&served, "/v1/nothing").await;
    assert_eq!(json_of(&missing)["error"]["code"], "unknown_url");
    let big = Served::generating(&Arc::default(), "", &[("SERVING_MAX_REQUEST_SIZE", "10")]);
    let answer = ask(&big, "/v1/completions", &json!({"prompt": "a long one"})).await;
    assert_eq!(answer.status, 413);
    assert_eq!(json_of(&answer)["error"]["code"], "request_too_large");
}

#[tokio::test]
async fn embeddings_are_vectors_of_length_one() {
    let served = Served::new(Counting::default(), "feature-extraction", &[]);
    let body = json!({"model": "m", "input": ["serving", "a"]});
    let answer = ask(&served, "/v1/embeddings", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let object = json_of(&answer);
    assert_eq!(object["object"], "list");
    assert_eq!(object["data"].as_array().unwrap().len(), 2);
    let vector: Vec<f64> = object["data"][0]["embedding"]
        .as_array()
        .unwrap()
        .iter()
        .map(|x| x.as_f64().unwrap())
        .collect();
    let norm: f64 = vector.iter().map(|x| x * x).sum();
    assert!((norm - 1.0).abs() < 1e-6, "{vector:?}");
    assert_eq!(object["usage"]["prompt_tokens"], object["usage"]["total_tokens"]);
    let body = json!({"input": "serving", "encoding_format": "base64", "dimensions": 2});
    let object = json_of(&ask(&served, "/v1/embeddings", &body).await);
    assert_eq!(object["data"][0]["embedding"].as_str().unwrap().len(), 12);
    for (body, param) in [
        (json!({}), "input"),
        (json!({"input": ""}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": ["a", ""]}), "input[1]"),
        (json!({"input": [1, 2]}), "input"),
        (json!({"input": vec!["a"; 2049]}), "input"),
        (json!({"input": "a", "encoding_format": "int8"}), "encoding_format"),
        (json!({"input": "a", "dimensions": 1}), "dimensions"),
        (json!({"input": "a", "dimensions": 0}), "dimensions"),
    ] {
        let answer = ask(&served, "/v1/embeddings", &body).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.body);
        assert_eq!(json_of(&answer)["error"]["param"], param, "{}", answer.body);
    }
    let (generating, _) = self::served();
    let answer = ask(&generating, "/v1/embeddings", &json!({"input": "a"})).await;
    assert_eq!(answer.status, 400);
    assert!(
        answer.body.contains("option.task=sentence-embedding or feature-extraction"),
        "{}",
        answer.body
    );
    let answer = ask(&served, "/v1/completions", &json!({"prompt": "a"})).await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("ask /v1/embeddings"), "{}", answer.body);
}

#[tokio::test]
async fn a_model_that_answers_itself_gets_the_body() {
    let served = Served::new(Obedient::default(), "text-generation", &[]);
    let answer = ask(&served, "/v1/chat/completions", &json!({"messages": []})).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("[data] {\"messages\":[]}"), "{}", answer.body);
}

#[tokio::test]
async fn the_document_is_served() {
    let (served, _) = served();
    let answer = get(&served, "/openapi.json").await;
    assert_eq!(answer.status, 200);
    assert!(json_of(&answer)["paths"]["/v1/chat/completions"]["post"].is_object());
}
