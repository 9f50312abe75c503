//! Who looks after the workers: starts them, replaces those that end, lets the idle ones go.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use drivetrain_engine::LogLevel;

use crate::error::PythonError;
use crate::everywhere;
use crate::pool::{Pool, Seat, State};
use crate::settings::MEMORY;
use crate::worker::Worker;

/// How often it is looked around when nothing happens.
const TURN: Duration = Duration::from_millis(250);

/// How long after a failed start the next one is tried; doubled with each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Starts the least number of workers of each group, in turn or at once. The first failure ends it.
pub(crate) fn start_first(pool: &Arc<Pool>) -> Result<(), PythonError> {
    let settings = &pool.launch.settings;
    let n_each = settings.min_workers as usize;
    let all: Vec<usize> =
        (0..settings.groups.len()).flat_map(|group| std::iter::repeat_n(group, n_each)).collect();
    let n_all = all.len() as u64;
    if settings.starts_at_once {
        let starts: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = all
                .iter()
                .map(|group| scope.spawn(|| start(pool, reserve(pool, *group))))
                .collect();
            threads.into_iter().map(thread::ScopedJoinHandle::join).collect()
        });
        return starts.into_iter().try_for_each(|start| {
            start.unwrap_or_else(|_| {
                let reason = "a thread that started a worker panicked".to_owned();
                Err(PythonError::Load { reason })
            })
        });
    }
    for (done, group) in all.into_iter().enumerate() {
        pool.launch.services.progress("starting workers", done as u64, n_all);
        start(pool, reserve(pool, group))?;
    }
    Ok(())
}

/// A worker that is to be started, and is counted as such.
#[derive(Clone, Copy, Debug)]
struct Reserved {
    group: usize,
    number: u32,
}

fn reserve(pool: &Pool, group: usize) -> Reserved {
    reserve_in(&mut pool.lock(), group)
}

fn reserve_in(state: &mut State, group: usize) -> Reserved {
    if let Some(n) = state.n_starting.get_mut(group) {
        *n += 1;
    }
    state.next_number += 1;
    Reserved { group, number: state.next_number - 1 }
}

/// Starts a worker and gives it a seat.
fn start(pool: &Arc<Pool>, reserved: Reserved) -> Result<(), PythonError> {
    let Reserved { group, number } = reserved;
    let weak = Arc::downgrade(pool);
    let on_end = Box::new(move || {
        if let Some(pool) = Weak::upgrade(&weak) {
            pool.notify();
        }
    });
    let devices = pool.launch.settings.groups.get(group).cloned().unwrap_or_default();
    let began = Instant::now();
    let is_unwanted = || pool.is_unwanted();
    let started = Worker::start(&pool.launch, number, &devices, &is_unwanted, on_end);
    let known = pool.adapters.lock();
    if let Ok(worker) = &started {
        everywhere::tell(pool, &known, worker);
    }
    let mut state = pool.lock();
    if let Some(n) = state.n_starting.get_mut(group) {
        *n -= 1;
    }
    let end = match started {
        Ok(worker) => {
            let elapsed_ms = began.elapsed().as_millis();
            let text = format!("worker {number} is ready after {elapsed_ms} ms");
            pool.launch.services.log(LogLevel::Info, &text);
            if state.is_closed {
                worker.retire();
            }
            let idle_since = Instant::now();
            state.seats.push(Seat { worker, group, n_busy: 0, idle_since, is_leaving: false });
            (state.n_failed_starts, state.start_error) = (0, None);
            Ok(())
        }
        Err(error) => Err(error),
    };
    drop(state);
    drop(known);
    pool.notify();
    end
}

/// Starts the thread that looks after the workers until the pool is closed.
pub(crate) fn watch(pool: &Arc<Pool>) -> Result<(), PythonError> {
    let weak = Arc::downgrade(pool);
    let thread = thread::Builder::new().name(format!("{} workers", pool.model));
    let spawned = thread.spawn(move || {
        while let Some(pool) = weak.upgrade() {
            let state = pool.lock();
            if state.is_closed {
                return;
            }
            let mut state = pool.wait(state, TURN);
            if state.is_closed {
                return;
            }
            state.seats.iter().for_each(|seat| seat.worker.look());
            retire_large(&pool, &mut state);
            bury(&pool, &mut state);
            retire_idle(&pool, &mut state);
            let wanted = missing(&pool, &mut state);
            drop(state);
            for reserved in wanted {
                replace(&pool, reserved);
            }
        }
    });
    let what = "its supervisor could not be given a thread";
    spawned.map(drop).map_err(|source| PythonError::System { worker: 0, what, source })
}

