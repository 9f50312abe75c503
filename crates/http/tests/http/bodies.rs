//! What goes in and what comes out of a native task, by content type.

use serde_json::{Value, json};

use crate::engines::Counting;
use crate::support::{Answer, Served, post};

const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";

fn json_of(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.headers["content-type"], "application/json");
    serde_json::from_str(&answer.body).unwrap()
}

/// The shape of nested lists, by the first element of each.
fn shape(mut value: &Value) -> Vec<usize> {
    let mut shape = Vec::new();
    while let Some(list) = value.as_array() {
        shape.push(list.len());
        let Some(first) = list.first() else { break };
        value = first;
    }
    shape
}

#[tokio::test]
async fn features_of_a_text_nest_less_than_features_of_json() {
    let served = Served::new(Counting::default(), "feature-extraction", &[]);
    let text = json_of(&served.post("/invocations", "text/plain", b"serving").await);
    let [1, n_tokens, 2] = shape(&text)[..] else { panic!("{text}") };
    assert!(n_tokens > 1);
    for (content_type, body, n_inputs) in [
        (JSON, &br#"{"inputs": "serving"}"#[..], 1),
        ("", br#"{"inputs": ["serving"]}"#, 1),
        (JSON, br#"{"inputs": ["serving", "a", "serving"]}"#, 3),
        (FORM, b"inputs=serving", 1),
        ("text/csv", b"inputs\nserving\na\n", 2),
        (
            "multipart/form-data; boundary=B",
            b"--B\r\nContent-Disposition: form-data; name=\"inputs\"\r\n\r\nserving\r\n--B--\r\n",
            1,
        ),
    ] {
        let list = json_of(&served.post("/invocations", content_type, body).await);
        assert_eq!(shape(&list), [n_inputs, 1, n_tokens, 2], "{content_type}");
        assert_eq!(list[0], text, "{content_type}");
        assert_eq!(list[n_inputs - 1][0][0][1], json!(0.5));
    }
}

#[tokio::test]
async fn a_large_reply_is_written_away_from_the_event_loop_and_is_the_same() {
    let served = Served::new(Counting::default(), "feature-extraction", &[]);
    let body = serde_json::to_vec(&json!({"inputs": vec!["serving serving"; 600]})).unwrap();
    let list = json_of(&served.post("/invocations", JSON, &body).await);
    assert_eq!(list.as_array().unwrap().len(), 600);
    assert_eq!(list[0], list[599]);
}

#[tokio::test]
async fn generation_answers_a_flat_list_under_the_tasks_key() {
    for (task, key) in
        [("text2text-generation", "generated_text"), ("summarization", "summary_text")]
    {
        let served = Served::new(Counting::default(), task, &[]);
        for (content_type, body, n_inputs) in [
            ("text/plain", &b"serving"[..], 1),
            (JSON, br#"{"inputs": "serving", "parameters": {"max_new_tokens": 3}}"#, 1),
            (JSON, br#"{"inputs": ["a", "b"], "parameters": {"max_new_tokens": 3}}"#, 2),
        ] {
            let list = json_of(&served.post("/invocations", content_type, body).await);
            let list = list.as_array().unwrap();
            assert_eq!(list.len(), n_inputs);
            for one in list {
                let object = one.as_object().unwrap();
                assert_eq!(object.keys().collect::<Vec<_>>(), [key]);
                assert!(!object[key].as_str().unwrap().is_empty());
            }
        }
    }
}

#[tokio::test]
async fn accept_decides_the_format() {
    let ask = async |task: &str, accept: &'static str| {
        let served = Served::new(Counting::default(), task, &[]);
        let body = br#"{"inputs": ["a", "b"], "parameters": {"max_new_tokens": 1}}"#;
        let mut request = post("/invocations", JSON, body);
        request.headers_mut().insert("accept", accept.parse().unwrap());
        served.ask(request).await
    };
    let generation = "text2text-generation";
    let csv = ask(generation, "text/csv").await;
    assert_eq!(csv.headers["content-type"], "text/csv");
    assert_eq!(csv.body.lines().count(), 3);
    assert!(csv.body.starts_with("generated_text\n"));
    assert_eq!(ask(generation, "*/*").await.headers["content-type"], "application/json");
    let refused = ask(generation, "image/png").await;
    assert_eq!(refused.status, 400);
    assert!(refused.body.contains("this model answers with application/json"));
    let refused = ask("feature-extraction", "text/csv").await;
    assert_eq!(refused.status, 400);
    assert!(refused.body.contains("csv takes a list of objects"), "{}", refused.body);
}

#[tokio::test]
async fn a_body_that_is_not_what_it_says_is_a_400_that_says_where() {
    let served = Served::new(Counting::default(), "feature-extraction", &[]);
    for (content_type, body, message) in [
        ("text/plain", &b""[..], "the request body is empty"),
        (JSON, b"", "the request body is empty"),
        ("", b"", "the request body is empty"),
        (FORM, b"", "the request body is empty"),
        ("text/plain", b"ok\n\xff", "byte 0xff at offset 3 (line 2)"),
        (JSON, b"serving", "not json: expected value at line 1 column 1"),
        (JSON, b"{\"inputs\":\n", "line 2 column 0"),
        ("", b"\x00", "not json"),
        (JSON, b"{\"text\": \"a\"}", "no key \\\"inputs\\\": found keys \\\"text\\\""),
        (JSON, b"{\"inputs\": [[\"a\"]]}", "each of the inputs to be a string at line 1"),
        (FORM, b"{\"inputs\": \"a\"}", "looks like json"),
        (FORM, b"a", "the form has no text"),
        ("multipart/form-data", b"x", "not multipart/form-data"),
        ("multipart/form-data; boundary=B", b"x", "not multipart/form-data"),
        ("text/csv", b"a\n1\n", "no column \\\"inputs\\\""),
        ("image/png", b"\x89PNG", "content-type \\\"image/png\\\" is not text"),
        ("rubbish", b"a", "not a media type"),
        ("text/plain; charset=klingon", b"a", "charset klingon is not known"),
    ] {
        let answer = served.post("/invocations", content_type, body).await;
        assert_eq!(answer.status, 400, "{content_type}: {}", answer.body);
        let parsed: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(parsed["code"], 400);
        assert!(parsed["type"].as_str().unwrap().ends_with("Exception"));
        assert!(answer.body.contains(message), "{content_type}: {message:?}: {}", answer.body);
    }
    assert_eq!(served.post("/invocations", "text/plain", b"still here").await.status, 200);
}

#[tokio::test]
async fn a_body_over_the_limit_is_a_413() {
    let served = Served::new(
        Counting::default(),
        "feature-extraction",
        &[("SERVING_MAX_REQUEST_SIZE", "10")],
    );
    assert_eq!(served.post("/invocations", "text/plain", b"0123456789").await.status, 200);
    let answer = served.post("/invocations", "text/plain", b"0123456789a").await;
    assert_eq!(answer.status, 413);
    assert!(answer.body.contains("\"code\": 413"), "{}", answer.body);
    assert!(answer.body.contains("11 bytes exceeds the limit of 10 bytes"));
}
