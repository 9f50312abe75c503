//! Adapters: which one a request goes through, and the routes that register them.

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use drivetrain_host::{
    AdapterChange, AdapterChoice, AdapterInfo, CodeAnswer, CodeChange, HostError, ModelHandle,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::app::App;
use crate::body::read_body;
use crate::call::{Call, parse_query};
use crate::documents::DjlError;
use crate::failure::{ApiError, FailureKind};
use crate::management::Page;
use crate::raw;
use crate::wire::json_response;

/// Names the adapter of an invocation.
const IDENTIFIER: &str = "x-amzn-sagemaker-adapter-identifier";
/// A further name of the adapter that is registered.
const ALIAS: &str = "x-amzn-sagemaker-adapter-alias";

/// `model`, whose requests go through the adapters that `call` names: a name or a list in the body's
/// field `adapters`, the query's `adapter`, or SageMaker's header; the later of these wins. Where the
/// model has no adapters all of them mean nothing.
///
/// # Errors
/// `adapters` is something else, or no adapter of a name is registered.
pub(crate) fn through(call: &Call, model: ModelHandle) -> Result<ModelHandle, ApiError> {
    if !model.has_adapters() {
        return Ok(model);
    }
    let named = call
        .headers()
        .get(IDENTIFIER)
        .map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned())
        .or_else(|| call.query("adapter").map(str::to_owned));
    let choice = match named {
        Some(name) => AdapterChoice::One(name),
        None => match in_body(call)? {
            Some(choice) => choice,
            None => return Ok(model),
        },
    };
    let names = match &choice {
        AdapterChoice::One(name) => std::slice::from_ref(name),
        AdapterChoice::Each(names) => names.as_slice(),
        AdapterChoice::None => &[],
    };
    for name in names.iter().filter(|name| !name.is_empty()) {
        model.find_adapter(name)?;
    }
    Ok(model.through(choice))
}

/// The one field of a body that says which adapters are meant.
#[derive(Deserialize)]
struct BodyField {
    adapters: Option<Value>,
}

fn in_body(call: &Call) -> Result<Option<AdapterChoice>, ApiError> {
    let Some((content_type, body)) = call.json_body() else { return Ok(None) };
    // Whoever reads the rest says what is wrong with a body that can't be read.
    let Ok(text) = content_type.decode(&body) else { return Ok(None) };
    let Ok(BodyField { adapters: Some(value) }) = serde_json::from_str(&text) else {
        return Ok(None);
    };
    let wrong = || ApiError {
        field: Some("adapters".to_owned()),
        ..ApiError::bad_request("adapters: expected an adapter's name, or a list of names")
    };
    match value {
        Value::Null => Ok(None),
        Value::String(name) => Ok(Some(AdapterChoice::One(name))),
        Value::Array(names) => {
            let name = |value: Value| match value {
                Value::String(name) => Ok(name),
                Value::Null => Ok(String::new()),
                _ => Err(wrong()),
            };
            names.into_iter().map(name).collect::<Result<_, _>>().map(AdapterChoice::Each).map(Some)
        }
        _ => Err(wrong()),
    }
}

/// The model and the adapter that a path names; without a model, the one of the start.
#[derive(Debug, Deserialize)]
pub(crate) struct AdapterPath {
    name: Option<String>,
    adapter: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for AdapterPath {
    type Rejection = ApiError;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        state: &S,
    ) -> Result<Self, ApiError> {
        let path = Path::<Self>::from_request_parts(parts, state).await;
        path.map(|Path(path)| path).map_err(|_| ApiError::invalid_message())
    }
}

impl AdapterPath {
    fn model(&self, app: &App) -> Result<ModelHandle, ApiError> {
        let found = match &self.name {
            Some(name) => app.host.model(name, None),
            None => app.host.default_model(),
        };
        found.map_err(|error| match error {
            HostError::ModelNotFound { name, .. } => not_found("model", &name),
            other => other.into(),
        })
    }

    fn adapter(&self) -> &str {
        self.adapter.as_deref().unwrap_or_default()
    }
}

