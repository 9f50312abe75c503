//! What the host does for an engine: its log lines, metrics and progress, and the order to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use drivetrain_engine::{HostServices, LogLevel, MetricKind};

use crate::model::lifecycle::Lifecycle;

/// The services of one model.
pub(crate) struct ModelServices {
    pub(crate) model: String,
    pub(crate) engine: String,
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) stop: Arc<AtomicBool>,
}

impl HostServices for ModelServices {
    fn log(&self, level: LogLevel, message: &str) {
        let (model, engine) = (self.model.as_str(), self.engine.as_str());
        match level {
            LogLevel::Trace => tracing::trace!(target: "engine", model, engine, "{message}"),
            LogLevel::Debug => tracing::debug!(target: "engine", model, engine, "{message}"),
            LogLevel::Info => tracing::info!(target: "engine", model, engine, "{message}"),
            LogLevel::Warn => tracing::warn!(target: "engine", model, engine, "{message}"),
            LogLevel::Error => tracing::error!(target: "engine", model, engine, "{message}"),
        }
    }

    fn metric(&self, kind: MetricKind, name: &str, value: f64) {
        let (model, engine) = (self.model.as_str(), self.engine.as_str());
        tracing::debug!(target: "metric", model, engine, ?kind, name, value, "engine metric");
    }

    fn progress(&self, stage: &str, done: u64, total: u64) {
        self.lifecycle.beat();
        self.lifecycle.progress(stage, done, total);
    }

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.lifecycle.load_is_late()
    }
}
