//! The management routes that read: which models there are, and how they are.

use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use drivetrain_config::ModelSpec;
use drivetrain_host::{ModelHandle, ModelStatus};
use serde::Serialize;

use crate::app::App;
use crate::call::parse_query;
use crate::documents::DjlError;
use crate::failure::{ApiError, FailureKind};
use crate::model_path::ModelPath;
use crate::ping::status_word;
use crate::wire::json_response;

/// Most models on one page, and how many there are when nothing is asked for.
const MAX_PAGE: usize = 100;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ModelList {
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
    models: Vec<ModelSummary>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ModelSummary {
    model_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    model_url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
}

/// DJL's answer: a one-node workflow for each version of the model.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Workflow {
    workflow_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    models: Vec<ModelDetail>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ModelDetail {
    model_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    model_url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    engine: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    /// What the model's settings say, once they are read.
    #[serde(flatten)]
    settings: Option<Settings>,
    status: &'static str,
    loaded_at_startup: bool,
    /// Why it is not healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    status_reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    loading: Option<LoadProgress>,
    worker_groups: Vec<WorkerGroup>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    batch_size: u32,
    max_batch_delay_millis: u64,
    max_idle_seconds: u64,
    queue_size: u32,
}

/// How far loading is: `done` of `total` bytes (or other units) of `stage`.
#[derive(Serialize)]
struct LoadProgress {
    stage: String,
    done: u64,
    total: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WorkerGroup {
    device: Device,
    min_workers: u32,
    max_workers: u32,
    workers: Vec<Worker>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    device_type: &'static str,
    device_id: i32,
}

#[derive(Serialize)]
struct Worker {
    id: u32,
    status: &'static str,
}

/// `GET /models?limit=N&next_page_token=T`.
#[utoipa::path(
    get,
    path = "/models",
    tag = "management",
    params(
        ("limit" = Option<usize>, Query, description = "Most models on a page"),
        ("next_page_token" = Option<usize>, Query, description = "Where the page begins"),
    ),
    responses((status = 200, description = "The models", body = Object))
)]
pub(crate) async fn list(State(app): State<App>, uri: Uri) -> Result<Response, ApiError> {
    let page = Page::of(&parse_query(uri.query().unwrap_or_default())?)?;
    let (models, next_page_token) = page.cut(app.host.models());
    let models = models.iter().map(|model| summary(&app, model)).collect();
    Ok(json_response(StatusCode::OK, &ModelList { next_page_token, models }))
}

/// A page of a list: `limit` and `next_page_token`.
pub(crate) struct Page {
    offset: usize,
    limit: usize,
}

impl Page {
    /// The page that the query asks for.
    ///
    /// # Errors
    /// One of the two is no whole number.
    pub(crate) fn of(query: &[(String, String)]) -> Result<Self, ApiError> {
        let number = |name: &str| -> Result<Option<i64>, ApiError> {
            let Some((_, value)) = query.iter().find(|(key, _)| key == name) else {
                return Ok(None);
            };
            value.trim().parse().map(Some).map_err(|_| {
                ApiError::new(
                    FailureKind::IllegalArgument,
                    format!("{name}={value}: expected a whole number"),
                )
            })
        };
        let limit = number("limit")?
            .and_then(|limit| usize::try_from(limit).ok())
            .filter(|limit| *limit <= MAX_PAGE)
            .unwrap_or(MAX_PAGE);
        let offset =
            number("next_page_token")?.map_or(0, |offset| usize::try_from(offset).unwrap_or(0));
        Ok(Self { offset, limit })
    }

    /// The page's part of `all`, and the token of the next page if there is one.
    pub(crate) fn cut<T>(&self, all: Vec<T>) -> (Vec<T>, Option<String>) {
        let end = self.offset.saturating_add(self.limit);
        let next = (end < all.len()).then(|| end.to_string());
        (all.into_iter().skip(self.offset).take(self.limit).collect(), next)
    }
}