fn not_found(what: &str, name: &str) -> ApiError {
    ApiError::new(FailureKind::ModelNotFound, format!("The {what} {name} was not found"))
}

/// An error of the routes here, where an unknown adapter is no failure of a handler.
fn of_management(error: HostError) -> ApiError {
    match error {
        HostError::AdapterNotFound { name } => not_found("adapter", &name),
        other => other.into(),
    }
}

/// The parameters of a request: of the query, or of a JSON object in the body.
pub(crate) struct Parameters {
    values: Vec<(String, String)>,
    alias: Option<String>,
}

impl FromRequest<App> for Parameters {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, app: &App) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let mut values = parse_query(parts.uri.query().unwrap_or_default())?;
        let body = read_body(&parts.headers, body, app.body_limits).await?;
        if is_json(&parts.headers) && !body.is_empty() {
            let object: serde_json::Map<String, Value> =
                serde_json::from_slice(&body).map_err(|error| {
                    ApiError::bad_request(format!("the body is no JSON object: {error}"))
                })?;
            values.extend(object.into_iter().map(|(name, value)| match value {
                Value::String(text) => (name, text),
                other => (name, other.to_string()),
            }));
        }
        let alias = parts.headers.get(ALIAS);
        let alias = alias.map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned());
        Ok(Self { values, alias: alias.filter(|alias| !alias.is_empty()) })
    }
}

impl Parameters {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.values.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn required(&self, name: &str) -> Result<String, ApiError> {
        match self.get(name) {
            Some(value) if !value.is_empty() => Ok(value.to_owned()),
            _ => Err(ApiError::bad_request(format!("Parameter {name} is required."))),
        }
    }

    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.get(name).map(|text| text.trim().to_ascii_lowercase()).as_deref() {
            None | Some("") => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => {
                Err(ApiError::bad_request(format!("{name}={other}: expected true or false")))
            }
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("application/json"))
}

/// An adapter as it is shown.
#[derive(Serialize)]
struct Shown {
    name: String,
    src: String,
    preload: bool,
    pin: bool,
}

impl From<AdapterInfo> for Shown {
    fn from(info: AdapterInfo) -> Self {
        let AdapterInfo { name, src, preload, pin, .. } = info;
        Self { name, src, preload, pin }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownList {
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
    adapters: Vec<Shown>,
}

fn text(message: String) -> Response {
    let mut response = Response::new(Body::from(message));
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// `POST /models/{name}/adapters?name=&src=[&preload=true][&pin=false]`.
#[utoipa::path(
    post,
    path = "/models/{name}/adapters",
    tag = "management",
    params(
        ("name" = String, Path, description = "The model"),
        ("src" = String, Query, description = "The adapter's directory on this machine"),
        ("preload" = Option<bool>, Query, description = "Whether it is loaded at once"),
        ("pin" = Option<bool>, Query, description = "Whether it stays loaded"),
    ),
    responses(
        (status = 200, description = "It is registered", body = String),
        (status = 400, description = "A parameter is missing, or LoRA is not enabled",
            body = DjlError),
        (status = 404, description = "No such model", body = DjlError),
        (status = 409, description = "The name is taken, or src is no local path", body = DjlError),
        (status = 424, description = "The engine can't use it", body = DjlError),
        (status = 507, description = "No slot, or no memory", body = DjlError),
    )
)]
pub(crate) async fn register(
    State(app): State<App>,
    path: AdapterPath,
    parameters: Parameters,
) -> Result<Response, ApiError> {
    let model = path.model(&app)?;
    model.list_adapters()?;
    let name = parameters.required("name")?;
    let info = AdapterInfo {
        src: parameters.required("src")?,
        preload: parameters.flag("preload")?.unwrap_or(true),
        pin: parameters.flag("pin")?.unwrap_or(false),
        alias: parameters.alias.clone().filter(|alias| *alias != name),
        name: name.clone(),
    };
    if model.is_request_model() {
        let change = CodeChange::Register(info);
        let answer = model.change_code_adapter(change, parameters.values).await;
        let CodeAnswer { head, body } = answer.map_err(of_management)?;
        return Ok(raw::respond(head, Body::from(body)));
    }
    model.register_adapter(info).await.map_err(of_management)?;
    Ok(text(format!("Adapter {name} registered")))
}

/// `POST /models/{name}/adapters/{adapter}/update`.
#[utoipa::path(
    post,
    path = "/models/{name}/adapters/{adapter}/update",
    tag = "management",
    params(
        ("name" = String, Path, description = "The model"),
        ("adapter" = String, Path, description = "The adapter"),
    ),
    responses(
        (status = 200, description = "Its files were read again", body = String),
        (status = 404, description = "No such model or adapter", body = DjlError),
    )
)]
pub(crate) async fn update(
    State(app): State<App>,
    path: AdapterPath,
    parameters: Parameters,
) -> Result<Response, ApiError> {
    let model = path.model(&app)?;
    let change = AdapterChange {
        src: parameters.get("src").filter(|src| !src.is_empty()).map(str::to_owned),
        preload: parameters.flag("preload")?,
        pin: parameters.flag("pin")?,
    };
    if model.is_request_model() {
        let change = CodeChange::Update(path.adapter().to_owned(), change);
        let answer = model.change_code_adapter(change, parameters.values).await;
        answer.map_err(of_management)?;
    } else {
        model.update_adapter(path.adapter(), change).await.map_err(of_management)?;
    }
    Ok(text(format!("Adapter {} updated", path.adapter())))
}

