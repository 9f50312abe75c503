//! Why a handler can't be run or has not answered.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use drivetrain_engine::{EngineError, ErrorKind};

/// Why a handler can't be run or has not answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum PythonError {
    /// The model has no code of its own.
    #[error(
        "{}: there is no Python handler: add a model.py, or name one with option.entryPoint", dir.display()
    )]
    NoEntryPoint {
        /// The model's directory.
        dir: PathBuf,
    },
    /// The entry point is a handler of DJL Serving's.
    #[error("option.entryPoint={entry}: a built-in handler is served by the other engines")]
    BuiltInHandler {
        /// The setting's value.
        entry: String,
    },
    /// An option has a value that it may not have.
    #[error("option.{key}={value}: expected {expected}")]
    Option {
        /// The option.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// The package could not be unpacked.
    #[error("the package djl_python can't be unpacked into a folder for temporary files")]
    Unpack(#[source] io::Error),
    /// The interpreter could not be started.
    #[error("{program}: can't be started: set option.pythonExecutable to a Python 3.9 or later")]
    NoInterpreter {
        /// The interpreter.
        program: String,
        /// What the system says.
        source: io::Error,
    },
    /// The interpreter is none that handlers can run on.
    #[error(
        "{program}: expected Python 3.9 or later, found {found}: set option.pythonExecutable to one"
    )]
    WrongInterpreter {
        /// The interpreter.
        program: String,
        /// What it said.
        found: String,
    },
    /// What comes before the workers' start failed.
    #[error("{what} failed: the log has what was printed")]
    Prepare {
        /// What was done.
        what: &'static str,
    },
    /// A process could not be started or talked to.
    #[error("worker {worker}: {what}")]
    System {
        /// The worker's number.
        worker: u32,
        /// What was tried.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The handler could not be loaded.
    #[error("the handler could not be loaded: {reason}")]
    Load {
        /// The first cause.
        reason: String,
    },
    /// The handler ran out of memory while it was loaded.
    #[error("out of memory while the handler was loaded: {reason}")]
    LoadOutOfMemory {
        /// What it said.
        reason: String,
    },
    /// The handler was not loaded in time.
    #[error("the handler was not loaded within model_loading_timeout={} s", limit.as_secs())]
    LoadTimeout {
        /// The limit.
        limit: Duration,
    },
    /// Nobody wants the model any more.
    #[error("loading was cancelled")]
    Cancelled,
    /// The worker ended while it had the request.
    #[error("Inference Engine Failure: worker {worker} {how}")]
    Ended {
        /// The worker's number.
        worker: u32,
        /// How it ended.
        how: Arc<str>,
    },
    /// The worker did not answer in time.
    #[error(
        "worker {worker} gave no answer within predict_timeout={} s{}", limit.as_secs_f64(), if *.was_killed { " and was replaced" } else { "" }
    )]
    Hung {
        /// The worker's number.
        worker: u32,
        /// The limit.
        limit: Duration,
        /// Whether the worker was ended for it.
        was_killed: bool,
    },
    /// There is no worker that could answer.
    #[error("All model workers has been shutdown: {model}{}{}", if reason.is_empty() { "" } else { ": " }, reason)]
    NoWorker {
        /// The model.
        model: String,
        /// Why not, if there is a reason.
        reason: String,
    },
    /// No worker was free in time.
    #[error("no worker of model {model} was free within {} s", limit.as_secs_f64())]
    AllBusy {
        /// The model.
        model: String,
        /// How long the request waited.
        limit: Duration,
    },
    /// The handler's answer fits the requests not.
    #[error("{message}")]
    BadAnswer {
        /// What is wrong.
        message: String,
    },
    /// The request is larger than a frame.
    #[error("the request has {n_bytes} bytes: expected at most {most}")]
    TooLarge {
        /// How large it is.
        n_bytes: u64,
        /// How large it may be.
        most: u64,
    },
}

impl PythonError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoEntryPoint { .. } | Self::BuiltInHandler { .. } => ErrorKind::Unsupported,
            Self::LoadOutOfMemory { .. } => ErrorKind::OutOfMemory,
            // These two have the contract's status for a worker that isn't there.
            Self::Cancelled | Self::NoWorker { .. } => ErrorKind::Cancelled,
            Self::Ended { .. } | Self::System { .. } | Self::Unpack(_) => ErrorKind::Internal,
            // A call that timed out has, by the contract, the status of a bad request.
            _ => ErrorKind::BadInput,
        }
    }
}

impl From<PythonError> for EngineError {
    fn from(error: PythonError) -> Self {
        let (kind, message) = (error.kind(), error.to_string());
        match std::error::Error::source(&error) {
            Some(source) => Self::wrap(kind, message, source),
            None => Self::new(kind, message),
        }
    }
}
