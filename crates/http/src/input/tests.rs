//! Bodies of every content type, good and bad.

use axum::http::{HeaderMap, HeaderValue, header};
use serde_json::json;

use super::*;
use crate::failure::FailureKind;

fn decode(content_type: &str, body: &[u8]) -> Result<TaskInput, ApiError> {
    let mut headers = HeaderMap::new();
    if !content_type.is_empty() {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap());
    }
    decode_body(&ContentType::of(&headers).unwrap(), body)
}

fn check(content_type: &str, body: &str, inputs: &[&str], parameters: Value, shape: ReplyShape) {
    let input = decode(content_type, body.as_bytes()).unwrap_or_else(|e| panic!("{body}: {e:?}"));
    assert_eq!(input.inputs, inputs, "{body}");
    assert_eq!(Value::Object(input.parameters), parameters, "{body}");
    assert_eq!(input.shape, shape, "{body}");
}

fn refused(content_type: &str, body: &[u8], wanted: &str) {
    let error = decode(content_type, body).expect_err(wanted);
    assert_eq!(error.kind, FailureKind::Untranslatable);
    assert!(error.message.contains(wanted), "{wanted:?} is not in {:?}", error.message);
}

#[test]
fn every_content_type_gives_its_inputs() {
    use ReplyShape::{List, Single};
    check("text/plain", "a\nb", &["a\nb"], json!({}), Single);
    check("text/plain", "{\"inputs\": 1}", &["{\"inputs\": 1}"], json!({}), Single);
    for json_type in ["", "application/json", "application/json; charset=utf-8"] {
        check(json_type, r#"{"inputs": "a"}"#, &["a"], json!({}), List);
        check(json_type, r#"{"inputs": ["a", "b\n"]}"#, &["a", "b\n"], json!({}), List);
        check(json_type, r#"{"inputs": "", "parameters": null}"#, &[""], json!({}), List);
        check(json_type, r#""bare""#, &["bare"], json!({}), List);
        check(json_type, r#"["a", "b"]"#, &["a", "b"], json!({}), List);
        check(
            json_type,
            r#"{"x": [1], "parameters": {"n": 1, "f": 0.5, "l": [true, null, -2], "o": {"k": "v"}}, "inputs": "a"}"#,
            &["a"],
            json!({"n": 1, "f": 0.5, "l": [true, null, -2], "o": {"k": "v"}}),
            List,
        );
    }
    check("text/csv", "id,inputs\n1,a\n2,\"b,c\"\n", &["a", "b,c"], json!({}), List);
}

#[test]
fn a_body_that_is_not_what_it_says_is_refused() {
    for content_type in ["", "text/plain", "application/json", "text/csv", "image/png"] {
        refused(content_type, b"", "body is empty");
    }
    let json = "application/json";
    refused(json, b"serving", "body is not json: expected value at line 1 column 1");
    refused(json, b"{\"inputs\": \"a\"", "EOF while parsing an object at line 1 column 14");
    refused(json, b"{\"inputs\":\n \"a\"} x", "trailing characters at line 2 column 7");
    refused(json, b"{\"inputs\": \"\xff\"}", "byte 0xff at offset 12");
    refused(json, b"5", "invalid type: integer `5`, expected an object with the key \"inputs\"");
    refused(json, b"null", "expected an object");
    refused(json, b"{\"text\": 1}", "body has no key \"inputs\": found keys \"text\"");
    refused(json, b"{}", "found no keys");
    refused(json, b"{\"inputs\": []}", "the list of inputs is empty");
    refused(
        json,
        b"{\"inputs\": 5}",
        "\"inputs\" to be a string or a list of strings at line 1 column",
    );
    refused(json, b"{\"inputs\": {\"question\": 1}}", "\"inputs\" to be a string");
    refused(
        json,
        b"{\"inputs\": [\"a\", 7]}",
        "integer `7`, expected each of the inputs to be a string",
    );
    refused(json, b"{\"inputs\": \"a\", \"parameters\": [1]}", "\"parameters\" to be an object");
    refused("text/csv", b"a,b\n1,2\n", "no column \"inputs\": found \"a\", \"b\"");
    refused("text/csv", b"inputs,b\n1,2\n3\n", "line: 3");
    refused("text/csv", b"inputs\n", "list of inputs is empty");
    refused("image/png", b"\x89PNG", "is not text");
    refused("application/octet-stream", b"abc", "is not text");
}

#[test]
fn a_deep_or_wide_document_is_refused() {
    let deep = format!("{{\"inputs\": \"a\", \"parameters\": {}", "{\"a\":".repeat(10_000));
    refused("", deep.as_bytes(), "recursion limit exceeded");
    refused("", "[".repeat(100_000).as_bytes(), "each of the inputs to be a string");
    let wide = format!("{{\"parameters\": {{\"a\": [{}1]}}}}", "[],".repeat(MAX_PARAMETER_VALUES));
    refused("", wide.as_bytes(), "\"parameters\" holds more than 16384 values");
    let many = format!("[{}\"\"]", "\"\",".repeat(MAX_INPUTS));
    refused("", many.as_bytes(), "more than 65536 texts");
}

#[test]
fn messages_repeat_the_start_of_a_name() {
    // Of three bytes each, and no boundary at byte 64.
    let name = "€".repeat(1 << 20);
    let shown = format!("{:?}..", "€".repeat(64));
    let check = |answer: Result<TaskInput, ApiError>| {
        let message = answer.unwrap_err().message;
        assert!(message.contains(&shown) && message.len() < 1000, "{} bytes", message.len());
    };
    check(decode("", format!("{{\"{name}\": 1}}").as_bytes()));
    check(decode("text/csv", format!("{name}\n1\n").as_bytes()));
    check(decode_fields(&[(name.clone(), Bytes::new())]));
    check(decode_fields(&[(name, Bytes::from_static(b"\xff"))]));
}

proptest::proptest! {
    #[test]
    fn no_body_brings_the_decoder_down(
        which in 0_usize..6,
        bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64),
        text in "[\\[\\]{}\",:inputs0-9 \n]{0,64}",
    ) {
        let content_type =
            ["", "text/plain", "text/csv", "text/plain; charset=utf-16", "text/csv; charset=latin1", "a/b"][which];
        let _ = decode(content_type, &bytes);
        let _ = decode(content_type, text.as_bytes());
        let _ = decode_fields(&[(text, Bytes::from(bytes))]);
    }
}

#[test]
fn forms_give_inputs_data_or_their_first_value() {
    let decode = |fields: &[(&str, &[u8])]| {
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), Bytes::copy_from_slice(value)))
            .collect();
        decode_fields(&fields)
    };
    assert_eq!(
        decode(&[("x", b"1"), ("inputs", b"a"), ("inputs", b"b")]).unwrap().inputs,
        ["a", "b"]
    );
    assert_eq!(decode(&[("x", b"1"), ("data", b"a")]).unwrap().inputs, ["a"]);
    assert_eq!(decode(&[("model_name", b"m"), ("text", b"a")]).unwrap().inputs, ["a"]);
    let input = decode(&[("inputs", b"a"), ("parameters", b"{\"n\": 1}")]).unwrap();
    assert_eq!(Value::Object(input.parameters), json!({"n": 1}));
    for (fields, wanted) in [
        (&[][..], "the form has no fields"),
        (&[("serving", &b""[..])], "its fields are \"serving\""),
        (&[("{\"inputs\":\"a", &b"b\"}"[..])], "looks like json"),
        (&[("inputs", &b"\xff"[..])], "form field \"inputs\": body is not utf-8: byte 0xff"),
        (&[("inputs", &b"a"[..]), ("parameters", b"{")], "\"parameters\" is not json"),
        (&[("inputs", &b"a"[..]), ("parameters", b"{} x")], "trailing characters"),
    ] {
        let error = decode(fields).unwrap_err();
        assert!(error.message.contains(wanted), "{}", error.message);
    }
}
