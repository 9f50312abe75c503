//! What every handler needs: the host, and the settings of HTTP, checked once.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use drivetrain_config::{ModelSpec, ServerConfig, Sourced};
use drivetrain_host::Host;

use crate::body::BodyLimits;
use crate::failure::Codes;
use crate::generation::openai::unix_time;
use crate::ping::WhileLoading;
use crate::server::Limits;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The state of the router. Cheap to clone.
pub(crate) type App = Arc<AppState>;

/// Host and settings.
#[derive(Debug)]
pub(crate) struct AppState {
    pub(crate) host: Host,
    pub(crate) codes: Codes,
    pub(crate) body_limits: BodyLimits,
    /// When the server started, in seconds of Unix time.
    pub(crate) started: u64,
    /// Longest gap between two frames of a streamed reply.
    pub(crate) frame_timeout: Duration,
    /// Where a client's request id is read from.
    pub(crate) request_id_header: HeaderName,
    /// The `Access-Control-Allow-*` headers of every reply.
    pub(crate) cors: Vec<(HeaderName, HeaderValue)>,
    pub(crate) ping_while_loading: WhileLoading,
    pub(crate) allow_handler_override: bool,
    /// The models of the start.
    pub(crate) start_models: Vec<ModelSpec>,
    /// The models that were registered since, and are not unregistered.
    registered: RwLock<Vec<ModelSpec>>,
    /// Whether `GET /models/{name}` answers in SageMaker's shape.
    pub(crate) multi_model: bool,
}

impl AppState {
    /// Takes the settings over. One that HTTP can't carry is left out, with a warning.
    pub(crate) fn new(host: Host, config: &ServerConfig, limits: &Limits) -> App {
        let cors = [
            (header::ACCESS_CONTROL_ALLOW_ORIGIN, &config.cors.allowed_origin),
            (header::ACCESS_CONTROL_ALLOW_METHODS, &config.cors.allowed_methods),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, &config.cors.allowed_headers),
        ];
        let cors = cors
            .into_iter()
            .filter_map(|(name, text)| Some((name, cors_value(text.as_ref()?)?)))
            .collect();
        let key = &config.request_id_header_key;
        let request_id_header = HeaderName::from_bytes(key.value.as_bytes()).unwrap_or_else(|_| {
            tracing::warn!(
                "{}: request_id_header_key={}: expected a header's name; reading x-request-id",
                key.source,
                key.value
            );
            REQUEST_ID
        });
        crate::metrics::install_metrics();
        Arc::new(Self {
            host,
            codes: Codes {
                bad_request: code(&config.bad_request_http_code, StatusCode::BAD_REQUEST),
                worker: code(&config.wlm_error_http_code, StatusCode::SERVICE_UNAVAILABLE),
                throttle: code(&config.throttle_error_http_code, StatusCode::SERVICE_UNAVAILABLE),
                server: code(&config.server_error_http_code, StatusCode::INTERNAL_SERVER_ERROR),
            },
            body_limits: BodyLimits {
                max_bytes: config.max_request_size.value,
                piece_timeout: limits.body_piece,
                total_timeout: limits.body,
            },
            started: unix_time(),
            frame_timeout: config.chunked_read_timeout.value,
            request_id_header,
            cors,
            ping_while_loading: match config.allow_multi_status.value {
                true => WhileLoading::MultiStatus,
                false => WhileLoading::Ok,
            },
            allow_handler_override: config.allow_request_handler_override.value,
            start_models: config.models.clone(),
            registered: RwLock::default(),
            multi_model: config.sagemaker_multi_model.value,
        })
    }
}

impl AppState {
    /// Remembers what a model that was registered is loaded from.
    pub(crate) fn remember(&self, spec: ModelSpec) {
        self.registered.write().unwrap_or_else(PoisonError::into_inner).push(spec);
    }

    /// Forgets the model of this name, one version or all of them.
    pub(crate) fn forget(&self, name: &str, version: Option<&str>) {
        let is_other = |spec: &ModelSpec| {
            spec.name_or_default() != name
                || version.is_some_and(|version| spec.version.as_deref() != Some(version))
        };
        self.registered.write().unwrap_or_else(PoisonError::into_inner).retain(is_other);
    }

    /// What a model was loaded from, where it was registered.
    pub(crate) fn registered_url(&self, name: &str, version: Option<&str>) -> Option<String> {
        let registered = self.registered.read().unwrap_or_else(PoisonError::into_inner);
        let is_it = |spec: &&ModelSpec| {
            spec.name_or_default() == name && spec.version.as_deref() == version
        };
        registered.iter().find(is_it).map(|spec| spec.url.clone())
    }
}

fn code(setting: &Sourced<u16>, default: StatusCode) -> StatusCode {
    StatusCode::from_u16(setting.value).unwrap_or_else(|_| {
        tracing::warn!("{}: {} is no status code; using {default}", setting.source, setting.value);
        default
    })
}

fn cors_value(setting: &Sourced<String>) -> Option<HeaderValue> {
    let value = HeaderValue::from_str(&setting.value).ok();
    if value.is_none() {
        tracing::warn!("{}: {:?} can't stand in a header; left out", setting.source, setting.value);
    }
    value
}
