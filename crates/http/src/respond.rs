//! What every reply gets: its request id, the contract's headers, and an error's rendering.

use std::panic::AssertUnwindSafe;

use axum::body::HttpBody;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use tracing::Instrument;

use crate::app::App;
use crate::failure::{ApiError, ErrorForm, FailureKind};
use crate::metrics::{count_error, count_reply};
use crate::request_id::RequestId;

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Keeps every reply out of caches.
pub(crate) const NEVER_CACHED: [(HeaderName, &str); 3] = [
    (header::PRAGMA, "no-cache"),
    (header::CACHE_CONTROL, "no-cache; no-store, must-revalidate, private"),
    (header::EXPIRES, "Thu, 01 Jan 1970 00:00:00 GMT"),
];

/// Wraps every route, the ones that do not exist included.
pub(crate) async fn finish(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let id = RequestId::of(request.headers(), &app.request_id_header);
    request.extensions_mut().insert(id.clone());
    let span = tracing::info_span!(
        "request",
        id = id.as_str(),
        route = request.uri().path(),
        model = tracing::field::Empty,
    );
    let is_openai = request.uri().path().starts_with("/v1/");
    // A bug in a handler answers its own request and no more.
    let mut response = AssertUnwindSafe(next.run(request))
        .catch_unwind()
        .instrument(span.clone())
        .await
        .unwrap_or_else(|_| {
            let message = "the server failed to handle this request; its log says where";
            ApiError::new(FailureKind::Internal, message).into_response()
        });
    if let Some(mut error) = response.extensions_mut().remove::<ApiError>() {
        if is_openai {
            error.form = ErrorForm::OpenAi;
        }
        count_error(&error);
        let allow = response.headers_mut().remove(header::ALLOW);
        response = span.in_scope(|| error.render(&app.codes));
        if let Some(allow) = allow {
            response.headers_mut().insert(header::ALLOW, allow);
        }
    }
    count_reply(response.status());
    add_headers(&app, &id, &mut response);
    response
}

fn add_headers(app: &App, id: &RequestId, response: &mut Response) {
    let closes = response.status() >= StatusCode::BAD_REQUEST
        && response.body().size_hint().exact().is_some();
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id.header_value());
    for (name, value) in NEVER_CACHED {
        headers.insert(name, HeaderValue::from_static(value));
    }
    for (name, value) in &app.cors {
        headers.insert(name.clone(), value.clone());
    }
    if closes {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}
