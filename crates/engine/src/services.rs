//! What the host does for an engine: log, metrics, progress of loading, cancellation.

use std::fmt;
use std::sync::Arc;

use abi_stable::StableAbi;

/// How much a log line matters.
#[repr(u8)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LogLevel {
    /// Prompt text and the like; off unless asked for.
    Trace,
    /// One line a step.
    Debug,
    /// Life cycle.
    Info,
    /// Something works less well than it should.
    Warn,
    /// An operator must act.
    Error,
}

/// How a metric's values add up.
#[repr(u8)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MetricKind {
    /// The value is added to a sum.
    Counter,
    /// The value replaces the last one.
    Gauge,
    /// The value enters a distribution.
    Histogram,
}

/// The host's side of [`Services`]; called from any thread.
pub trait HostServices: Send + Sync {
    /// A log line.
    fn log(&self, level: LogLevel, message: &str);
    /// A value of the metric `name`, which ends in its unit (`_seconds`, `_bytes`, `_total`).
    fn metric(&self, kind: MetricKind, name: &str, value: f64);
    /// Loading has done `done` of `total` bytes (or other units) of `stage`.
    fn progress(&self, stage: &str, done: u64, total: u64);
    /// Whether the work in hand is no longer wanted.
    fn cancelled(&self) -> bool;
}

/// The host's services as an engine holds them: cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Services(Arc<dyn HostServices>);

impl Services {
    /// Services from an implementation.
    pub fn new(services: Arc<dyn HostServices>) -> Self {
        Self(services)
    }

    /// Services that drop everything and never cancel: for tests of an engine alone.
    pub fn silent() -> Self {
        Self::new(Arc::new(Silent))
    }

    /// A log line.
    pub fn log(&self, level: LogLevel, message: &str) {
        self.0.log(level, message);
    }

    /// A value of the metric `name`, which ends in its unit (`_seconds`, `_bytes`, `_total`).
    pub fn metric(&self, kind: MetricKind, name: &str, value: f64) {
        self.0.metric(kind, name, value);
    }

    /// Loading has done `done` of `total` bytes (or other units) of `stage`.
    pub fn progress(&self, stage: &str, done: u64, total: u64) {
        self.0.progress(stage, done, total);
    }

    /// Whether the work in hand is no longer wanted.
    pub fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Services(..)")
    }
}

struct Silent;

impl HostServices for Silent {
    fn log(&self, _: LogLevel, _: &str) {}
    fn metric(&self, _: MetricKind, _: &str, _: f64) {}
    fn progress(&self, _: &str, _: u64, _: u64) {}
    fn cancelled(&self) -> bool {
        false
    }
}