/// Takes the seats of workers that have ended, and counts failures.
fn bury(pool: &Pool, state: &mut State) {
    let ended: Vec<Arc<Worker>> = state
        .seats
        .extract_if(.., |seat| seat.worker.end().is_some())
        .map(|seat| seat.worker)
        .collect();
    for worker in ended {
        let how = worker.end().unwrap_or_default();
        let text = format!("worker {} {how}", worker.number());
        if worker.is_retired() {
            pool.launch.services.log(LogLevel::Info, &text);
        } else {
            state.n_failures = state.n_failures.saturating_add(1);
            let next = if pool.has_failed(state) {
                "the model has failed"
            } else {
                "another one is started"
            };
            pool.launch.services.log(LogLevel::Error, &format!("{text}; {next}"));
        }
    }
}

/// Replaces workers that have more memory than they may: at once where it is a quarter more, else when
/// they have answered what they were given.
fn retire_large(pool: &Pool, state: &mut State) {
    let Some(most) = pool.launch.settings.max_bytes else { return };
    for seat in &mut state.seats {
        let bytes = seat.worker.own_bytes();
        if bytes <= most || seat.worker.end().is_some() {
            continue;
        }
        let held = format!("held {} MB of memory, more than {MEMORY}={}", bytes >> 20, most >> 20);
        if bytes > most + most / 4 && seat.n_busy > 0 {
            seat.worker.kill(&format!("{held}, and was replaced"));
        } else if !seat.is_leaving {
            seat.is_leaving = true;
            let text = format!("worker {} {held}, and is replaced", seat.worker.number());
            pool.launch.services.log(LogLevel::Warn, &text);
        }
    }
    for seat in state.seats.extract_if(.., |seat| seat.is_leaving && seat.n_busy == 0) {
        seat.worker.retire();
    }
}

/// Lets workers above the least number go that had nothing to do for long.
fn retire_idle(pool: &Pool, state: &mut State) {
    let settings = &pool.launch.settings;
    for group in 0..settings.groups.len() {
        let n_alive = state.seats.iter().filter(|seat| seat.group == group).count();
        let n_spare = n_alive.saturating_sub(settings.min_workers as usize);
        let is_idle = |seat: &Seat| {
            seat.group == group
                && seat.n_busy == 0
                && seat.idle_since.elapsed() >= settings.max_idle
        };
        for seat in state.seats.extract_if(.., |seat| is_idle(seat)).take(n_spare) {
            seat.worker.retire();
            let text = format!("worker {} was idle and is let go", seat.worker.number());
            pool.launch.services.log(LogLevel::Info, &text);
        }
    }
}

/// The workers that are to be started now.
fn missing(pool: &Pool, state: &mut State) -> Vec<Reserved> {
    if Instant::now() < state.start_at || pool.has_failed(state) {
        return Vec::new();
    }
    let settings = &pool.launch.settings;
    let is_short = std::mem::take(&mut state.is_short);
    let mut groups = Vec::new();
    for (group, n_starting) in state.n_starting.iter().enumerate() {
        let n_seats = state.seats.iter().filter(|seat| seat.group == group).count() as u32;
        let n = n_seats + n_starting;
        let n_missing = settings.min_workers.saturating_sub(n);
        groups.extend(std::iter::repeat_n(group, n_missing as usize));
        if n_missing == 0 && *n_starting == 0 && is_short && n < settings.max_workers {
            groups.push(group);
        }
    }
    groups.into_iter().map(|group| reserve_in(state, group)).collect()
}

/// Starts a worker on a thread of its own, since that takes as long as the handler takes to load.
fn replace(pool: &Arc<Pool>, reserved: Reserved) {
    let own = Arc::clone(pool);
    let run = move || {
        if let Err(error) = start(&own, reserved) {
            failed(&own, &error);
        }
    };
    let thread = thread::Builder::new().name(format!("{} starts", pool.model));
    if let Err(source) = thread.spawn(run) {
        if let Some(n) = pool.lock().n_starting.get_mut(reserved.group) {
            *n -= 1;
        }
        let what = "it could not be given a thread";
        failed(pool, &PythonError::System { worker: reserved.number, what, source });
    }
}

fn failed(pool: &Pool, error: &PythonError) {
    let mut state = pool.lock();
    if state.is_closed {
        return;
    }
    let pause = FIRST_PAUSE.saturating_mul(1 << state.n_failed_starts.min(10)).min(LONGEST_PAUSE);
    state.n_failed_starts = state.n_failed_starts.saturating_add(1);
    state.n_failures = state.n_failures.saturating_add(1);
    state.start_error = Some(error.to_string());
    state.start_at = Instant::now() + pause;
    drop(state);
    let text = format!("no worker could be started: {error}; tried again in {pause:?}");
    pool.launch.services.log(LogLevel::Error, &text);
    pool.notify();
}