/// `GET /models/{name}[/{version}]`: DJL's array, or one object on a multi-model endpoint.
#[utoipa::path(
    get,
    path = "/models/{name}",
    tag = "management",
    params(("name" = String, Path, description = "The model")),
    responses(
        (status = 200, description = "The model's versions", body = Object),
        (status = 404, description = "No such model", body = DjlError),
    )
)]
pub(crate) async fn describe(
    State(app): State<App>,
    path: ModelPath,
) -> Result<Response, ApiError> {
    let models: Vec<ModelHandle> = app
        .host
        .models()
        .into_iter()
        .filter(|model| model.name() == path.name)
        .filter(|model| path.version.is_none() || model.version() == path.version.as_deref())
        .collect();
    let Some(first) = models.first() else {
        return Err(ApiError::new(
            FailureKind::ModelNotFound,
            format!("Workflow not found: {}", path.name),
        ));
    };
    if app.multi_model {
        let summary = ModelSummary { version: None, status: None, ..summary(&app, first) };
        return Ok(json_response(StatusCode::OK, &summary));
    }
    let workflows: Vec<Workflow> = models.iter().map(|model| workflow(&app, model)).collect();
    Ok(json_response(StatusCode::OK, &workflows))
}

fn summary(app: &App, model: &ModelHandle) -> ModelSummary {
    ModelSummary {
        model_name: model.name().to_owned(),
        version: model.version().map(str::to_owned),
        model_url: model_url(app, model),
        status: Some(status_word(&model.status())),
    }
}

/// What the model was loaded from at the start, if it was.
fn start_spec<'a>(app: &'a App, model: &ModelHandle) -> Option<&'a ModelSpec> {
    app.start_models.iter().find(|spec| {
        spec.name_or_default() == model.name() && spec.version.as_deref() == model.version()
    })
}

/// The model's place as a URL.
fn model_url(app: &App, model: &ModelHandle) -> String {
    let url = match start_spec(app, model) {
        Some(spec) => Some(spec.url.clone()),
        None => app.registered_url(model.name(), model.version()),
    };
    let url = url.unwrap_or_default();
    // What follows a `?` may be what grants access.
    let shown = if url.contains("://") { url.split('?').next().unwrap_or(&url) } else { &url };
    if shown.starts_with('/') { format!("file://{shown}") } else { shown.to_owned() }
}

fn workflow(app: &App, model: &ModelHandle) -> Workflow {
    let status = model.status();
    let version = model.version().map(str::to_owned);
    let (status_reason, loading) = match &status {
        ModelStatus::Loading { stage, done, total } => {
            (None, Some(LoadProgress { stage: stage.clone(), done: *done, total: *total }))
        }
        ModelStatus::Failed { reason } | ModelStatus::Unhealthy { reason } => {
            (Some(reason.clone()), None)
        }
        _ => (None, None),
    };
    let worker = match status {
        ModelStatus::Ready => Some("READY"),
        ModelStatus::Unloading => Some("UNLOADING"),
        _ => None,
    };
    let settings = model.config().map(|config| Settings {
        batch_size: config.batching.max_requests.value.get(),
        max_batch_delay_millis: millis(config.batching.max_delay.value),
        max_idle_seconds: config.workers.max_idle_time.value.as_secs(),
        queue_size: config.batching.queue_capacity.value.get(),
    });
    let detail = ModelDetail {
        model_name: model.name().to_owned(),
        version: version.clone(),
        model_url: model_url(app, model),
        engine: model.engine_name().map(str::to_owned),
        task: model.task().map(|task| task.to_string()),
        settings,
        loaded_at_startup: start_spec(app, model).is_some(),
        status: status_word(&status),
        status_reason,
        loading,
        worker_groups: vec![WorkerGroup {
            device: Device { device_type: "cpu", device_id: -1 },
            min_workers: 1,
            max_workers: 1,
            workers: worker.map(|status| Worker { id: 1, status }).into_iter().collect(),
        }],
    };
    Workflow { workflow_name: model.name().to_owned(), version, models: vec![detail] }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
