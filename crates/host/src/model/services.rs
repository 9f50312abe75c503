//! What the host does for an engine: its log lines, metrics and progress, and the order to stop.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use drivetrain_engine::{HostServices, LogLevel, MetricKind};
use metrics::{counter, gauge, histogram};

use crate::metrics::MODEL;
use crate::model::lifecycle::Lifecycle;

/// Most metrics of its own that a model has on the metrics page.
const MAX_NAMES: usize = 64;
const MAX_NAME_BYTES: usize = 100;

/// The services of one model.
pub(crate) struct ModelServices {
    pub(crate) model: String,
    pub(crate) engine: String,
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) published: Published,
    /// When loading the model again has taken too long; the first load's limit is the life cycle's.
    pub(crate) limit: Option<Instant>,
}

/// The metrics that an engine, or the code behind it, has named. They are strangers' words, so there
/// is a limit to them.
#[derive(Debug, Default)]
pub(crate) struct Published(Mutex<BTreeSet<String>>);

impl Published {
    /// Whether this name may be on the metrics page.
    fn admits(&self, name: &str) -> bool {
        let is_name = !name.starts_with(|c: char| c.is_ascii_digit())
            && (1..=MAX_NAME_BYTES).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && !name.starts_with("drivetrain_");
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_name || names.contains(name) {
            return is_name;
        }
        let has_room = names.len() < MAX_NAMES;
        if has_room {
            names.insert(name.to_owned());
        }
        has_room
    }
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
        if !self.published.admits(name) {
            return;
        }
        let (name, model) = (name.to_owned(), model.to_owned());
        match kind {
            // A counter counts up, in whole steps; what is no step of that kind counts nothing.
            MetricKind::Counter => counter!(name, MODEL => model).increment(value as u64),
            MetricKind::Gauge => gauge!(name, MODEL => model).set(value),
            MetricKind::Histogram => histogram!(name, MODEL => model).record(value),
        }
    }

    fn progress(&self, stage: &str, done: u64, total: u64) {
        self.lifecycle.beat();
        self.lifecycle.progress(stage, done, total);
    }

    fn cancelled(&self) -> bool {
        let is_late = self.limit.is_some_and(|limit| Instant::now() > limit);
        is_late || self.stop.load(Ordering::Relaxed) || self.lifecycle.load_is_late()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_strangers_are_few_and_plain() {
        let published = Published::default();
        for wrong in ["", "9a", "a b", "a\nb", "drivetrain_x", &"x".repeat(101)] {
            assert!(!published.admits(wrong), "{wrong:?}");
        }
        assert!((0..MAX_NAMES).all(|n| published.admits(&format!("name_{n}"))));
        assert!(published.admits("name_0"), "one that is known stays");
        assert!(!published.admits("one_too_many"));
    }
}
