//! `InvokeEndpointWithResponseStream`: the container's body as events, each as soon as it is there.
//!
//! The framing is AWS's event stream (`application/vnd.amazon.eventstream`): a message is a length, its
//! headers, its payload and two checksums. A piece of the container's body is a `PayloadPart`, whose
//! payload is the piece itself; what goes wrong after the first one is an exception of the stream.

use std::sync::Arc;
use std::time::Duration;

use aws_smithy_eventstream::frame::write_message_to;
use aws_smithy_types::event_stream::{Header, HeaderValue as EventValue, Message};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::invoke::{call, failed};
use super::{Invocation, headers, internal, late};
use crate::endpoint::{Answer, Call, Container, Variant, original};
use crate::fault::{Fault, FaultKind};
use crate::options::Limits;
use crate::reply::{Pieces, Reply};
use crate::service::Service;

const API: &str = "InvokeEndpointWithResponseStream";
const EVENT_STREAM: HeaderValue = HeaderValue::from_static("application/vnd.amazon.eventstream");
/// The content type of the body that the events are made of.
const INNER_CONTENT_TYPE: HeaderName = HeaderName::from_static("x-amzn-sagemaker-content-type");
/// Events that wait for a client that is slow; the container waits with them.
const AHEAD: usize = 2;
/// Largest payload of an event.
const PART_BYTES: usize = 128 << 10;

pub(super) async fn answer(
    service: &Arc<Service>,
    variant: Arc<Variant>,
    invocation: &Invocation,
) -> Result<Reply, Fault> {
    let limits = &service.options.limits;
    let begun = Instant::now();
    let response = head(&variant, invocation, limits, begun + limits.invocation).await?;
    let mut client = headers::to_client(&invocation.headers, response.headers(), &variant.name);
    if let Some(content_type) = headers::content_type(response.headers()) {
        client.insert(INNER_CONTENT_TYPE, content_type);
    }
    client.insert(CONTENT_TYPE, EVENT_STREAM);
    let (sender, pieces) = mpsc::channel(AHEAD);
    tokio::spawn(tell(response.into_body(), sender, begun + limits.stream, limits.stream));
    let mut reply = Reply::new(Pieces(pieces).boxed_unsync());
    *reply.status_mut() = StatusCode::OK;
    *reply.headers_mut() = client;
    Ok(reply)
}

/// The container's answer, whose head is one of success and whose body is to come.
async fn head(
    variant: &Arc<Variant>,
    invocation: &Invocation,
    limits: &Limits,
    deadline: Instant,
) -> Result<Response<Incoming>, Fault> {
    if variant.many().is_some() {
        return Err(Fault::validation(
            "the endpoint serves many models, and a stream's request can't name one of them: use \
             InvokeEndpoint",
        ));
    }
    let container = variant.container()?;
    let call = call("/invocations".to_owned(), &invocation.headers, API, invocation);
    let sent = send(&container, call, limits, deadline).await?;
    match sent.status().is_success() {
        true => Ok(sent),
        false => Err(original(&whole(sent, limits, deadline).await?)),
    }
}

async fn send(
    container: &Container,
    call: Call,
    limits: &Limits,
    deadline: Instant,
) -> Result<Response<Incoming>, Fault> {
    match timeout_at(deadline, call.send(container.port(), limits.connect)).await {
        Ok(sent) => sent.map_err(|error| failed(&error)),
        Err(_) => Err(late(limits.invocation.as_secs())),
    }
}

/// A refusal, whole.
async fn whole(
    response: Response<Incoming>,
    limits: &Limits,
    deadline: Instant,
) -> Result<Answer, Fault> {
    let (parts, body) = response.into_parts();
    let read = Limited::new(body, limits.payload_bytes).collect();
    let body = match timeout_at(deadline, read).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Bytes::new(),
        Ok(Err(error)) => return Err(internal(&error.to_string())),
        Err(_) => return Err(late(limits.invocation.as_secs())),
    };
    Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
}

/// Tells the client of each piece of `body`. A client that is gone ends the container's work, since
/// the body is dropped.
async fn tell(mut body: Incoming, client: mpsc::Sender<Bytes>, deadline: Instant, limit: Duration) {
    let broken = loop {
        let next = tokio::select! {
            next = timeout_at(deadline, body.frame()) => next,
            () = client.closed() => return,
        };
        let frame = match next {
            Ok(None) => return,
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => {
                break exception("StreamBroken", &crate::fault::chain(&error));
            }
            Err(_) => {
                let message = format!("the stream was not over within {} s", limit.as_secs());
                break exception("ModelInvocationTimeExceeded", &message);
            }
        };
        let Ok(mut data) = frame.into_data() else { continue };
        while !data.is_empty() {
            let part = data.split_to(data.len().min(PART_BYTES));
            let Ok(event) = event(part) else { return };
            if client.send(event).await.is_err() {
                return;
            }
        }
    };
    if let Ok(broken) = broken {
        // A client that is gone needs no reason.
        let _ = client.send(broken).await;
    }
}

fn event(part: Bytes) -> Result<Bytes, Fault> {
    framed(Message::new_from_parts(
        vec![
            header(":message-type", "event"),
            header(":event-type", "PayloadPart"),
            header(":content-type", "application/octet-stream"),
        ],
        part,
    ))
}

fn exception(code: &str, message: &str) -> Result<Bytes, Fault> {
    let body = json!({ "Message": message, "ErrorCode": code }).to_string();
    framed(Message::new_from_parts(
        vec![
            header(":message-type", "exception"),
            header(":exception-type", "ModelStreamError"),
            header(":content-type", "application/json"),
        ],
        body,
    ))
}

fn header(name: &'static str, value: &'static str) -> Header {
    Header::new(name, EventValue::String(value.into()))
}

fn framed(message: Message) -> Result<Bytes, Fault> {
    let mut bytes = Vec::new();
    write_message_to(&message, &mut bytes)
        .map_err(|error| Fault::new(FaultKind::Internal, error.to_string()))?;
    Ok(Bytes::from(bytes))
}

#[cfg(test)]
mod tests {
    use aws_smithy_eventstream::frame::read_message_from;

    use super::*;

    #[test]
    fn an_event_holds_its_piece_as_it_is() {
        let bytes = event(Bytes::from_static(b"{\"outputs\": 1}\n")).unwrap();
        let message = read_message_from(bytes).unwrap();
        assert_eq!(message.payload().as_ref(), b"{\"outputs\": 1}\n");
        let types: Vec<&str> =
            message.headers().iter().map(|h| h.value().as_string().unwrap().as_str()).collect();
        assert_eq!(types, ["event", "PayloadPart", "application/octet-stream"]);
        let broken = read_message_from(exception("StreamBroken", "x").unwrap()).unwrap();
        assert_eq!(
            broken.payload().as_ref(),
            b"{\"Message\":\"x\",\"ErrorCode\":\"StreamBroken\"}"
        );
    }
}
