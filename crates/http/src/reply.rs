//! A native task's answer, written straight into the bytes that go out.

use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use drivetrain_host::{Embedding, Features, FinishReason, Generated, Task, TaskReply};
use serde::Serialize;
use serde_json::Value;

use crate::accept::ReplyFormat;
use crate::failure::{ApiError, FailureKind};
use crate::inference::Ranked;
use crate::input::ReplyShape;

/// Set to `shutdown` when the answer is shorter than asked for because the server is going away.
const FINISH_REASON: &str = "x-finish-reason";

/// From this many numbers on, writing a reply takes long enough to leave the event loop for.
const N_VALUES_INLINE: usize = 1 << 13;

/// The most bytes that the text of one f32 and its comma take.
const F32_TEXT_BYTES: usize = 16;

/// The most bytes reserved for a reply before it is written; one that is longer grows.
const MAX_RESERVED_BYTES: usize = 1 << 20;

/// Writes `reply`.
///
/// # Errors
/// A format that the task's answer has no form in; numbers that JSON cannot write.
pub(crate) async fn respond(
    reply: TaskReply,
    shape: ReplyShape,
    format: ReplyFormat,
) -> Result<Response<Body>, ApiError> {
    let finish = finish_reason(&reply);
    let n_values = match &reply {
        TaskReply::Features(features) => features.iter().map(|f| f.values.len()).sum(),
        TaskReply::Embeddings(rows) => rows.iter().map(|row| row.values.len()).sum(),
        _ => 0,
    };
    let body = if n_values > N_VALUES_INLINE {
        tokio::task::spawn_blocking(move || write(&reply, shape, format)).await.map_err(
            |error| ApiError::new(FailureKind::Internal, format!("writing the reply: {error}")),
        )??
    } else {
        write(&reply, shape, format)?
    };
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    if let Some(finish) = finish {
        headers.insert(FINISH_REASON, HeaderValue::from_static(finish.name()));
    }
    Ok(response)
}

fn finish_reason(reply: &TaskReply) -> Option<FinishReason> {
    let TaskReply::Generated(generated, _) = reply else { return None };
    generated.iter().map(|g| g.finish).find(|finish| *finish == FinishReason::Shutdown)
}

fn write(reply: &TaskReply, shape: ReplyShape, format: ReplyFormat) -> Result<Vec<u8>, ApiError> {
    match (reply, format) {
        (TaskReply::Features(features), ReplyFormat::Json) => write_features(features, shape),
        (TaskReply::Features(_), ReplyFormat::Csv) => Err(ApiError::bad_request(
            "accept: text/csv: features are nested lists, and csv takes a list of objects: accept \
             application/json",
        )),
        (TaskReply::Embeddings(rows), ReplyFormat::Json) => write_embeddings(rows),
        (TaskReply::Ranks(ranks), _) => {
            let ranked = ranks.iter().map(|rank| Ranked {
                index: rank.index,
                text: rank.text.as_deref(),
                score: rank.score,
            });
            match format {
                ReplyFormat::Json => {
                    let mut out = Vec::new();
                    write_json(&mut out, &ranked.collect::<Vec<_>>());
                    Ok(out)
                }
                ReplyFormat::Csv => {
                    let rows = ranked.map(serde_json::to_value).collect::<Result<_, _>>();
                    let rows = rows.map(Value::Array).map_err(|error| failed(&error))?;
                    write_table(&rows)
                }
            }
        }
        (TaskReply::Document(document), ReplyFormat::Json) => {
            let mut out = Vec::new();
            write_json(&mut out, document);
            Ok(out)
        }
        (TaskReply::Document(document), ReplyFormat::Csv) => write_table(document),
        (TaskReply::Generated(generated, task), ReplyFormat::Json) => {
            Ok(write_generated(generated, *task))
        }
        (TaskReply::Generated(generated, task), ReplyFormat::Csv) => write_csv(generated, *task),
        _ => Err(ApiError::new(
            FailureKind::Internal,
            "the task's answer has no form on the wire in this version",
        )),
    }
}

