//! What can go wrong with a request, and the one table that gives each failure its status.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::json::server_json;
use crate::request_id::RequestId;
use crate::respond::{NEVER_CACHED, REQUEST_ID};

const INVALID_MESSAGE: &str = "Invalid HTTP message.";

/// Whose fault a failure is: what gets logged, and how loudly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The client can do better.
    Request,
    /// The operator can: model files, options, limits, load.
    Operator,
    /// The engine broke.
    Engine,
    /// We did.
    Ourselves,
}

/// Where a failure's status comes from. All but `Fixed` are the operator's to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StatusRule {
    /// The same everywhere.
    Fixed(StatusCode),
    /// `bad_request_http_code`.
    BadRequest,
    /// `wlm_error_http_code`.
    Worker,
    /// `throttle_error_http_code`.
    Throttle,
    /// `server_error_http_code`.
    Server,
}

/// The statuses that an operator can set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Codes {
    pub(crate) bad_request: StatusCode,
    pub(crate) worker: StatusCode,
    pub(crate) throttle: StatusCode,
    pub(crate) server: StatusCode,
}

/// A kind of failure. Each is one row of [`FailureKind::row`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    RouteNotFound,
    MethodNotAllowed,
    InvalidMessage,
    BodyTooLarge,
    BodyTimeout,
    BadRequest,
    Untranslatable,
    ModelNotFound,
    IllegalArgument,
    QueueFull,
    NotReady,
    ShuttingDown,
    TimedOut,
    OutOfMemory,
    ModelUnusable,
    EngineFailed,
    Cancelled,
    Unserialisable,
    Internal,
}

/// One row: status, the `type` of the error body, and whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) status: StatusRule,
    pub(crate) type_name: &'static str,
    pub(crate) blame: Blame,
}

impl FailureKind {
    /// Every kind, for the test that holds each row.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 19] = [
        Self::RouteNotFound,
        Self::MethodNotAllowed,
        Self::InvalidMessage,
        Self::BodyTooLarge,
        Self::BodyTimeout,
        Self::BadRequest,
        Self::Untranslatable,
        Self::ModelNotFound,
        Self::IllegalArgument,
        Self::QueueFull,
        Self::NotReady,
        Self::ShuttingDown,
        Self::TimedOut,
        Self::OutOfMemory,
        Self::ModelUnusable,
        Self::EngineFailed,
        Self::Cancelled,
        Self::Unserialisable,
        Self::Internal,
    ];

    /// The table. A body that a native task cannot read is 400 `TranslateException`, the contract's
    /// row for a translator failure; 424 is for what a handler answers, and a handler's answer
    /// passes through without coming here.
    pub(crate) fn row(self) -> Row {
        use Blame::{Engine, Operator, Ourselves, Request};
        use StatusRule::{BadRequest, Fixed, Server, Throttle, Worker};
        let (status, type_name, blame) = match self {
            Self::RouteNotFound => {
                (Fixed(StatusCode::NOT_FOUND), "ResourceNotFoundException", Request)
            }
            Self::MethodNotAllowed => {
                (Fixed(StatusCode::METHOD_NOT_ALLOWED), "MethodNotAllowedException", Request)
            }
            Self::InvalidMessage => {
                (Fixed(StatusCode::BAD_REQUEST), "BadRequestException", Request)
            }
            Self::BodyTooLarge => {
                (Fixed(StatusCode::PAYLOAD_TOO_LARGE), "BadRequestException", Request)
            }
            Self::BodyTimeout => (BadRequest, "BadRequestException", Request),
            Self::BadRequest => (BadRequest, "BadRequestException", Request),
            Self::Untranslatable => (BadRequest, "TranslateException", Request),
            Self::ModelNotFound => {
                (Fixed(StatusCode::NOT_FOUND), "ModelNotFoundException", Request)
            }
            Self::IllegalArgument => {
                (Fixed(StatusCode::CONFLICT), "IllegalArgumentException", Request)
            }
            Self::QueueFull => (Throttle, "WlmCapacityException", Operator),
            Self::NotReady => (Worker, "WlmException", Operator),
            Self::ShuttingDown => {
                (Fixed(StatusCode::SERVICE_UNAVAILABLE), "ServiceUnavailableException", Operator)
            }
            Self::TimedOut => (BadRequest, "TranslateException", Operator),
            Self::OutOfMemory => {
                (Fixed(StatusCode::INSUFFICIENT_STORAGE), "WlmOutOfMemoryException", Operator)
            }
            Self::ModelUnusable => (Worker, "WlmException", Operator),
            Self::EngineFailed => (Server, "EngineException", Engine),
            Self::Cancelled => (Worker, "WlmException", Operator),
            Self::Unserialisable => (Server, "TranslateException", Engine),
            Self::Internal => (Server, "InternalServerException", Ourselves),
        };
        Row { status, type_name, blame }
    }
}

