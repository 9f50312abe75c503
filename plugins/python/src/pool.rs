//! A model's workers, and who of them takes the next request.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use drivetrain_engine::{EngineError, ErrorKind, LogLevel};

use crate::error::PythonError;
use crate::everywhere::Adapters;
use crate::package::Package;
use crate::supervisor;
use crate::worker::{Launch, Worker};

/// How long a request waits for a free worker before a further one is started.
const PATIENCE: Duration = Duration::from_millis(200);

/// How often one who waits shows that it lives.
const TURN: Duration = Duration::from_millis(200);

/// Most calls at once of a model.
const MOST_CALLS: u32 = 256;

/// How long workers that are let go may take to end.
const ENDING: Duration = Duration::from_secs(2);

/// A model's workers.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) model: String,
    pub(crate) launch: Launch,
    pub(crate) adapters: Adapters,
    state: Mutex<State>,
    changed: Condvar,
    /// The files that workers run; last, since it goes when they have gone.
    _package: Package,
}

/// What changes of a pool.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) seats: Vec<Seat>,
    /// Workers that are being started, by group.
    pub(crate) n_starting: Vec<u32>,
    /// Whether someone waits for a worker.
    pub(crate) is_short: bool,
    /// Workers that ended or could not be started since a request was last answered. More than may be
    /// are never forgotten.
    pub(crate) n_failures: u32,
    /// Starts that failed since one last worked.
    pub(crate) n_failed_starts: u32,
    /// Why the last start failed, if it did.
    pub(crate) start_error: Option<String>,
    /// Before this no worker is started.
    pub(crate) start_at: Instant,
    pub(crate) next_number: u32,
    pub(crate) is_closed: bool,
}

/// A worker's place.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) worker: Arc<Worker>,
    pub(crate) group: usize,
    /// Calls that it has.
    pub(crate) n_busy: u32,
    pub(crate) idle_since: Instant,
    /// Whether it is given nothing more, and let go when it has answered what it was given.
    pub(crate) is_leaving: bool,
}

