//! `/v1/models`: which models there are.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, Response, header};
use drivetrain_host::{ModelHandle, ModelStatus};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::documents::OpenAiError;
use crate::failure::ApiError;
use crate::generation::openai::{aliases, find_model};

/// The models.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelCards {
    /// `list`.
    object: &'static str,
    data: Vec<ModelCard>,
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelCard {
    /// What `model` says in a request.
    id: String,
    /// `model`.
    object: &'static str,
    /// When the server started, in seconds of Unix time.
    created: u64,
    /// `drivetrain`.
    owned_by: &'static str,
    /// The name it is served under, where `id` is another of its names.
    root: String,
    /// The model that an adapter belongs to; null for a model.
    parent: Option<String>,
    /// Tokens of prompt and answer together.
    max_model_len: Option<u32>,
}

impl ModelCard {
    fn new(app: &App, model: &ModelHandle, id: String) -> Self {
        Self {
            id,
            object: "model",
            created: app.started,
            owned_by: "drivetrain",
            root: model.name().to_owned(),
            parent: None,
            max_model_len: model.token_info().map(|info| info.max_positions),
        }
    }
}

/// `GET /v1/models`: the models that can be asked, by each of their names.
#[utoipa::path(
    get,
    path = "/v1/models",
    tag = "openai",
    responses((status = 200, description = "The models", body = ModelCards))
)]
pub(crate) async fn list(State(app): State<App>) -> Result<Response<Body>, ApiError> {
    let mut data: Vec<ModelCard> = Vec::new();
    for model in app.host.models() {
        if matches!(model.status(), ModelStatus::Failed { .. } | ModelStatus::Unloading) {
            continue;
        }
        for id in std::iter::once(model.name().to_owned()).chain(aliases(&model)) {
            if !data.iter().any(|card| card.id == id) {
                data.push(ModelCard::new(&app, &model, id));
            }
        }
        for adapter in model.list_adapters().unwrap_or_default() {
            let parent = Some(model.name().to_owned());
            data.push(ModelCard { parent, ..ModelCard::new(&app, &model, adapter.name) });
        }
    }
    document(&ModelCards { object: "list", data })
}

/// `GET /v1/models/{model}`.
#[utoipa::path(
    get,
    path = "/v1/models/{model}",
    tag = "openai",
    params(("model" = String, Path, description = "One of the model's names")),
    responses(
        (status = 200, description = "The model", body = ModelCard),
        (status = 404, description = "No such model", body = OpenAiError),
    )
)]
pub(crate) async fn one(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Response<Body>, ApiError> {
    let model = find_model(&app, Some(&name))?;
    document(&ModelCard::new(&app, &model, name))
}

/// A document as OpenAI's API writes it.
pub(super) fn document(value: &impl Serialize) -> Result<Response<Body>, ApiError> {
    let body = serde_json::to_vec(value).map_err(|error| {
        ApiError::new(
            crate::failure::FailureKind::Unserialisable,
            format!("writing the reply: {error}"),
        )
    })?;
    let mut response = Response::new(Body::from(body));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}