/// `[1][n_tokens][dim]` for a plain text, a list of those otherwise. Each number is the shortest
/// text that reads back as the same f32.
fn write_features(features: &[Features], shape: ReplyShape) -> Result<Vec<u8>, ApiError> {
    let n_values: usize = features.iter().map(|f| f.values.len()).sum();
    let n_bytes = n_values.saturating_mul(F32_TEXT_BYTES).saturating_add(64);
    let mut out = Vec::with_capacity(n_bytes.min(MAX_RESERVED_BYTES));
    if shape == ReplyShape::List {
        out.push(b'[');
    }
    for (idx, input) in features.iter().enumerate() {
        if let Some(bad) = input.values.iter().position(|x| !x.is_finite()) {
            return Err(ApiError::new(
                FailureKind::Unserialisable,
                format!(
                    "the model's hidden states are not finite: {} at input {idx}, token {}, column \
                     {}, which json cannot say",
                    input.values.get(bad).copied().unwrap_or(f32::NAN),
                    bad / input.dim.max(1),
                    bad % input.dim.max(1)
                ),
            ));
        }
        if idx > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"[[");
        for (row_idx, row) in input.rows().enumerate() {
            if row_idx > 0 {
                out.push(b',');
            }
            write_json(&mut out, row);
        }
        out.extend_from_slice(b"]]");
    }
    if shape == ReplyShape::List {
        out.push(b']');
    }
    Ok(out)
}

/// `[[..], ..]`: a vector for each input.
fn write_embeddings(rows: &[Embedding]) -> Result<Vec<u8>, ApiError> {
    let n_values: usize = rows.iter().map(|row| row.values.len()).sum();
    let mut out =
        Vec::with_capacity(n_values.saturating_mul(F32_TEXT_BYTES).min(MAX_RESERVED_BYTES));
    out.push(b'[');
    for (idx, row) in rows.iter().enumerate() {
        if row.values.iter().any(|x| !x.is_finite()) {
            return Err(ApiError::new(
                FailureKind::Unserialisable,
                format!("the vector of input {idx} has numbers that json cannot say"),
            ));
        }
        if idx > 0 {
            out.push(b',');
        }
        write_json(&mut out, &row.values);
    }
    out.push(b']');
    Ok(out)
}

/// A list of objects as a table; the first one's keys name the columns.
fn write_table(document: &Value) -> Result<Vec<u8>, ApiError> {
    let refused = || {
        ApiError::bad_request(
            "accept: text/csv: this answer is no list of objects, which csv takes: accept \
             application/json",
        )
    };
    let rows = document.as_array().ok_or_else(refused)?;
    let objects: Vec<_> =
        rows.iter().map(Value::as_object).collect::<Option<_>>().ok_or_else(refused)?;
    let Some(first) = objects.first() else { return Ok(Vec::new()) };
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(first.keys()).map_err(|error| failed(&error))?;
    for object in &objects {
        let fields = first.keys().map(|key| match object.get(key) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) | None => String::new(),
            Some(other) => other.to_string(),
        });
        writer.write_record(fields).map_err(|error| failed(&error))?;
    }
    writer.into_inner().map_err(|error| failed(error.error()))
}

fn failed(error: &dyn std::error::Error) -> ApiError {
    ApiError::new(FailureKind::Internal, format!("writing the reply: {error}"))
}

/// `[{"generated_text": ..}]`, one object an input. Where there are several of several inputs, each
/// input's are a list of their own, as transformers' pipelines have it.
fn write_generated(generated: &[Generated], task: Task) -> Vec<u8> {
    let n_bytes: usize = generated.iter().map(|g| g.reply_text().len() + 32).sum();
    let n_inputs = generated.last().map_or(0, |last| last.input + 1);
    let is_nested = n_inputs > 1 && generated.len() > n_inputs;
    let mut out = Vec::with_capacity(n_bytes + 2);
    out.push(b'[');
    let mut before: Option<&Generated> = None;
    for one in generated {
        let is_next = before.is_none_or(|before| before.input != one.input);
        out.extend_from_slice(match (before.is_some(), is_next && is_nested) {
            (false, false) => b"".as_slice(),
            (true, false) => b",",
            (false, true) => b"[",
            (true, true) => b"],[",
        });
        out.extend_from_slice(b"{\"");
        out.extend_from_slice(text_key(task).as_bytes());
        out.extend_from_slice(b"\":");
        write_json(&mut out, one.reply_text());
        out.push(b'}');
        before = Some(one);
    }
    out.extend_from_slice(if is_nested { b"]]" } else { b"]" });
    out
}

fn write_csv(generated: &[Generated], task: Task) -> Result<Vec<u8>, ApiError> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record([text_key(task)]).map_err(|error| failed(&error))?;
    for one in generated {
        writer.write_record([one.reply_text()]).map_err(|error| failed(&error))?;
    }
    writer.into_inner().map_err(|error| failed(error.error()))
}