impl Pool {
    /// Starts the least number of workers, and who looks after them.
    pub(crate) fn start(
        model: &str,
        launch: Launch,
        package: Package,
    ) -> Result<Arc<Self>, PythonError> {
        let n_groups = launch.settings.groups.len();
        let state = State {
            seats: Vec::new(),
            n_starting: vec![0; n_groups],
            is_short: false,
            n_failures: 0,
            n_failed_starts: 0,
            start_error: None,
            start_at: Instant::now(),
            next_number: 1,
            is_closed: false,
        };
        let adapters = match launch.settings.has_adapters {
            true => Adapters::in_dir(&launch.model_dir),
            false => Adapters::default(),
        };
        let pool = Arc::new(Self {
            model: model.to_owned(),
            adapters,
            launch,
            state: Mutex::new(state),
            changed: Condvar::new(),
            _package: package,
        });
        let started = supervisor::start_first(&pool).and_then(|()| supervisor::watch(&pool));
        started.inspect_err(|_| pool.close())?;
        Ok(pool)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change, or a while.
    pub(crate) fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        most: Duration,
    ) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, most);
        waited.map_or_else(|error| error.into_inner().0, |(state, _)| state)
    }

    /// Tells everyone that something has changed.
    pub(crate) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Whether a worker that is being started is not wanted any more.
    pub(crate) fn is_unwanted(&self) -> bool {
        self.launch.services.cancelled() || self.lock().is_closed
    }

    /// Calls that all workers there may be could take at once.
    pub(crate) fn most_calls(&self) -> u32 {
        let settings = &self.launch.settings;
        let state = self.lock();
        let said = state.seats.iter().map(|seat| seat.worker.max_in_flight()).max();
        drop(state);
        let of_one = said.or(settings.max_in_flight).unwrap_or(1);
        let n_groups = u32::try_from(settings.groups.len()).unwrap_or(u32::MAX);
        let n_workers = settings.max_workers.saturating_mul(n_groups);
        of_one.saturating_mul(n_workers).clamp(1, MOST_CALLS)
    }

    /// A worker with room for a call; waits for one as long as `limit`.
    pub(crate) fn acquire(&self, limit: Duration) -> Result<Lease<'_>, PythonError> {
        let asked = Instant::now();
        let none = |reason: &str| PythonError::NoWorker {
            model: self.model.clone(),
            reason: reason.to_owned(),
        };
        if self.launch.settings.max_workers == 0 {
            return Err(none("maxWorkers is 0"));
        }
        let mut state = self.lock();
        loop {
            if state.is_closed {
                return Err(none(""));
            }
            let free = state.seats.iter_mut().filter(|seat| {
                let has_room = seat.n_busy < seat.worker.max_in_flight();
                has_room && !seat.is_leaving && seat.worker.is_usable()
            });
            if let Some(seat) = free.min_by_key(|seat| seat.n_busy) {
                seat.n_busy += 1;
                return Ok(Lease { pool: self, worker: Arc::clone(&seat.worker) });
            }
            if self.has_failed(&state) {
                return Err(none("they failed one after the other"));
            }
            let is_starting = state.n_starting.iter().any(|n| *n > 0);
            let is_waiting = Instant::now() < state.start_at;
            if let Some(reason) = &state.start_error
                && state.seats.is_empty()
                && !is_starting
                && is_waiting
            {
                return Err(none(reason));
            }
            if self.launch.services.cancelled() {
                return Err(PythonError::Cancelled);
            }
            if asked.elapsed() >= limit {
                return Err(PythonError::AllBusy { model: self.model.clone(), limit });
            }
            state.is_short = state.seats.is_empty() || asked.elapsed() >= PATIENCE;
            self.show_life();
            state = self.wait(state, TURN);
        }
    }

    /// Room for a call of this very worker; waits for it as long as `limit`. None if it has gone.
    pub(crate) fn acquire_of(
        &self,
        worker: &Arc<Worker>,
        limit: Duration,
    ) -> Result<Option<Lease<'_>>, PythonError> {
        let asked = Instant::now();
        let mut state = self.lock();
        loop {
            let mut seats = state.seats.iter_mut();
            let Some(seat) = seats.find(|seat| Arc::ptr_eq(&seat.worker, worker)) else {
                return Ok(None);
            };
            if !worker.is_usable() {
                return Ok(None);
            }
            if seat.n_busy < worker.max_in_flight() {
                seat.n_busy += 1;
                return Ok(Some(Lease { pool: self, worker: Arc::clone(worker) }));
            }
            if self.launch.services.cancelled() {
                return Err(PythonError::Cancelled);
            }
            if asked.elapsed() >= limit {
                return Err(PythonError::AllBusy { model: self.model.clone(), limit });
            }
            self.show_life();
            state = self.wait(state, TURN);
        }
    }

    /// The workers that live.
    pub(crate) fn alive(&self) -> Vec<Arc<Worker>> {
        let state = self.lock();
        let seats = state.seats.iter().filter(|seat| seat.worker.is_usable());
        seats.map(|seat| Arc::clone(&seat.worker)).collect()
    }

    /// Tells the host that a call that takes its time is no silence.
    pub(crate) fn show_life(&self) {
        self.launch.services.progress("answering", 0, 0);
    }

    /// A request was answered, so the workers work; but a model that has failed stays so.
    pub(crate) fn worked(&self) {
        let mut state = self.lock();
        if !self.has_failed(&state) {
            state.n_failures = 0;
        }
    }

    /// Whether more workers failed, one after the other, than may.
    pub(crate) fn has_failed(&self, state: &State) -> bool {
        // One request may be the cause of a single failure.
        state.n_failures > self.launch.settings.retry_threshold.max(1)
    }

    /// Why the model is gone for good, if it is.
    pub(crate) fn health(&self) -> Result<(), EngineError> {
        let state = self.lock();
        if !self.has_failed(&state) {
            return Ok(());
        }
        let (n_failures, threshold) = (state.n_failures, self.launch.settings.retry_threshold);
        let reason = state.start_error.clone().unwrap_or_default();
        let message = format!(
            "{n_failures} workers failed one after the other (retry_threshold={threshold}){}{reason}",
            if reason.is_empty() { "" } else { ": " }
        );
        Err(EngineError::new(ErrorKind::DeviceLost, message))
    }

    /// Lets all workers go, and waits for their end.
    pub(crate) fn close(&self) {
        let deadline = Instant::now() + ENDING;
        let mut state = self.lock();
        state.is_closed = true;
        state.seats.iter().for_each(|seat| seat.worker.retire());
        self.notify();
        loop {
            let is_over = |seat: &Seat| seat.worker.end().is_some();
            let n_starting: u32 = state.n_starting.iter().sum();
            if n_starting == 0 && state.seats.iter().all(is_over) {
                break;
            }
            if Instant::now() >= deadline {
                let n_left = state.seats.iter().filter(|seat| !is_over(seat)).count();
                let text = format!("{n_left} workers did not end by themselves and are killed");
                self.launch.services.log(LogLevel::Warn, &text);
                break;
            }
            state = self.wait(state, Duration::from_millis(20));
        }
        state.seats.drain(..).for_each(|seat| seat.worker.kill("was told to end"));
    }
}

/// A worker's room for one call, given back when this is dropped.
pub(crate) struct Lease<'a> {
    pool: &'a Pool,
    pub(crate) worker: Arc<Worker>,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        let is_own = |seat: &&mut Seat| Arc::ptr_eq(&seat.worker, &self.worker);
        if let Some(seat) = state.seats.iter_mut().find(is_own) {
            seat.n_busy = seat.n_busy.saturating_sub(1);
            seat.idle_since = Instant::now();
        }
        drop(state);
        self.pool.notify();
    }
}
