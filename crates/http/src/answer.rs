//! From a call to its answer, whatever route it came by.

use axum::response::Response;
use drivetrain_host::{HostError, ModelHandle, ModelStatus, Task, TaskRequest};
use tracing::Span;

use crate::accept::accept;
use crate::adapters::through;
use crate::app::App;
use crate::call::Call;
use crate::failure::ApiError;
use crate::input::ReplyShape;
use crate::items::{TaskItems, takes_items};
use crate::request_id::RequestId;
use crate::{generation, raw, reply};

/// Has `model` answer `call`.
///
/// # Errors
/// The call is nothing that the model takes, or the model could not answer.
pub(crate) async fn answer(
    app: &App,
    model: &ModelHandle,
    id: &RequestId,
    mut call: Call,
) -> Result<Response, ApiError> {
    Span::current().record("model", model.name());
    // A model that still loads does not know yet what it takes.
    if let ModelStatus::Loading { .. } | ModelStatus::Unloading = model.status() {
        return Err(HostError::NotReady { model: model.name().to_owned() }.into());
    }
    if model.is_request_model() {
        return raw::answer(model, id, call, app.frame_timeout).await;
    }
    let model = &through(&call, model.clone())?;
    if model.task().is_some_and(Task::generates)
        && let Some(response) = generation::answer(app, model, id, &mut call).await?
    {
        return Ok(response);
    }
    let format = accept(call.headers())?;
    let task = model.task().filter(|task| takes_items(*task));
    let (items, shape) = match task {
        Some(task) => (call.task_items(task).await?, ReplyShape::List),
        None => {
            let input = call.task_input().await?;
            let shape = input.shape;
            (TaskItems::from(input), shape)
        }
    };
    let request = TaskRequest {
        id: id.as_str().to_owned(),
        inputs: items.inputs,
        is_single: items.is_single,
        parameters: items.parameters,
        deadline: None,
    };
    let answer = model.submit(request).await.map_err(ApiError::of_task)?;
    reply::respond(answer, shape, format).await
}
