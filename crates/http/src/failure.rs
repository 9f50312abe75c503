//! What can go wrong with a request, and the one table that gives each failure its status.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use crate::json::server_json;
use crate::request_id::RequestId;
use crate::respond::{NEVER_CACHED, REQUEST_ID};

pub(crate) mod openai;

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
    Unparsed,
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
    pub(crate) const ALL: [Self; 20] = [
        Self::RouteNotFound,
        Self::MethodNotAllowed,
        Self::InvalidMessage,
        Self::BodyTooLarge,
        Self::BodyTimeout,
        Self::BadRequest,
        Self::Untranslatable,
        Self::Unparsed,
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
    /// row for a translator failure; 424 is for what a handler answers. A handler's own answer
    /// passes through without coming here; what LMI's handlers refuse to read is `Unparsed`.
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
            Self::Unparsed => (Fixed(StatusCode::FAILED_DEPENDENCY), "TranslateException", Request),
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

impl FailureKind {
    /// The kind's name in metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::RouteNotFound => "route_not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::InvalidMessage => "invalid_message",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyTimeout => "body_timeout",
            Self::BadRequest => "bad_request",
            Self::Untranslatable => "untranslatable",
            Self::Unparsed => "unparsed",
            Self::ModelNotFound => "model_not_found",
            Self::IllegalArgument => "illegal_argument",
            Self::QueueFull => "queue_full",
            Self::NotReady => "not_ready",
            Self::ShuttingDown => "shutting_down",
            Self::TimedOut => "timed_out",
            Self::OutOfMemory => "out_of_memory",
            Self::ModelUnusable => "model_unusable",
            Self::EngineFailed => "engine_failed",
            Self::Cancelled => "cancelled",
            Self::Unserialisable => "unserialisable",
            Self::Internal => "internal",
        }
    }

    /// After how many seconds the same request may well succeed.
    pub(crate) fn retry_after(self) -> Option<u8> {
        match self {
            Self::QueueFull | Self::TimedOut | Self::Cancelled => Some(1),
            Self::NotReady | Self::ShuttingDown => Some(5),
            _ => None,
        }
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
    /// The field that is wrong, where it is one.
    pub(crate) field: Option<String>,
    /// How the body is written where the route leaves a choice.
    pub(crate) form: ErrorForm,
}

/// How an error's body is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ErrorForm {
    /// DJL Serving's: `{"code", "type", "message"}`.
    #[default]
    Djl,
    /// LMI's: `{"error", "code"}`, with an empty answer around it where generation had begun.
    Lmi,
    /// OpenAI's: `{"error": {"message", "type", "param", "code"}}`.
    OpenAi,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    code: u16,
    r#type: &'a str,
    message: &'a str,
}

impl ApiError {
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            is_logged: false,
            field: None,
            form: ErrorForm::default(),
        }
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

    /// The same, its body in `form`.
    pub(crate) fn written_as(self, form: ErrorForm) -> Self {
        Self { form, ..self }
    }

    /// The reply: the contract's error body under the status that `codes` gives it. Logged here as
    /// loudly as its blame asks for, unless it was before: then quietly, for the request's id.
    pub(crate) fn render(&self, codes: &Codes) -> Response {
        let row = self.kind.row();
        let status = match self.form {
            ErrorForm::OpenAi => openai::status(self.kind),
            ErrorForm::Djl | ErrorForm::Lmi => row.status.status(codes),
        };
        self.log(row.blame, status);
        let body = match self.form {
            ErrorForm::Djl => server_json(&ErrorBody {
                code: status.as_u16(),
                r#type: row.type_name,
                message: &self.message,
            }),
            ErrorForm::Lmi => self.lmi_body(status).to_string().into_bytes(),
            ErrorForm::OpenAi => json!({ "error": openai::object(self) }).to_string().into_bytes(),
        };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.kind.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(u16::from(seconds)));
        }
        response
    }

    fn log(&self, blame: Blame, status: StatusCode) {
        let status = status.as_u16();
        match blame {
            _ if self.is_logged => tracing::debug!(status, kind = ?self.kind, "{}", self.message),
            Blame::Request => tracing::debug!(status, kind = ?self.kind, "{}", self.message),
            Blame::Operator => tracing::warn!(status, kind = ?self.kind, "{}", self.message),
            Blame::Engine | Blame::Ourselves => {
                tracing::error!(status, kind = ?self.kind, "{}", self.message);
            }
        }
    }

    fn lmi_body(&self, status: StatusCode) -> Value {
        let code = status.as_u16();
        match self.kind.row().blame {
            Blame::Engine | Blame::Ourselves => json!({
                "generated_text": null,
                "error": self.message,
                "code": code,
                "details": { "finish_reason": "error" },
            }),
            Blame::Request | Blame::Operator => json!({ "error": self.message, "code": code }),
        }
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