/// The key of a generated text in transformers' pipelines.
fn text_key(task: Task) -> &'static str {
    match task {
        Task::Summarization => "summary_text",
        Task::Translation => "translation_text",
        _ => "generated_text",
    }
}

fn write_json<T: ?Sized + Serialize>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value)
        .expect("numbers and text have a json form, and a Vec takes it");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(n_tokens: usize, dim: usize, values: &[f32]) -> Features {
        Features { n_tokens, dim, values: values.to_vec() }
    }

    fn generated(text: &str) -> Generated {
        Generated {
            input: 0,
            text: text.to_owned(),
            full_text: None,
            finish: FinishReason::EndToken,
            n_prompt_tokens: 1,
            n_tokens: 1,
            ids: vec![1],
        }
    }

    fn text(bytes: Result<Vec<u8>, ApiError>) -> String {
        String::from_utf8(bytes.unwrap()).unwrap()
    }

    #[test]
    fn features_nest_as_the_request_asks() {
        let one = features(2, 2, &[0.1, -1.0, 1e-7, 16_777_216.0]);
        assert_eq!(
            text(write_features(std::slice::from_ref(&one), ReplyShape::Single)),
            "[[[0.1,-1.0],[1e-7,16777216.0]]]"
        );
        let two = features(1, 2, &[0.25, f32::MAX]);
        assert_eq!(
            text(write_features(&[one, two], ReplyShape::List)),
            "[[[[0.1,-1.0],[1e-7,16777216.0]]],[[[0.25,3.4028235e+38]]]]"
        );
    }

    #[test]
    fn what_is_written_reads_back_as_the_same_f32() {
        let values: Vec<f32> = (0..4096_u32)
            .map(|n| f32::from_bits(n.wrapping_mul(0x9e37_79b9)))
            .filter(|x| x.is_finite())
            .collect();
        let written =
            text(write_features(&[features(1, values.len(), &values)], ReplyShape::Single));
        let read: Vec<Vec<Vec<f32>>> = serde_json::from_str(&written).unwrap();
        assert_eq!(read[0][0], values);
        assert!(written.len() <= values.len() * F32_TEXT_BYTES + 64);
    }

    #[test]
    fn a_reply_grows_beyond_what_is_reserved() {
        let values = vec![-1.234_567_9e-30_f32; 1 << 17];
        let written = write_features(&[features(1 << 10, 1 << 7, &values)], ReplyShape::List);
        let written = written.unwrap();
        assert!(written.len() > MAX_RESERVED_BYTES);
        let read: Vec<Vec<Vec<Vec<f32>>>> = serde_json::from_slice(&written).unwrap();
        assert_eq!(read.concat().concat().concat(), values);
    }

    #[test]
    fn numbers_that_json_cannot_say_are_an_error() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = write_features(&[features(2, 2, &[0.0, 0.0, 0.0, bad])], ReplyShape::List)
                .unwrap_err();
            assert_eq!(error.kind, FailureKind::Unserialisable);
            assert!(error.message.contains("input 0, token 1, column 1"), "{}", error.message);
        }
    }

    #[test]
    fn generated_text_is_a_flat_list_under_the_task_key() {
        let second = Generated { input: 1, ..generated("a \"b\"\n<&>") };
        let both = [generated("sˈɝvɪŋ"), second];
        assert_eq!(
            text(Ok(write_generated(&both, Task::Text2TextGeneration))),
            r#"[{"generated_text":"sˈɝvɪŋ"},{"generated_text":"a \"b\"\n<&>"}]"#
        );
        let four = [generated("a"), generated("b"), both[1].clone(), both[1].clone()];
        let four = text(Ok(write_generated(&four, Task::Text2TextGeneration)));
        let four: serde_json::Value = serde_json::from_str(&four).unwrap();
        let lens: Vec<usize> = [0, 1].map(|idx| four[idx].as_array().unwrap().len()).into();
        assert_eq!((lens, four[0][1]["generated_text"].as_str()), (vec![2, 2], Some("b")));
        assert_eq!(
            text(Ok(write_generated(&[generated("a"), generated("b")], Task::TextGeneration))),
            r#"[{"generated_text":"a"},{"generated_text":"b"}]"#
        );
        assert_eq!(
            text(Ok(write_generated(&both[..1], Task::Summarization))),
            r#"[{"summary_text":"sˈɝvɪŋ"}]"#
        );
        assert_eq!(
            text(write_csv(&both, Task::TextGeneration)),
            "generated_text\nsˈɝvɪŋ\n\"a \"\"b\"\"\n<&>\"\n"
        );
    }
}
