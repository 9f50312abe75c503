//! Replies that the server itself makes.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Serialize;

use crate::json::server_json;

/// A JSON reply in the server's dialect.
pub(crate) fn json_response(status: StatusCode, value: &impl Serialize) -> Response {
    let mut response = Response::new(Body::from(server_json(value)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
