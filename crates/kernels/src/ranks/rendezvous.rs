//! Where ranks wait for each other: nobody goes on until all have come.
//!
//! ```text
//! epoch = the meeting's number
//! arrived += 1
//! the last one:  arrived = 0, epoch += 1, wake who sleeps
//! the others:    wait until the epoch changes (watch, then sleep)
//! ```
//!
//! The epoch is what a sense-reversing barrier calls the sense, with more than two values. Sleeping is as
//! in the pool's barrier: who is about to sleep says so and looks again, who changes the epoch looks for
//! sleepers afterwards, and a fence stands between the two steps of either. `tests/rendezvous.rs` tries
//! all orders of a few threads' steps.

use super::sync::{
    AtomicBool, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, PoisonError, fence, spin_loop,
    yield_now,
};

/// One value a cache line, so that who writes it disturbs no other.
#[repr(align(128))]
struct Line<T>(T);

/// What `n` ranks meet at, again and again.
pub(super) struct Rendezvous {
    n: usize,
    /// Looks at the epoch before a rank goes to sleep.
    looks: u32,
    arrived: Line<AtomicUsize>,
    epoch: Line<AtomicUsize>,
    /// Whether a rank will never come.
    abandoned: Line<AtomicBool>,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Rendezvous {
    pub(super) fn new(n: usize, looks: u32) -> Self {
        Self {
            n,
            looks,
            arrived: Line(AtomicUsize::new(0)),
            epoch: Line(AtomicUsize::new(0)),
            abandoned: Line(AtomicBool::new(false)),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    /// Waits for all ranks. What each wrote before is seen by all afterwards. False if one of them will
    /// never come.
    pub(super) fn wait(&self) -> bool {
        if self.is_abandoned() {
            return false;
        }
        // It can't change before this rank has come.
        let epoch = self.epoch.0.load(Ordering::Relaxed);
        if self.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == self.n {
            self.arrived.0.store(0, Ordering::Relaxed);
            self.epoch.0.store(epoch.wrapping_add(1), Ordering::Release);
            self.wake();
            return true;
        }
        let has_changed = || self.epoch.0.load(Ordering::Acquire) != epoch;
        for look in 0..self.looks {
            if has_changed() {
                return true;
            }
            if self.is_abandoned() {
                return false;
            }
            // With fewer cores than ranks, who is waited for may need this one.
            if look % 128 == 127 {
                yield_now();
            }
            spin_loop();
        }
        self.sleepers.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let mut guard = self.lock();
        while !has_changed() && !self.is_abandoned() {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
        has_changed()
    }

    /// Lets all others go: this rank will never come.
    pub(super) fn abandon(&self) {
        self.abandoned.0.store(true, Ordering::Release);
        self.wake();
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.0.load(Ordering::Acquire)
    }

    fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            // Who holds the lock has looked and not slept yet.
            drop(self.lock());
            self.wake.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
