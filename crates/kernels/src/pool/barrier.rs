//! How the caller of a run and its workers wait for each other.
//!
//! ```text
//! caller                              worker
//! publish the work                    wait until the epoch changes (watch, then park)
//! running = n, epoch += 1             do the work
//! wake who sleeps                     running -= 1, wake the caller if it sleeps
//! do its own part
//! wait until running is 0
//! ```
//!
//! Sleeping is a pair of flags: who is about to sleep says so, and looks at the counter again; who changes
//! the counter looks at the flag afterwards. A sequentially consistent fence stands between the two steps
//! of either, so that at least one of them sees the other. `tests/barrier.rs` tries all orders of a few
//! threads' steps.

use super::sync::{AtomicBool, AtomicUsize, LOOKS, Ordering, fence, park, spin_loop, yield_now};

/// One value a cache line, so that a thread that writes it disturbs no other.
#[repr(align(128))]
struct Line<T>(T);

/// What the caller and `n_workers` meet at.
pub(super) struct Barrier {
    /// Counts runs.
    epoch: Line<AtomicUsize>,
    /// Workers that have not finished the run.
    running: Line<AtomicUsize>,
    /// Whether each worker sleeps.
    asleep: Box<[Line<AtomicBool>]>,
    caller_asleep: Line<AtomicBool>,
}

impl Barrier {
    pub(super) fn new(n_workers: usize) -> Self {
        Self {
            epoch: Line(AtomicUsize::new(0)),
            running: Line(AtomicUsize::new(0)),
            asleep: (0..n_workers).map(|_| Line(AtomicBool::new(false))).collect(),
            caller_asleep: Line(AtomicBool::new(false)),
        }
    }

    pub(super) fn n_workers(&self) -> usize {
        self.asleep.len()
    }

    /// Starts a run; `unpark` wakes a worker. What was written before is seen by the workers.
    pub(super) fn start(&self, unpark: impl Fn(usize)) {
        self.running.0.store(self.asleep.len(), Ordering::Relaxed);
        self.epoch.0.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        for (worker_idx, asleep) in self.asleep.iter().enumerate() {
            if asleep.0.load(Ordering::Relaxed) {
                unpark(worker_idx);
            }
        }
    }

    /// Waits for the workers to finish the run. What they wrote is seen afterwards.
    pub(super) fn wait_for_workers(&self) {
        let is_done = || self.running.0.load(Ordering::Acquire) == 0;
        wait_until(is_done, &self.caller_asleep.0);
    }

    /// Waits for the run after run `seen`, and returns its number.
    pub(super) fn wait_for_run(&self, worker_idx: usize, seen: usize) -> usize {
        let has_changed = || self.epoch.0.load(Ordering::Acquire) != seen;
        wait_until(has_changed, &self.asleep[worker_idx].0);
        // A run waits for every worker, so that none is missed.
        seen.wrapping_add(1)
    }

    /// A worker's part is done. Returns whether it has to wake the caller.
    pub(super) fn finish(&self) -> bool {
        let is_last = self.running.0.fetch_sub(1, Ordering::AcqRel) == 1;
        fence(Ordering::SeqCst);
        is_last && self.caller_asleep.0.load(Ordering::Relaxed)
    }
}

/// Looks until `is_done`, and sleeps after a while with `asleep` set.
fn wait_until(is_done: impl Fn() -> bool, asleep: &AtomicBool) {
    for look in 0..LOOKS {
        if is_done() {
            return;
        }
        // With fewer cores than threads, who is waited for may need this one.
        if look % 1024 == 1023 {
            yield_now();
        }
        spin_loop();
    }
    asleep.store(true, Ordering::Relaxed);
    fence(Ordering::SeqCst);
    while !is_done() {
        park();
    }
    asleep.store(false, Ordering::Relaxed);
}
