//! DJL Serving's own inference route: `/predictions/{name}[/{version}]`.

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

use crate::answer::answer;
use crate::app::App;
use crate::call::Call;
use crate::failure::ApiError;
use crate::model_path::ModelPath;
use crate::request_id::RequestId;
use crate::wire::json_response;

/// Any verb but `OPTIONS` on `/predictions/{name}[/{version}]`.
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
pub(crate) async fn options() -> Response {
    json_response(StatusCode::OK, &json!({}))
}
