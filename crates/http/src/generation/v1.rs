//! OpenAI's routes.

mod embeddings;
mod models;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::Response;
use drivetrain_host::{HostError, ModelHandle, ModelStatus, Task};
use tracing::Span;

#[cfg(test)]
pub(crate) use embeddings::EmbeddingRequest;
pub(crate) use embeddings::{__path_embeddings, EMBEDDING, EmbeddingList, embeddings};
pub(crate) use models::{__path_list, __path_one, ModelCard, ModelCards, list, one};

use super::chat::{ChatAnswer, ChatRequest};
use super::completions::{Completed, CompletionRequest};
use super::invoke::{chat, completion, glance, keeps_parts, read_object};
use super::openai::find_model;
use super::schema::Invalid;
use super::stream::Framing;
use crate::adapters::through;
use crate::app::App;
use crate::call::Call;
use crate::documents::{ChatBody, CompletionBody, OpenAiError};
use crate::failure::ApiError;
use crate::request_id::RequestId;
use crate::{raw, sagemaker};

/// `POST /v1/completions`.
#[utoipa::path(
    post,
    path = "/v1/completions",
    tag = "openai",
    request_body(content = CompletionBody, content_type = "application/json"),
    responses(
        (status = 200, description = "The completion; with `stream`, chunks as server-sent events",
            body = Completed),
        (status = 400, description = "A field is wrong; `param` names it", body = OpenAiError),
        (status = 404, description = "No such model", body = OpenAiError),
        (status = 429, description = "As many requests wait as may; see Retry-After",
            body = OpenAiError),
        (status = 503, description = "Not now; see Retry-After", body = OpenAiError),
    )
)]
pub(crate) async fn completions(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    call: Call,
) -> Result<Response<Body>, ApiError> {
    if let Some(model) = request_model(&app, &call).await? {
        return raw::answer(&model, &id, call, app.frame_timeout).await;
    }
    let request = CompletionRequest::read(read_object(&call).await?).map_err(invalid)?;
    let model = through(&call, generating(&app, &call, request.model.as_deref())?)?;
    let framing = request.is_streamed.then_some(Framing::Sse);
    completion(&app, &model, &id, request, framing).await
}

/// `POST /v1/chat/completions`. A body that is no conversation is answered as on `/invocations`, of
/// which this route is DJL's alias.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    tag = "openai",
    request_body(content = ChatBody, content_type = "application/json"),
    responses(
        (status = 200, description = "The answer; with `stream`, chunks as server-sent events",
            body = ChatAnswer),
        (status = 400, description = "A field is wrong; `param` names it", body = OpenAiError),
        (status = 404, description = "No such model", body = OpenAiError),
        (status = 429, description = "As many requests wait as may; see Retry-After",
            body = OpenAiError),
        (status = 503, description = "Not now; see Retry-After", body = OpenAiError),
    )
)]
pub(crate) async fn chat_completions(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    call: Call,
) -> Result<Response<Body>, ApiError> {
    if let Some(model) = request_model(&app, &call).await? {
        return raw::answer(&model, &id, call, app.frame_timeout).await;
    }
    let is_chat = match glance(&call).await? {
        Some(keys) => keys.messages || !keys.inputs,
        None => false,
    };
    if !is_chat {
        return sagemaker::invocations(State(app), Extension(id), call).await;
    }
    let object = read_object(&call).await?;
    let name = object.get("model").and_then(serde_json::Value::as_str).map(str::to_owned);
    let model = find(&app, &call, name.as_deref())?;
    let keeps_parts = model.config().is_some_and(|config| keeps_parts(&config));
    let request = ChatRequest::read(object, keeps_parts).map_err(invalid)?;
    let model = through(&call, generating(&app, &call, request.model.as_deref())?)?;
    let framing = request.is_streamed.then_some(Framing::Sse);
    chat(&app, &model, &id, request, framing).await
}

fn invalid(invalid: Invalid) -> ApiError {
    ApiError { field: Some(invalid.field), ..ApiError::bad_request(invalid.message) }
}

/// The model that the query, a header or the body names.
fn find(app: &App, call: &Call, name: Option<&str>) -> Result<ModelHandle, ApiError> {
    match call.parameter("model_name") {
        Some(name) => Ok(app.host.model(&name, call.parameter("model_version").as_deref())?),
        None => find_model(app, name),
    }
}

/// The model, if it answers whole requests itself: then it reads the body, too.
async fn request_model(app: &App, call: &Call) -> Result<Option<ModelHandle>, ApiError> {
    let name = glance(call).await?.and_then(|keys| keys.model);
    Ok(find(app, call, name.as_deref()).ok().filter(ModelHandle::is_request_model))
}

/// The model, ready for `fits`.
fn ready(
    app: &App,
    call: &Call,
    name: Option<&str>,
    fits: impl Fn(Task) -> Result<(), String>,
) -> Result<ModelHandle, ApiError> {
    let model = find(app, call, name)?;
    Span::current().record("model", model.name());
    if let ModelStatus::Loading { .. } | ModelStatus::Unloading = model.status() {
        return Err(HostError::NotReady { model: model.name().to_owned() }.into());
    }
    if let Some(Err(message)) = model.task().map(fits) {
        let message = format!("model {} {message}", model.name());
        return Err(ApiError { field: Some("model".to_owned()), ..ApiError::bad_request(message) });
    }
    Ok(model)
}

fn generating(app: &App, call: &Call, name: Option<&str>) -> Result<ModelHandle, ApiError> {
    ready(app, call, name, |task| match task.generates() {
        true => Ok(()),
        false => Err(format!("does {task} and generates no text: ask /v1/embeddings")),
    })
}
