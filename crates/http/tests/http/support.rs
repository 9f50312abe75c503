//! A host with one model, and requests to its router.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, Response, StatusCode};
use drivetrain_config::{Environment, ModelSpec, ServerConfig, ServerOverrides};
use drivetrain_engine::Engine;
use drivetrain_host::{EngineRegistry, Host, ModelHandle};
use http_body_util::BodyExt;
use tempfile::TempDir;
use tower::ServiceExt;
use tracing::subscriber::DefaultGuard;

use crate::engines::{Controls, Decoding};

/// A host, its configuration, and the directory its model lies in.
pub(crate) struct Served {
    pub(crate) host: Host,
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) model: ModelHandle,
    _dir: TempDir,
}

/// A reply, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

/// The settings of a test: a free port, nothing loaded, and `settings` (`SERVING_..` variables).
pub(crate) fn config(settings: &[(&str, &str)]) -> Arc<ServerConfig> {
    let fixed = [
        ("SERVING_INFERENCE_ADDRESS", "http://127.0.0.1:0"),
        ("SERVING_MANAGEMENT_ADDRESS", "http://127.0.0.1:0"),
        ("SERVING_LOAD_MODELS", "NONE"),
    ];
    let env: Environment = fixed.iter().chain(settings).copied().collect();
    let overrides = ServerOverrides {
        sagemaker_root: PathBuf::from("/nonexistent"),
        ..ServerOverrides::default()
    };
    Arc::new(ServerConfig::resolve(&overrides, &env).unwrap().0)
}

impl Served {
    /// `engine` serving `task` as the model `m`, ready, under `settings`.
    pub(crate) fn new(
        engine: impl Engine + 'static,
        task: &str,
        settings: &[(&str, &str)],
    ) -> Self {
        let served = Self::loading(engine, task, settings);
        served.model.wait_ready_blocking().unwrap();
        served
    }

    /// A decoder that generates, with further lines of `serving.properties`.
    pub(crate) fn generating(
        controls: &Arc<Controls>,
        properties: &str,
        settings: &[(&str, &str)],
    ) -> Self {
        let engine = Decoding(Arc::clone(controls));
        let task = format!("text-generation\n{properties}");
        Self::new(engine, &task, settings)
    }

    /// As [`Served::new`], without waiting.
    pub(crate) fn loading(
        engine: impl Engine + 'static,
        task: &str,
        settings: &[(&str, &str)],
    ) -> Self {
        let mut config = config(settings);
        let dir = model_dir(&format!("engine={}\noption.task={task}\n", engine.info().name));
        let mut spec = ModelSpec::at(dir.path().display().to_string());
        spec.name = Some("m".to_owned());
        Arc::make_mut(&mut config).models = vec![spec.clone()];
        let host = Host::new(
            Arc::clone(&config),
            Environment::default(),
            EngineRegistry::with(Arc::new(engine)),
        );
        let model = host.load(&spec).unwrap();
        Self { host, config, model, _dir: dir }
    }

    pub(crate) fn router(&self) -> Router {
        drivetrain_http::router(self.host.clone(), Arc::clone(&self.config))
    }

    pub(crate) async fn ask(&self, request: Request<Body>) -> Answer {
        read(self.router().oneshot(request).await.unwrap()).await
    }

    /// `POST path` with a content type, unless it is empty, and a body.
    pub(crate) async fn post(&self, path: &str, content_type: &str, body: &[u8]) -> Answer {
        self.ask(post(path, content_type, body)).await
    }
}

/// A directory with the shipped model's tokenizer and configuration, and `properties`.
fn model_dir(properties: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/models/bart-g2p");
    for name in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ] {
        std::fs::copy(shipped.join(name), dir.path().join(name)).unwrap();
    }
    if properties.contains("task=text-generation") {
        // The shipped model forces an end token at the length's end; a decoder says what it likes.
        let generation = r#"{"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}"#;
        std::fs::write(dir.path().join("generation_config.json"), generation).unwrap();
    }
    std::fs::write(dir.path().join("serving.properties"), properties).unwrap();
    dir
}

pub(crate) fn post(path: &str, content_type: &str, body: &[u8]) -> Request<Body> {
    let mut request = Request::post(path);
    if !content_type.is_empty() {
        request = request.header("content-type", content_type);
    }
    request.body(Body::from(body.to_vec())).unwrap()
}

pub(crate) async fn read(response: Response<Body>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: String::from_utf8(body.to_vec()).unwrap(),
    }
}

/// What is logged on a thread, as text.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Collects what this thread logs until the guard is dropped.
    pub(crate) fn of_this_thread() -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .without_time()
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
