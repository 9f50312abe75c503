//! Why the host could not do what it was asked, with the blame in the variant.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use drivetrain_artifacts::ArtifactError;
use drivetrain_config::ConfigError;
use drivetrain_engine::{EngineError, ErrorKind};
use drivetrain_sources::SourceError;

use crate::UnknownTask;

/// Why the host could not do what it was asked.
///
/// The variants tell apart whose fault it is: the request (`BadRequest`, `ModelNotFound`,
/// `NoDefaultModel`, `Duplicate`), the load of the moment (`QueueFull`, `ShuttingDown`, `NotReady`,
/// `Timeout`, `OutOfMemory`), the configuration or the model's files (`Source` to `TaskModel`), or
/// the engine (`Engine`, `Failed`).
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The request can't be served as it is; the same request would fail again.
    #[error("{message}")]
    BadRequest {
        /// What is wrong, and what is allowed.
        message: String,
    },
    /// No model of this name (and version).
    #[error("model or workflow not found: {}{}", name, version.as_deref().map(|v| format!(":{v}")).unwrap_or_default())]
    ModelNotFound {
        /// The name asked for.
        name: String,
        /// The version asked for.
        version: Option<String>,
    },
    /// No model was named, and there is not exactly one start-up model to mean.
    #[error("no model is named and {n_models} are loaded: name one of them")]
    NoDefaultModel {
        /// Models loaded at start-up.
        n_models: usize,
    },
    /// A model of this name and version is registered already.
    #[error("model {name} is registered already: unload it first, or give another name or version")]
    Duplicate {
        /// Name, and version where there is one.
        name: String,
    },
    /// No adapter of this name.
    #[error("Adapter {name} is not registered")]
    AdapterNotFound {
        /// The name asked for.
        name: String,
    },
    /// An adapter of this name is registered already.
    #[error("adapter {name} is registered already: update it, or give another name")]
    AdapterExists {
        /// The name.
        name: String,
    },
    /// What is said to hold an adapter does not.
    #[error("src={src}: no directory of this machine; an adapter is given by a local path")]
    AdapterSource {
        /// What was given.
        src: String,
    },
    /// The engine could not load an adapter.
    #[error("adapter {name}: {}", error.message())]
    AdapterFailed {
        /// Its name.
        name: String,
        /// What the engine says.
        error: EngineError,
    },
    /// The model has no adapters.
    #[error("LoRA is not enabled.")]
    NoAdapters,
    /// The model is still loading, or is being unloaded.
    #[error("model is not ready: {model}")]
    NotReady {
        /// The model.
        model: String,
    },
    /// The model has failed for good; it answers nothing more.
    #[error("model {model} has failed: {reason}")]
    Failed {
        /// The model.
        model: String,
        /// Why, causes included.
        reason: String,
        /// The error that ended it, where there is one.
        source: Option<Arc<HostError>>,
    },
    /// As many requests wait as may.
    #[error(
        "worker queue capacity exceeded for model: {model} ({capacity} requests are waiting: try again later, or raise job_queue_size)"
    )]
    QueueFull {
        /// The model.
        model: String,
        /// `job_queue_size`.
        capacity: usize,
    },
    /// The server is shutting down and takes no new work.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The answer was not there in time.
    #[error("no answer from model {model} within {} ms", waited.as_millis())]
    Timeout {
        /// The model.
        model: String,
        /// How long the request had.
        waited: Duration,
    },
    /// Memory ran out.
    #[error("out of memory: {message}")]
    OutOfMemory {
        /// The figures.
        message: String,
        /// The engine's error, where it was the engine that ran out.
        source: Option<EngineError>,
    },
    /// The engine could not do it.
    #[error(transparent)]
    Engine(EngineError),
    /// The settings are wrong.
    #[error(transparent)]
    Config(Arc<ConfigError>),
    /// A file of the model is missing or wrong.
    #[error(transparent)]
    Artifact(Arc<ArtifactError>),
    /// The model's files could not be brought to this machine.
    #[error("{key}={value}: could not be brought to this machine")]
    Fetch {
        /// The setting that says where they are.
        key: &'static str,
        /// Its value, without what follows a `?`.
        value: String,
        /// What failed, and what to do.
        source: Arc<SourceError>,
    },
    /// No engine of the wanted name, or none at all.
    #[error("{message}")]
    EngineNotFound {
        /// What was wanted, the engines found, the files refused.
        message: String,
    },
    /// The model's files can't be reached from where the configuration says they are.
    #[error("{key}={value}: {reason}")]
    Source {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it and what is allowed.
        reason: String,
    },
    /// The tokenizer knows tokens that the model has no row for.
    #[error("{}: the tokenizer's ids go up to {}, but the model's embedding has {n_rows} rows: one of the two belongs to another model", dir.display(), n_ids.saturating_sub(1))]
    TokenizerMismatch {
        /// The model's directory.
        dir: PathBuf,
        /// Highest id of the tokenizer plus 1.
        n_ids: u32,
        /// Rows of the input embedding.
        n_rows: u32,
    },
    /// The generation configuration names a token that the model does not have.
    #[error("{}: the generation configuration says {key}={id}, and the model has tokens 0 to {}", dir.display(), n_ids.saturating_sub(1))]
    TokenOutOfRange {
        /// The model's directory.
        dir: PathBuf,
        /// The setting.
        key: &'static str,
        /// The token's id.
        id: u32,
        /// How many tokens there are.
        n_ids: u32,
    },
    /// `option.task` names no task.
    #[error("option.task: {0}")]
    UnknownTask(UnknownTask),
    /// The task can't be inferred from the model's files.
    #[error("{}: no task follows from architectures {architectures:?}: set option.task to one of {allowed}", file.display())]
    NoTask {
        /// `config.json`.
        file: PathBuf,
        /// What it says.
        architectures: Vec<String>,
        /// The tasks there are.
        allowed: String,
    },
    /// The task is not one this model can do.
    #[error(
        "task {task} needs {needs}, and model {model} is {is}: set option.task to one of {allowed}"
    )]
    TaskModel {
        /// The model.
        model: String,
        /// The task.
        task: String,
        /// What the task needs.
        needs: &'static str,
        /// What the model is.
        is: String,
        /// The tasks it can do.
        allowed: String,
    },
    /// The model did not load within `model_loading_timeout`.
    #[error("model {model} did not load within model_loading_timeout={} s", limit.as_secs())]
    LoadTimeout {
        /// The model.
        model: String,
        /// The limit.
        limit: Duration,
    },
    /// The operating system refused something.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// What it said.
        source: Arc<std::io::Error>,
    },
}

impl From<EngineError> for HostError {
    fn from(error: EngineError) -> Self {
        match error.kind() {
            ErrorKind::OutOfMemory => {
                Self::OutOfMemory { message: error.message().to_owned(), source: Some(error) }
            }
            _ => Self::Engine(error),
        }
    }
}

impl From<ConfigError> for HostError {
    fn from(error: ConfigError) -> Self {
        Self::Config(Arc::new(error))
    }
}

impl From<ArtifactError> for HostError {
    fn from(error: ArtifactError) -> Self {
        Self::Artifact(Arc::new(error))
    }
}

impl HostError {
    /// A [`HostError::BadRequest`].
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::BadRequest { message: message.into() }
    }

    /// The message with all its causes, `: ` between them: for one line of a log.
    pub fn chain(&self) -> String {
        Self::chain_of(self)
    }

    /// The same for any error.
    pub fn chain_of(error: &dyn std::error::Error) -> String {
        let mut text = error.to_string();
        let mut next = error.source();
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}
