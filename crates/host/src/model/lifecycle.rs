//! Where a model is in its life, and whether its thread still turns.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::HostError;

/// How long past its limit a load that does not stop by itself is waited for.
const LOAD_GRACE: Duration = Duration::from_secs(2);

/// Where a model is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelStatus {
    /// It loads; the engine says how far it is.
    Loading {
        /// What is being done.
        stage: String,
        /// How much of it is done, in bytes or other units.
        done: u64,
        /// How much there is; 0 if that is not known.
        total: u64,
    },
    /// It answers.
    Ready,
    /// It should answer, but its engine shows no life or says that something is wrong.
    Unhealthy {
        /// What is wrong.
        reason: String,
    },
    /// It is gone for good.
    Failed {
        /// Why, causes included.
        reason: String,
    },
    /// It takes no more requests and ends what it has.
    Unloading,
}

impl fmt::Display for ModelStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loading { stage, done, total } if *total > 0 => {
                write!(f, "loading: {stage}, {done} of {total}")
            }
            Self::Loading { stage, .. } => write!(f, "loading: {stage}"),
            Self::Ready => f.write_str("ready"),
            Self::Unhealthy { reason } => write!(f, "unhealthy: {reason}"),
            Self::Failed { reason } => write!(f, "failed: {reason}"),
            Self::Unloading => f.write_str("unloading"),
        }
    }
}

#[derive(Debug)]
enum State {
    Loading {
        stage: String,
        done: u64,
        total: u64,
    },
    Ready,
    /// It was lost, and is loaded again.
    Lost {
        reason: String,
        error: Arc<HostError>,
    },
    Failed {
        reason: String,
        error: Arc<HostError>,
    },
    Unloading,
}

/// A model's state, written by its own thread and read by everybody.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    model: String,
    state: Mutex<State>,
    changed: Condvar,
    notify: Notify,
    born: Instant,
    /// Milliseconds from `born` to the last sign of life.
    beat: AtomicU64,
    /// Milliseconds without one after which the model is unhealthy.
    beat_limit: AtomicU64,
    /// What the engine's own health check said, if it was not well.
    illness: Mutex<Option<String>>,
    is_ill: AtomicBool,
    /// Milliseconds from `born` by which loading must be over.
    load_limit: AtomicU64,
    is_loaded: AtomicBool,
    /// Whether the engine has let go of the model.
    is_gone: AtomicBool,
}

impl Lifecycle {
    pub(crate) fn new(model: &str, load_limit: Duration) -> Self {
        Self {
            model: model.to_owned(),
            state: Mutex::new(State::Loading { stage: "waiting".to_owned(), done: 0, total: 0 }),
            changed: Condvar::new(),
            notify: Notify::new(),
            born: Instant::now(),
            beat: AtomicU64::new(0),
            beat_limit: AtomicU64::new(u64::MAX),
            illness: Mutex::new(None),
            is_ill: AtomicBool::new(false),
            load_limit: AtomicU64::new(millis(load_limit)),
            is_loaded: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
        }
    }

    pub(crate) fn set_load_limit(&self, limit: Duration) {
        self.load_limit.store(millis(limit), Ordering::Relaxed);
    }

    pub(crate) fn load_limit(&self) -> Duration {
        Duration::from_millis(self.load_limit.load(Ordering::Relaxed))
    }

    /// Whether loading goes on and has taken longer than it may.
    pub(crate) fn load_is_late(&self) -> bool {
        !self.is_loaded.load(Ordering::Relaxed) && self.born.elapsed() > self.load_limit()
    }

    pub(crate) fn set_beat_limit(&self, limit: Duration) {
        self.beat_limit.store(millis(limit), Ordering::Relaxed);
    }

    /// A sign of life.
    pub(crate) fn beat(&self) {
        self.beat.store(millis(self.born.elapsed()), Ordering::Relaxed);
    }

    /// A sign of life that is known only now.
    pub(crate) fn beat_at(&self, then: Instant) {
        let then = millis(then.saturating_duration_since(self.born));
        self.beat.fetch_max(then, Ordering::Relaxed);
    }

    /// What the engine's health check says: `None` for well.
    pub(crate) fn set_illness(&self, illness: Option<String>) {
        if illness.is_none() && !self.is_ill.load(Ordering::Relaxed) {
            return;
        }
        self.is_ill.store(illness.is_some(), Ordering::Relaxed);
        *self.illness.lock().unwrap_or_else(PoisonError::into_inner) = illness;
    }

    pub(crate) fn progress(&self, stage: &str, done: u64, total: u64) {
        if let State::Loading { stage: old_stage, done: old_done, total: old_total } =
            &mut *self.lock()
        {
            if old_stage != stage {
                stage.clone_into(old_stage);
            }
            (*old_done, *old_total) = (done, total);
        }
    }

    /// Loading is over; `false` if the model was given up meanwhile.
    pub(crate) fn ready(&self) -> bool {
        self.beat();
        self.is_loaded.store(true, Ordering::Relaxed);
        let mut state = self.lock();
        let is_loading = matches!(*state, State::Loading { .. });
        if is_loading {
            *state = State::Ready;
        }
        drop(state);
        self.wake();
        is_loading
    }

    /// The model is lost, and is loaded again; until then requests are told why they are refused.
    pub(crate) fn lose(&self, error: HostError) {
        let mut state = self.lock();
        if matches!(*state, State::Ready | State::Lost { .. }) {
            *state = State::Lost { reason: error.chain(), error: Arc::new(error) };
        }
        drop(state);
        self.wake();
    }

