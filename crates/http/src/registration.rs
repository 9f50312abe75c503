//! The management routes that change which models there are: SageMaker loads and unloads the models of
//! a multi-model endpoint through them, DJL Serving's clients register and unregister theirs.

use std::path::Path;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use drivetrain_config::{ModelSpec, Source};
use drivetrain_host::{HostError, ModelHandle};
use serde::Serialize;
use tokio::time::timeout;

use crate::adapters::Parameters;
use crate::app::App;
use crate::documents::DjlError;
use crate::failure::{ApiError, FailureKind};
use crate::model_path::ModelPath;
use crate::wire::json_response;

/// How long a model that is unloaded is waited for: its work in hand has 30 seconds.
const UNLOAD_PATIENCE: Duration = Duration::from_secs(45);

/// Parameters that are settings of the model, and the keys they set.
const SETTINGS: [(&str, &str); 6] = [
    ("job_queue_size", "job_queue_size"),
    ("batch_size", "batch_size"),
    ("max_batch_delay", "max_batch_delay"),
    ("max_idle_time", "max_idle_time"),
    ("min_worker", "minWorkers"),
    ("max_worker", "maxWorkers"),
];

/// What a change came to.
#[derive(Serialize)]
struct Done {
    status: String,
}

/// `POST /models`: loads a model, and answers when it is ready, or at once with `synchronous=false`.
#[utoipa::path(
    post,
    path = "/models",
    tag = "management",
    params(
        ("url" = String, Query, description = "Where the model is; or in a JSON body, as all of these"),
        ("model_name" = Option<String>, Query, description = "Its name; else the place's"),
        ("model_version" = Option<String>, Query, description = "Its version"),
        ("engine" = Option<String>, Query, description = "Its engine"),
        ("device" = Option<String>, Query, description = "Its devices"),
        ("synchronous" = Option<bool>, Query, description = "Whether the answer waits for it"),
    ),
    responses(
        (status = 200, description = "It is ready", body = Object),
        (status = 202, description = "It is loading", body = Object),
        (status = 400, description = "A parameter is missing, or the model can't be loaded",
            body = DjlError),
        (status = 404, description = "There is nothing at the place", body = DjlError),
        (status = 409, description = "There is a model of this name and version", body = DjlError),
        (status = 507, description = "There is no memory for it", body = DjlError),
    )
)]
pub(crate) async fn register(
    State(app): State<App>,
    parameters: Parameters,
) -> Result<Response, ApiError> {
    let url = parameters.required("url")?;
    if is_absent(&url) {
        return Err(ApiError::new(
            FailureKind::ModelNotFound,
            format!("url={url}: nothing is there"),
        ));
    }
    let text = |name: &str| parameters.get(name).filter(|t| !t.is_empty()).map(str::to_owned);
    let spec = ModelSpec {
        name: text("model_name"),
        version: text("model_version"),
        engine: text("engine").or_else(|| text("engine_name")),
        devices: text("device"),
        source: Source::Request { parameter: "url".to_owned() },
        ..ModelSpec::at(url)
    };
    let named = spec.name.iter().chain(&spec.version);
    if let Some(wrong) = named.into_iter().find(|name| !is_name(name)) {
        return Err(ApiError::bad_request(format!(
            "model_name={wrong:?}: expected a name, and a version, that can stand in a URL"
        )));
    }
    let settings = SETTINGS
        .iter()
        .filter_map(|(parameter, key)| Some(((*key).to_owned(), text(parameter)?)))
        .collect();
    let waits = parameters.flag("synchronous")?.unwrap_or(true);
    let model = app.host.load_with(&spec, settings).map_err(of_registration)?;
    let name = model.name().to_owned();
    app.remember(spec);
    if waits {
        ready(&app, &model).await?;
        let status = format!("Model \"{name}\" registered.");
        return Ok(json_response(StatusCode::OK, &Done { status }));
    }
    let watcher = app.clone();
    tokio::spawn(async move {
        // Whoever asked is told by the list of models, where one that failed is not.
        let _ = ready(&watcher, &model).await;
    });
    let status = format!("Model \"{name}\" registration scheduled.");
    Ok(json_response(StatusCode::ACCEPTED, &Done { status }))
}

/// Waits until the model is ready; one that can't be is taken out again.
async fn ready(app: &App, model: &ModelHandle) -> Result<(), ApiError> {
    let Err(error) = model.wait_ready().await else { return Ok(()) };
    // Somebody else may have taken it out meanwhile.
    if let Ok(gone) = app.host.unload(model.name(), model.version()) {
        app.forget(model.name(), model.version());
        unloaded(&gone).await?;
    }
    Err(of_registration(error))
}

/// Waits until the models' memory is given back.
async fn unloaded(models: &[ModelHandle]) -> Result<(), ApiError> {
    for model in models {
        if timeout(UNLOAD_PATIENCE, model.wait_unloaded()).await.is_err() {
            return Err(ApiError::new(
                FailureKind::Internal,
                format!(
                    "Model {} takes no requests, and its engine does not let go of it",
                    model.name()
                ),
            ));
        }
    }
    Ok(())
}

/// `DELETE /models/{name}[/{version}]`: unloads a model, and answers when its memory is given back.
#[utoipa::path(
    delete,
    path = "/models/{name}",
    tag = "management",
    params(("name" = String, Path, description = "The model")),
    responses(
        (status = 200, description = "It is unloaded", body = Object),
        (status = 404, description = "No such model", body = DjlError),
    )
)]
pub(crate) async fn unregister(
    State(app): State<App>,
    path: ModelPath,
) -> Result<Response, ApiError> {
    let version = path.version.as_deref();
    let gone = app.host.unload(&path.name, version)?;
    app.forget(&path.name, version);
    unloaded(&gone).await?;
    let status = format!("Model or workflow \"{}\" unregistered", path.name);
    Ok(json_response(StatusCode::OK, &Done { status }))
}

/// Management's own reading of what stops a model: the one who asked gave the model, too.
fn of_registration(error: HostError) -> ApiError {
    let chain = error.chain();
    match &error {
        HostError::Duplicate { name } => ApiError::new(
            FailureKind::IllegalArgument,
            format!("Workflow {name} is already registered."),
        ),
        HostError::ShuttingDown => ApiError::from(error),
        _ => match ApiError::from(error) {
            error if error.kind == FailureKind::OutOfMemory => error,
            _ => ApiError::new(FailureKind::BadRequest, chain),
        },
    }
}

/// Whether a place of this machine holds nothing.
fn is_absent(url: &str) -> bool {
    let path = url.strip_prefix("file://").unwrap_or(url);
    path.starts_with('/') && !Path::new(path).exists()
}

fn is_name(name: &str) -> bool {
    !name.contains(['/', '\\', '#', '%', '?']) && !name.chars().any(char::is_control)
}
