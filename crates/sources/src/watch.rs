//! How far a download is, and whether it is still wanted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Who waits for a download. Asked several times a second, on the thread that called.
pub trait Watch {
    /// How far it is: what is being done, and bytes done of the total; a total of 0 is not known.
    fn progress(&self, stage: &str, done: u64, total: u64);

    /// Whether to stop, and why.
    fn stop(&self) -> Option<Stop>;
}

/// Why a download is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It is no longer wanted.
    Cancelled,
    /// It took longer than this.
    Late(Duration),
}

/// A watch that wants everything and is told nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl Watch for Unwatched {
    fn progress(&self, _: &str, _: u64, _: u64) {}

    fn stop(&self) -> Option<Stop> {
        None
    }
}

/// The figures that the tasks of one download share.
#[derive(Debug)]
pub(crate) struct Counters {
    stage: Mutex<&'static str>,
    done: AtomicU64,
    total: AtomicU64,
}

impl Counters {
    pub(crate) fn new() -> Self {
        let stage = Mutex::new("looking up the model");
        Self { stage, done: AtomicU64::new(0), total: AtomicU64::new(0) }
    }

    pub(crate) fn begin(&self, stage: &'static str, total: u64) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, n_bytes: u64) {
        self.done.fetch_add(n_bytes, Ordering::Relaxed);
    }

    pub(crate) fn take_back(&self, n_bytes: u64) {
        self.done.fetch_sub(n_bytes, Ordering::Relaxed);
    }

    pub(crate) fn report(&self, watch: &dyn Watch) {
        let stage = *self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        let (done, total) = (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        watch.progress(stage, done.min(total), total);
    }
}