    /// Whether it is lost, and not given up.
    pub(crate) fn is_lost(&self) -> bool {
        matches!(*self.lock(), State::Lost { .. })
    }

    /// It is there again; `false` if it was given up meanwhile.
    pub(crate) fn regain(&self) -> bool {
        self.beat();
        self.set_illness(None);
        let mut state = self.lock();
        let is_lost = matches!(*state, State::Lost { .. });
        if is_lost {
            *state = State::Ready;
        }
        drop(state);
        self.wake();
        is_lost
    }

    /// The model is gone; the first reason stays.
    pub(crate) fn fail(&self, error: HostError) {
        let mut state = self.lock();
        if !matches!(*state, State::Failed { .. }) {
            *state = State::Failed { reason: error.chain(), error: Arc::new(error) };
        }
        drop(state);
        self.wake();
    }

    pub(crate) fn unload(&self) {
        let mut state = self.lock();
        if !matches!(*state, State::Failed { .. }) {
            *state = State::Unloading;
        }
        drop(state);
        self.wake();
    }

    /// The model's thread is at its end, and holds nothing of the model any more.
    pub(crate) fn gone(&self) {
        self.is_gone.store(true, Ordering::Release);
        self.wake();
    }

    /// Waits until the model's thread is at its end.
    pub(crate) async fn wait_gone(&self) {
        loop {
            let changed = self.notify.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_gone.load(Ordering::Acquire) {
                return;
            }
            let _ = tokio::time::timeout(Duration::from_millis(500), changed).await;
        }
    }

    pub(crate) fn status(&self) -> ModelStatus {
        match &*self.lock() {
            State::Loading { .. } if self.load_is_lost() => {
                ModelStatus::Failed { reason: self.load_timeout().to_string() }
            }
            State::Loading { stage, done, total } => {
                ModelStatus::Loading { stage: stage.clone(), done: *done, total: *total }
            }
            State::Lost { reason, .. } => ModelStatus::Unhealthy { reason: reason.clone() },
            State::Failed { reason, .. } => ModelStatus::Failed { reason: reason.clone() },
            State::Unloading => ModelStatus::Unloading,
            State::Ready => match self.ailment() {
                Some(reason) => ModelStatus::Unhealthy { reason },
                None => ModelStatus::Ready,
            },
        }
    }

    fn ailment(&self) -> Option<String> {
        let silence = millis(self.born.elapsed()).saturating_sub(self.beat.load(Ordering::Relaxed));
        if silence > self.beat_limit.load(Ordering::Relaxed) {
            return Some(format!("the engine has shown no life for {} s", silence / 1000));
        }
        if !self.is_ill.load(Ordering::Relaxed) {
            return None;
        }
        self.illness.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether requests are taken.
    ///
    /// # Errors
    /// `NotReady`, or `Failed` while it is lost, too.
    pub(crate) fn check_ready(&self) -> Result<(), HostError> {
        match &*self.lock() {
            State::Ready => Ok(()),
            State::Lost { reason, error } | State::Failed { reason, error } => {
                Err(self.failed(reason, error))
            }
            State::Loading { .. } if self.load_is_lost() => Err(self.load_timeout()),
            State::Loading { .. } | State::Unloading => {
                Err(HostError::NotReady { model: self.model.clone() })
            }
        }
    }

    /// Why the model takes nothing more, for a request that it had already taken.
    pub(crate) fn lost(&self) -> HostError {
        match self.check_ready() {
            Err(error) => error,
            Ok(()) => HostError::Failed {
                model: self.model.clone(),
                reason: "its worker has ended".to_owned(),
                source: None,
            },
        }
    }

    /// The end of loading: ready, or why not; `None` while it goes on.
    fn settled(&self) -> Option<Result<(), HostError>> {
        match &*self.lock() {
            State::Loading { .. } if self.load_is_lost() => Some(Err(self.load_timeout())),
            State::Loading { .. } | State::Lost { .. } => None,
            State::Ready => Some(Ok(())),
            State::Failed { error, .. } => Some(Err(HostError::clone(error))),
            State::Unloading => Some(Err(HostError::NotReady { model: self.model.clone() })),
        }
    }

    pub(crate) async fn wait_ready(&self) -> Result<(), HostError> {
        loop {
            let changed = self.notify.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(end) = self.settled() {
                return end;
            }
            let _ = tokio::time::timeout(Duration::from_millis(500), changed).await;
        }
    }

    pub(crate) fn wait_ready_blocking(&self) -> Result<(), HostError> {
        loop {
            if let Some(end) = self.settled() {
                return end;
            }
            let state = self.lock();
            if matches!(*state, State::Loading { .. } | State::Lost { .. }) {
                let _ = self.changed.wait_timeout(state, Duration::from_millis(500));
            }
        }
    }

    fn load_is_lost(&self) -> bool {
        self.born.elapsed() > self.load_limit() + LOAD_GRACE
    }

    fn load_timeout(&self) -> HostError {
        HostError::LoadTimeout { model: self.model.clone(), limit: self.load_limit() }
    }

    fn failed(&self, reason: &str, error: &Arc<HostError>) -> HostError {
        HostError::Failed {
            model: self.model.clone(),
            reason: reason.to_owned(),
            source: Some(Arc::clone(error)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.changed.notify_all();
        self.notify.notify_waiters();
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
