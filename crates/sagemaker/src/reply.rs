//! Replies, and what their bodies are made of.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::fault::{Api, Fault};

/// A reply's body. It can't fail: what goes wrong in a stream is an event of it.
pub(crate) type ReplyBody = UnsyncBoxBody<Bytes, Infallible>;

/// A reply.
pub(crate) type Reply = Response<ReplyBody>;

const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

/// A whole body.
pub(crate) fn whole(status: u16, content_type: Option<&'static str>, body: Bytes) -> Reply {
    let mut reply = Response::new(Full::new(body).boxed_unsync());
    *reply.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Some(content_type) = content_type {
        reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    reply
}

/// A JSON answer in `api`'s content type.
pub(crate) fn of_json(api: Api, status: u16, body: &Value) -> Reply {
    whole(status, Some(content_type(api)), Bytes::from(body.to_string()))
}

/// A refusal in `api`'s form.
pub(crate) fn of_fault(api: Api, fault: &Fault) -> Reply {
    let code = fault.code(api);
    let body = match (api, &fault.original) {
        (Api::Control, _) => json!({ "__type": code, "message": fault.message }),
        (Api::Runtime, None) => {
            json!({ "Code": code, "Message": fault.message, "message": fault.message })
        }
        (Api::Runtime, Some(original)) => json!({
            "ErrorCode": "CLIENT_ERROR_FROM_MODEL",
            "LogStreamArn": "",
            "Message": fault.message,
            "message": fault.message,
            "OriginalMessage": original.message,
            "OriginalStatusCode": original.status,
        }),
    };
    let mut reply = of_json(api, fault.status(), &body);
    reply.headers_mut().insert(ERROR_TYPE, HeaderValue::from_static(code));
    reply
}

/// Adds the request's id, which every reply of the service has.
pub(crate) fn with_request_id(mut reply: Reply, id: &str) -> Reply {
    if let Ok(id) = HeaderValue::from_str(id) {
        reply.headers_mut().insert(REQUEST_ID, id);
    }
    reply
}

fn content_type(api: Api) -> &'static str {
    match api {
        Api::Control => "application/x-amz-json-1.1",
        Api::Runtime => "application/json",
    }
}

/// A body of pieces that somebody else sends; it ends when the sender is dropped.
pub(crate) struct Pieces(pub(crate) mpsc::Receiver<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}
