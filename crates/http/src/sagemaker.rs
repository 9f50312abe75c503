//! SageMaker's routes: `/invocations`, and `/models/{name}/invoke` of multi-model endpoints.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;

use crate::answer::answer;
use crate::app::App;
use crate::call::Call;
use crate::documents::{DjlError, InvocationBody};
use crate::failure::ApiError;
use crate::generation::LmiReply;
use crate::model_path::ModelPath;
use crate::request_id::RequestId;

/// `POST /invocations`: the model that `model_name` names, or the only one loaded at start-up.
#[utoipa::path(
    post,
    path = "/invocations",
    tag = "inference",
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
pub(crate) async fn invocations(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    call: Call,
) -> Result<Response, ApiError> {
    let model = match call.parameter("model_name") {
        Some(name) => app.host.model(&name, call.parameter("model_version").as_deref())?,
        None => app.host.default_model()?,
    };
    answer(&app, &model, &id, call).await
}

/// `POST /models/{name}/invoke`.
#[utoipa::path(
    post,
    path = "/models/{name}/invoke",
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
pub(crate) async fn invoke(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    path: ModelPath,
    call: Call,
) -> Result<Response, ApiError> {
    let version = call.parameter("model_version");
    let model = app.host.model(&path.name, version.as_deref())?;
    answer(&app, &model, &id, call).await
}
