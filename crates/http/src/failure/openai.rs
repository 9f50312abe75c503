//! Errors in OpenAI's words.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{ApiError, FailureKind};

/// The status under OpenAI's routes, where the operator's settings for DJL's clients do not count:
/// its clients retry by status.
pub(crate) fn status(kind: FailureKind) -> StatusCode {
    match kind {
        FailureKind::RouteNotFound | FailureKind::ModelNotFound => StatusCode::NOT_FOUND,
        FailureKind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        FailureKind::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        FailureKind::InvalidMessage
        | FailureKind::BodyTimeout
        | FailureKind::BadRequest
        | FailureKind::Untranslatable
        | FailureKind::Unparsed
        | FailureKind::IllegalArgument => StatusCode::BAD_REQUEST,
        FailureKind::QueueFull => StatusCode::TOO_MANY_REQUESTS,
        FailureKind::NotReady
        | FailureKind::ShuttingDown
        | FailureKind::TimedOut
        | FailureKind::OutOfMemory
        | FailureKind::ModelUnusable
        | FailureKind::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
        FailureKind::EngineFailed | FailureKind::Unserialisable | FailureKind::Internal => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

/// The error object: what stands under `error`, in a body or in a stream's last frame.
pub(crate) fn object(error: &ApiError) -> Value {
    let status = status(error.kind);
    let kind = match status {
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    };
    let code = match error.kind {
        FailureKind::ModelNotFound => Some("model_not_found"),
        FailureKind::QueueFull => Some("rate_limit_exceeded"),
        FailureKind::NotReady | FailureKind::ModelUnusable => Some("model_unavailable"),
        FailureKind::ShuttingDown => Some("shutting_down"),
        FailureKind::TimedOut => Some("timeout"),
        FailureKind::OutOfMemory => Some("out_of_memory"),
        FailureKind::BodyTooLarge => Some("request_too_large"),
        FailureKind::RouteNotFound => Some("unknown_url"),
        FailureKind::MethodNotAllowed => Some("method_not_allowed"),
        _ => None,
    };
    json!({ "message": error.message, "type": kind, "param": error.field, "code": code })
}
