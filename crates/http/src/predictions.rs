//! DJL Serving's own inference route: `/predictions/{name}[/{version}]`.

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

use crate::answer::answer;
use crate::app::App;
use crate::call::Call;
use crate::documents::{DjlError, InvocationBody};
use crate::failure::ApiError;
use crate::generation::LmiReply;
use crate::model_path::ModelPath;
use crate::request_id::RequestId;
use crate::wire::json_response;

/// Any verb but `OPTIONS` on `/predictions/{name}[/{version}]`.
#[utoipa::path(
    method(get, post, put),
    path = "/predictions/{name}",
    tag = "inference",
    params(("name" = String, Path, description = "The model")),
    request_body(content = InvocationBody, content_type = "application/json"),
    responses(
        (status = 200, description = "The answer, in the form that the task or the settings say",
            body = LmiReply),
        (status = 400, description = "The request is wrong", body = DjlError),
        (status = 404, description = "No such model", body = DjlError),
        (status = 503, description = "The queue is full, or the model is not ready",
            body = DjlError),
    )
)]
pub(crate) async fn predict(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    path: ModelPath,
    call: Call,
) -> Result<Response, ApiError> {
    let model = app.host.model(&path.name, path.version.as_deref())?;
    answer(&app, &model, &id, call).await
}

/// `OPTIONS` on `/` and on the inference routes.
#[utoipa::path(
    options,
    path = "/",
    tag = "inference",
    responses((status = 200, description = "An empty object"))
)]
pub(crate) async fn options() -> Response {
    json_response(StatusCode::OK, &json!({}))
}
