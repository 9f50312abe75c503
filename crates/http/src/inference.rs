//! text-embeddings-inference's routes: `/embed` and `/rerank`.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use drivetrain_host::{HostError, Input, ModelHandle, ModelStatus, Task, TaskRequest};
use serde::Serialize;
use serde_json::{Map, Value};
use tracing::Span;
use utoipa::ToSchema;

use crate::accept::ReplyFormat;
use crate::adapters::through;
use crate::app::App;
use crate::call::Call;
use crate::documents::DjlError;
use crate::failure::ApiError;
use crate::input::ReplyShape;
use crate::items::{TaskItems, decode_object};
use crate::reply;
use crate::request_id::RequestId;

/// The body of `/embed`.
#[derive(Serialize, ToSchema)]
pub(crate) struct EmbedBody {
    /// A text, a list of texts, or token ids in their place.
    #[schema(value_type = Object)]
    inputs: Value,
    /// Whether vectors are made of length 1, beside what the model does itself.
    normalize: Option<bool>,
    /// The name of one of the model's prompts, which is put before each text.
    prompt_name: Option<String>,
    /// The first columns of each vector alone, made of length 1.
    dimensions: Option<u32>,
}

/// The body of `/rerank`.
#[derive(Serialize, ToSchema)]
pub(crate) struct RerankBody {
    /// What is asked.
    query: String,
    /// The texts to be compared with it.
    texts: Vec<String>,
    /// Whether scores are the model's logits, in place of numbers from 0 to 1.
    raw_scores: Option<bool>,
    /// Whether the texts are told, too.
    return_text: Option<bool>,
    /// Whether texts that are too long are cut, which they are unless this is false.
    truncate: Option<bool>,
}

/// A text's place and score.
#[derive(Serialize, ToSchema)]
pub(crate) struct Ranked<'a> {
    /// Its place in the request.
    pub(crate) index: usize,
    /// The text, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<&'a str>,
    /// How well it answers.
    pub(crate) score: f64,
}

/// `POST /embed`: a vector for each text.
#[utoipa::path(
    post,
    path = "/embed",
    tag = "inference",
    request_body(content = EmbedBody, content_type = "application/json"),
    responses(
        (status = 200, description = "A list of vectors", body = Vec<Vec<f32>>),
        (status = 400, description = "The request is wrong", body = DjlError),
        (status = 404, description = "No such model", body = DjlError),
        (status = 503, description = "Not now", body = DjlError),
    )
)]
pub(crate) async fn embed(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    call: Call,
) -> Result<Response, ApiError> {
    const FIELDS: [&str; 6] =
        ["normalize", "truncate", "truncation_direction", "prompt_name", "prompt", "dimensions"];
    let mut body = read(&call)?;
    let mut parameters = Map::new();
    for name in FIELDS {
        if let Some(value) = body.remove(name) {
            parameters.insert(name.to_owned(), value);
        }
    }
    let inputs = body.remove("inputs").unwrap_or(Value::Null);
    let items = TaskItems::of(inputs, parameters)?;
    answer(&app, &call, &id, Task::SentenceEmbedding, items).await
}

/// `POST /rerank`: the texts' places, best first.
#[utoipa::path(
    post,
    path = "/rerank",
    tag = "inference",
    request_body(content = RerankBody, content_type = "application/json"),
    responses(
        (status = 200, description = "Places and scores, best first", body = Vec<Ranked>),
        (status = 400, description = "The request is wrong", body = DjlError),
        (status = 404, description = "No such model", body = DjlError),
        (status = 503, description = "Not now", body = DjlError),
    )
)]
pub(crate) async fn rerank(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    call: Call,
) -> Result<Response, ApiError> {
    let mut body = read(&call)?;
    let mut parameters = Map::new();
    for name in ["raw_scores", "return_text", "truncate", "truncation_direction"] {
        if let Some(value) = body.remove(name) {
            parameters.insert(name.to_owned(), value);
        }
    }
    let input = |name: &str| body.get(name).map(|value| (name.to_owned(), value.clone()));
    let object = ["query", "texts"].into_iter().filter_map(input).collect::<Map<_, _>>();
    if object.is_empty() {
        return Err(ApiError::bad_request("the body has no query and no texts: give both"));
    }
    let items = TaskItems { inputs: vec![Input::Object(object)], parameters, is_single: true };
    answer(&app, &call, &id, Task::Rerank, items).await
}

fn read(call: &Call) -> Result<Map<String, Value>, ApiError> {
    let Some((content_type, body)) = call.json_body() else {
        return Err(ApiError::bad_request(
            "content-type: expected application/json, without a content-encoding",
        ));
    };
    decode_object(&content_type, &body)
}

async fn answer(
    app: &App,
    call: &Call,
    id: &RequestId,
    task: Task,
    items: TaskItems,
) -> Result<Response, ApiError> {
    let model = find(app, call)?;
    Span::current().record("model", model.name());
    if let ModelStatus::Loading { .. } | ModelStatus::Unloading = model.status() {
        return Err(HostError::NotReady { model: model.name().to_owned() }.into());
    }
    match model.task() {
        Some(own) if own != task => {
            return Err(ApiError::bad_request(format!(
                "model {} does {own}: this route needs option.task={task}",
                model.name()
            )));
        }
        _ => {}
    }
    let model = through(call, model)?;
    let request = TaskRequest {
        id: id.as_str().to_owned(),
        inputs: items.inputs,
        is_single: items.is_single,
        parameters: items.parameters,
        deadline: None,
    };
    let answer = model.submit(request).await.map_err(ApiError::of_task)?;
    reply::respond(answer, ReplyShape::List, ReplyFormat::Json).await
}

fn find(app: &App, call: &Call) -> Result<ModelHandle, ApiError> {
    Ok(match call.parameter("model_name") {
        Some(name) => app.host.model(&name, call.parameter("model_version").as_deref())?,
        None => app.host.default_model()?,
    })
}
