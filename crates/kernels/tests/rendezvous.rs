//! The ranks' rendezvous under every order of a few threads' steps, as the memory model allows them (loom).
#![allow(clippy::unwrap_used, reason = "a test ends where its ground gives way")]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::thread;

use rendezvous::Rendezvous;

#[path = "../src/ranks/rendezvous.rs"]
mod rendezvous;

/// What the rendezvous is made of in this model.
mod sync {
    pub(super) use loom::hint::spin_loop;
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
    pub(super) use loom::sync::{Condvar, Mutex, MutexGuard};
    pub(super) use loom::thread::yield_now;
    pub(super) use std::sync::PoisonError;
}

/// A value of each rank's own, which the others read once all have met.
struct Shared {
    rendezvous: Rendezvous,
    values: Vec<UnsafeCell<usize>>,
}

// SAFETY: the cells are what loom watches: it fails if two threads meet in one.
unsafe impl Sync for Shared {}
// SAFETY: nothing in it belongs to a thread.
unsafe impl Send for Shared {}

/// `n_rounds` times: each rank writes, all meet, each reads what all wrote, all meet.
fn rounds(n: usize, n_rounds: usize, looks: u32) {
    let shared = Arc::new(Shared {
        rendezvous: Rendezvous::new(n, looks),
        values: (0..n).map(|_| UnsafeCell::new(0)).collect(),
    });
    let ranks: Vec<_> = (0..n)
        .map(|rank| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                for round in 1..=n_rounds {
                    // SAFETY: loom says so, or fails.
                    shared.values[rank].with_mut(|value| unsafe { *value = round });
                    assert!(shared.rendezvous.wait());
                    for value in &shared.values {
                        // SAFETY: as above.
                        assert_eq!(value.with(|value| unsafe { *value }), round);
                    }
                    assert!(shared.rendezvous.wait());
                }
            })
        })
        .collect();
    for rank in ranks {
        rank.join().unwrap();
    }
}

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

#[test]
fn no_order_of_two_ranks_hangs_or_lets_one_go_early() {
    check(3, || rounds(2, 1, 0));
    check(2, || rounds(2, 2, 1));
}

#[test]
fn no_order_of_three_ranks_hangs_or_lets_one_go_early() {
    check(1, || rounds(3, 1, 0));
}

#[test]
fn who_waits_for_a_rank_that_left_is_let_go() {
    check(3, || {
        let rendezvous = Arc::new(Rendezvous::new(2, 0));
        let theirs = Arc::clone(&rendezvous);
        let waiting = thread::spawn(move || assert!(!theirs.wait()));
        rendezvous.abandon();
        waiting.join().unwrap();
        assert!(!rendezvous.wait());
    });
}
