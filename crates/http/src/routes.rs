//! Which path goes where.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, any, get, options, post};
use drivetrain_config::ServerConfig;
use drivetrain_host::Host;

use crate::app::{App, AppState};
use crate::failure::ApiError;
use crate::generation::v1;
use crate::server::Limits;
use crate::{
    adapters, documents, inference, management, metrics, ping, predictions, registration, respond,
    sagemaker,
};

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Routes {
    Both,
    Inference,
    Management,
}

impl Routes {
    /// The name in the line that says where a listener is bound.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Both => "BOTH",
            Self::Inference => "INFERENCE",
            Self::Management => "MANAGEMENT",
        }
    }
}

/// Every route over `host`, errors and headers of the contract included.
pub fn router(host: Host, config: Arc<ServerConfig>) -> Router {
    routes(&AppState::new(host, &config, &Limits::default()), Routes::Both)
}

pub(crate) fn routes(app: &App, routes: Routes) -> Router {
    let mut router = Router::new();
    if routes != Routes::Management {
        router = router.merge(inference());
    }
    if routes != Routes::Inference {
        router = router.merge(management());
    }
    router
        .fallback(async || ApiError::route_not_found())
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        // `max_request_size` is the one limit; axum's own is for extractors that are not used.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(app.clone(), respond::finish))
        .with_state(app.clone())
}

fn inference() -> Router<App> {
    let invoke = || post(sagemaker::invocations).options(predictions::options);
    let ask = |route: MethodRouter<App>| route.options(predictions::options);
    let predict = || any(predictions::predict).options(predictions::options);
    Router::new()
        .route("/", options(predictions::options))
        .route("/ping", any(ping::ping))
        .route("/invocations", invoke())
        .route("/v1/chat/completions", ask(post(v1::chat_completions)))
        .route("/v1/completions", ask(post(v1::completions)))
        .route("/v1/embeddings", ask(post(v1::embeddings)))
        .route("/v1/models", get(v1::list))
        .route("/v1/models/{*model}", get(v1::one))
        .route("/embed", ask(post(inference::embed)))
        .route("/rerank", ask(post(inference::rerank)))
        .route("/metrics", get(metrics::metrics))
        .route("/openapi.json", get(documents::openapi))
        .route("/predictions/{name}", predict())
        .route("/predictions/{name}/{version}", predict())
        .route("/models/{name}/invoke", post(sagemaker::invoke).options(predictions::options))
}

fn management() -> Router<App> {
    let model = || get(management::describe).delete(registration::unregister);
    let adapters = || get(adapters::list).post(adapters::register);
    let adapter = || get(adapters::describe).delete(adapters::unregister);
    Router::new()
        .route("/server/metrics", get(metrics::server_metrics))
        .route("/models", get(management::list).post(registration::register))
        .route("/adapters", adapters())
        .route("/adapters/{adapter}", adapter())
        .route("/adapters/{adapter}/update", post(adapters::update))
        .route("/models/{name}/adapters", adapters())
        .route("/models/{name}/adapters/{adapter}", adapter())
        .route("/models/{name}/adapters/{adapter}/update", post(adapters::update))
        .route("/models/{name}", model())
        .route("/models/{name}/{version}", model())
}
