//! What an engine says while it loads.

use std::sync::Mutex;

use drivetrain_engine::{HostServices, LogLevel, MetricKind};

/// Keeps warnings, and shows everything from `Info` on.
#[derive(Debug, Default)]
pub(crate) struct Notes(Mutex<Vec<String>>);

impl Notes {
    /// The warnings so far.
    pub(crate) fn take(&self) -> Vec<String> {
        self.0.lock().map(|mut notes| std::mem::take(&mut *notes)).unwrap_or_default()
    }
}

impl HostServices for Notes {
    fn log(&self, level: LogLevel, message: &str) {
        if level >= LogLevel::Info {
            eprintln!("{message}");
        }
        if level >= LogLevel::Warn
            && let Ok(mut notes) = self.0.lock()
        {
            notes.push(message.to_owned());
        }
    }

    fn metric(&self, _: MetricKind, _: &str, _: f64) {}

    fn progress(&self, _: &str, _: u64, _: u64) {}

    fn cancelled(&self) -> bool {
        false
    }
}
