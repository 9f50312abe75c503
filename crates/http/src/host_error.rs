//! From the host's errors to failures: which kind, and the words of the contract where it has some.

use std::error::Error;

use drivetrain_host::{EngineError, ErrorKind, HostError};

use crate::failure::{ApiError, FailureKind};

impl ApiError {
    /// A failure of a task. The host logs the calls to an engine that fail a task's request; those
    /// of engines that answer whole requests it does not.
    pub(crate) fn of_task(error: HostError) -> Self {
        let is_logged =
            matches!(error, HostError::Engine(_) | HostError::OutOfMemory { source: Some(_), .. });
        Self { is_logged, ..Self::from(error) }
    }
}

impl From<HostError> for ApiError {
    fn from(error: HostError) -> Self {
        let (kind, message) = match &error {
            HostError::BadRequest { .. } => (FailureKind::Untranslatable, chain(&error)),
            HostError::ModelNotFound { name, version } => {
                let version = version.as_deref().map(|v| format!(":{v}")).unwrap_or_default();
                (
                    FailureKind::ModelNotFound,
                    format!("Model or workflow not found: {name}{version}"),
                )
            }
            HostError::NoDefaultModel { .. } => {
                (FailureKind::BadRequest, "Parameter model_name is required.".to_owned())
            }
            HostError::NoAdapters => (FailureKind::BadRequest, error.to_string()),
            HostError::AdapterNotFound { .. } | HostError::AdapterFailed { .. } => {
                (FailureKind::Unparsed, chain(&error))
            }
            HostError::AdapterExists { .. } | HostError::AdapterSource { .. } => {
                (FailureKind::IllegalArgument, chain(&error))
            }
            HostError::NotReady { model } => {
                (FailureKind::NotReady, format!("Model is not ready: {model}"))
            }
            HostError::QueueFull { model, capacity } => (
                FailureKind::QueueFull,
                format!(
                    "Worker queue capacity exceeded for model: {model} ({capacity} requests wait: \
                     try again later, or raise job_queue_size)"
                ),
            ),
            // Its reason holds the causes already.
            HostError::Failed { .. } => (FailureKind::ModelUnusable, error.to_string()),
            HostError::ShuttingDown => (FailureKind::ShuttingDown, chain(&error)),
            HostError::Timeout { .. } => (FailureKind::TimedOut, chain(&error)),
            HostError::OutOfMemory { .. } => (FailureKind::OutOfMemory, chain(&error)),
            HostError::Engine(engine) => (engine_failure(engine), chain(&error)),
            // What stops a model from loading reaches a request only through the failed model.
            _ => (FailureKind::ModelUnusable, chain(&error)),
        };
        Self::new(kind, message)
    }
}

fn engine_failure(error: &EngineError) -> FailureKind {
    match error.kind() {
        ErrorKind::BadInput => FailureKind::Untranslatable,
        ErrorKind::OutOfMemory => FailureKind::OutOfMemory,
        ErrorKind::Cancelled => FailureKind::Cancelled,
        ErrorKind::DeviceLost | ErrorKind::Unsupported | ErrorKind::Internal => {
            FailureKind::EngineFailed
        }
    }
}

/// The message and its causes, `: ` between them.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
