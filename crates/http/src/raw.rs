//! Answers of engines that answer whole requests: passed through byte for byte.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use drivetrain_host::{HostError, ModelHandle, RawFrames, RawHead, RawRequest};
use futures::stream;
use hyper::ext::ReasonPhrase;
use tokio::time::timeout;

use crate::call::Call;
use crate::failure::ApiError;
use crate::request_id::RequestId;

/// How long a first frame waits for the end of the answer, which makes it the whole body.
const WHOLE_BODY_WAIT: Duration = Duration::from_millis(2);

/// Headers that describe this connection; an engine has no say in them.
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TRAILER,
    header::UPGRADE,
    header::TE,
];

/// Has a request model answer `call`.
///
/// # Errors
/// What went wrong before the first frame; after it, the connection is cut.
pub(crate) async fn answer(
    model: &ModelHandle,
    id: &RequestId,
    mut call: Call,
    frame_timeout: Duration,
) -> Result<Response, ApiError> {
    let request = RawRequest {
        id: id.as_str().to_owned(),
        properties: call.properties(id.as_str()),
        content: call.content(),
        deadline: None,
    };
    let mut reply = model.submit_raw(request).await?;
    let body = read_body(&mut reply.frames, frame_timeout).await?;
    let body = match body {
        RawBody::Whole(bytes) => Body::from(bytes),
        RawBody::Streamed(first) => stream_body(first, reply.frames, frame_timeout),
    };
    Ok(respond(reply.head, body))
}

enum RawBody {
    Whole(Bytes),
    /// The frames that came so far; more follow.
    Streamed(Vec<Bytes>),
}

async fn read_body(frames: &mut RawFrames, frame_timeout: Duration) -> Result<RawBody, ApiError> {
    let first = match frames.next().await {
        None => return Ok(RawBody::Whole(Bytes::new())),
        Some(first) => first?,
    };
    match timeout(WHOLE_BODY_WAIT.min(frame_timeout), frames.next()).await {
        Ok(None) => Ok(RawBody::Whole(first)),
        Ok(Some(Ok(second))) => Ok(RawBody::Streamed(vec![first, second])),
        // Nothing has been sent yet, so the failure can still be told.
        Ok(Some(Err(error))) => Err(error.into()),
        Err(_) => Ok(RawBody::Streamed(vec![first])),
    }
}

/// The frames as they come. The engine waits while the client does not read; a gap longer than
/// `frame_timeout`, or a failure, cuts the connection, which the client can tell from an end.
fn stream_body(first: Vec<Bytes>, frames: RawFrames, frame_timeout: Duration) -> Body {
    let state = (first.into_iter(), frames);
    Body::from_stream(stream::unfold(state, move |(mut first, mut frames)| async move {
        if let Some(frame) = first.next() {
            return Some((Ok(frame), (first, frames)));
        }
        let frame = match timeout(frame_timeout, frames.next()).await {
            Ok(None) => return None,
            Ok(Some(Ok(frame))) => Ok(frame),
            Ok(Some(Err(error))) => {
                tracing::error!("the answer broke off: {error}");
                Err(BrokenAnswer::Failed(error))
            }
            Err(_) => {
                tracing::error!(
                    "the answer broke off: no frame for {} s, chunk reading interrupted \
                     (chunked_read_timeout)",
                    frame_timeout.as_secs()
                );
                Err(BrokenAnswer::Stalled)
            }
        };
        Some((frame, (first, frames)))
    }))
}

#[derive(Debug, thiserror::Error)]
enum BrokenAnswer {
    #[error("the model failed while it answered")]
    Failed(#[source] HostError),
    #[error("no frame within chunked_read_timeout")]
    Stalled,
}

/// The reply that an engine's answer becomes.
pub(crate) fn respond(head: RawHead, body: Body) -> Response {
    let mut response = Response::new(body);
    let status = StatusCode::from_u16(head.status).ok().filter(|status| status.as_u16() >= 200);
    if status.is_none() {
        tracing::error!(status = head.status, "the engine set a status that is none; sending 500");
    }
    *response.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let usual = response.status().canonical_reason();
    if !head.reason.is_empty()
        && usual != Some(head.reason.as_str())
        && let Some(reason) = reason_phrase(&head.reason)
    {
        response.extensions_mut().insert(reason);
    }
    for (name, value) in head.headers {
        let parsed = HeaderName::from_bytes(name.as_bytes()).ok();
        match (parsed, HeaderValue::from_str(&value)) {
            (Some(name), _) if HOP_BY_HOP.contains(&name) => {}
            (Some(name), Ok(value)) => {
                response.headers_mut().append(name, value);
            }
            _ => tracing::warn!(header = name, "the engine set a header that is none; dropped"),
        }
    }
    response
}

/// The reason as it may stand in a status line: one line of visible text, or nothing.
fn reason_phrase(reason: &str) -> Option<ReasonPhrase> {
    let line: String = reason
        .chars()
        .map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { ' ' })
        .take(256)
        .collect();
    ReasonPhrase::try_from(line.trim().as_bytes().to_vec()).ok()
}