impl StatusRule {
    fn status(self, codes: &Codes) -> StatusCode {
        match self {
            Self::Fixed(status) => status,
            Self::BadRequest => codes.bad_request,
            Self::Worker => codes.worker,
            Self::Throttle => codes.throttle,
            Self::Server => codes.server,
        }
    }
}

/// A failed request: its kind and what the client is told.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) kind: FailureKind,
    pub(crate) message: String,
    /// Whether the log has it already, so that it need not be said again.
    pub(crate) is_logged: bool,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    code: u16,
    r#type: &'a str,
    message: &'a str,
}

impl ApiError {
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), is_logged: false }
    }

    /// A request that asks for something this server does not do.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(FailureKind::BadRequest, message)
    }

    /// A body that the task cannot read.
    pub(crate) fn untranslatable(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Untranslatable, message)
    }

    /// The request is no HTTP that can be decoded.
    pub(crate) fn invalid_message() -> Self {
        Self::new(FailureKind::InvalidMessage, INVALID_MESSAGE)
    }

    pub(crate) fn route_not_found() -> Self {
        Self::new(
            FailureKind::RouteNotFound,
            "Requested resource is not found, please refer to API document.",
        )
    }

    pub(crate) fn method_not_allowed() -> Self {
        Self::new(
            FailureKind::MethodNotAllowed,
            "Requested method is not allowed, please refer to API document.",
        )
    }

    /// The reply: the contract's error body under the status that `codes` gives it. Logged here as
    /// loudly as its blame asks for, unless it was before: then quietly, for the request's id.
    pub(crate) fn render(&self, codes: &Codes) -> Response {
        let row = self.kind.row();
        let status = row.status.status(codes);
        match row.blame {
            _ if self.is_logged => {
                tracing::debug!(status = status.as_u16(), kind = ?self.kind, "{}", self.message);
            }
            Blame::Request => {
                tracing::debug!(status = status.as_u16(), kind = ?self.kind, "{}", self.message);
            }
            Blame::Operator => {
                tracing::warn!(status = status.as_u16(), kind = ?self.kind, "{}", self.message);
            }
            Blame::Engine | Blame::Ourselves => {
                tracing::error!(status = status.as_u16(), kind = ?self.kind, "{}", self.message);
            }
        }
        let body =
            ErrorBody { code: status.as_u16(), r#type: row.type_name, message: &self.message };
        let mut response = Response::new(Body::from(server_json(&body)));
        *response.status_mut() = status;
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// The configured codes are not at hand here, so the error travels in the response's extensions;
/// the response layer renders it.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// The reply to bytes that are no HTTP request, as it goes to the socket: hyper refuses those by
/// itself, before there is a request to answer.
pub(crate) fn own_refusal_reply(status: u16) -> Vec<u8> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    let row = FailureKind::InvalidMessage.row();
    let body = server_json(&ErrorBody {
        code: status.as_u16(),
        r#type: row.type_name,
        message: INVALID_MESSAGE,
    });
    let mut reply = format!(
        "HTTP/1.1 {} {}\r\n{REQUEST_ID}: {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n",
        status.as_u16(),
        status.canonical_reason().unwrap_or_default(),
        RequestId::fresh().as_str(),
        body.len()
    );
    for (name, value) in NEVER_CACHED {
        reply.push_str(&format!("{name}: {value}\r\n"));
    }
    reply.push_str("\r\n");
    let mut reply = reply.into_bytes();
    reply.extend_from_slice(&body);
    reply
}

#[cfg(test)]
mod tests;