/// `GET /models/{name}/adapters?limit=&next_page_token=`.
#[utoipa::path(
    get,
    path = "/models/{name}/adapters",
    tag = "management",
    params(("name" = String, Path, description = "The model")),
    responses((status = 200, description = "Its adapters", body = Object))
)]
pub(crate) async fn list(
    State(app): State<App>,
    path: AdapterPath,
    parameters: Parameters,
) -> Result<Response, ApiError> {
    let adapters = path.model(&app)?.list_adapters().map_err(of_management)?;
    let page = Page::of(&parameters.values)?;
    let (adapters, next_page_token) = page.cut(adapters);
    let adapters = adapters.into_iter().map(Shown::from).collect();
    Ok(json_response(StatusCode::OK, &ShownList { next_page_token, adapters }))
}

/// `GET /models/{name}/adapters/{adapter}`.
#[utoipa::path(
    get,
    path = "/models/{name}/adapters/{adapter}",
    tag = "management",
    params(
        ("name" = String, Path, description = "The model"),
        ("adapter" = String, Path, description = "The adapter"),
    ),
    responses(
        (status = 200, description = "The adapter", body = Object),
        (status = 404, description = "No such model or adapter", body = DjlError),
    )
)]
pub(crate) async fn describe(
    State(app): State<App>,
    path: AdapterPath,
) -> Result<Response, ApiError> {
    let adapter = path.model(&app)?.find_adapter(path.adapter()).map_err(of_management)?;
    Ok(json_response(StatusCode::OK, &Shown::from(adapter)))
}

/// `DELETE /models/{name}/adapters/{adapter}`.
#[utoipa::path(
    delete,
    path = "/models/{name}/adapters/{adapter}",
    tag = "management",
    params(
        ("name" = String, Path, description = "The model"),
        ("adapter" = String, Path, description = "The adapter"),
    ),
    responses(
        (status = 200, description = "It is forgotten", body = String),
        (status = 404, description = "No such model or adapter", body = DjlError),
    )
)]
pub(crate) async fn unregister(
    State(app): State<App>,
    path: AdapterPath,
) -> Result<Response, ApiError> {
    let model = path.model(&app)?;
    if model.is_request_model() {
        let change = CodeChange::Unregister(path.adapter().to_owned());
        model.change_code_adapter(change, Vec::new()).await.map_err(of_management)?;
    } else {
        model.unregister_adapter(path.adapter()).map_err(of_management)?;
    }
    Ok(text(format!("Adapter {} unregistered", path.adapter())))
}
