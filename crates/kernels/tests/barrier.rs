//! The pool's barrier under every order of a few threads' steps, as the memory model allows them (loom).
//!
//! What the threads share beside it is a cell that loom watches: reading it while another writes is an
//! error, and so is waiting for ever.
#![allow(clippy::unwrap_used, reason = "a test ends where its ground gives way")]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::thread::{self, Thread};

use barrier::Barrier;

#[path = "../src/pool/barrier.rs"]
mod barrier;

/// What the barrier is made of in this model.
mod sync {
    pub(super) use loom::hint::spin_loop;
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
    pub(super) use loom::thread::{park, yield_now};

    /// One look, then sleep: both ways of waiting are taken.
    pub(super) const LOOKS: u32 = 1;
}

/// A run's work, who waits for it, and what each worker made of it.
struct Shared {
    barrier: Barrier,
    work: UnsafeCell<usize>,
    caller: UnsafeCell<Option<Thread>>,
    results: Vec<UnsafeCell<usize>>,
}

// SAFETY: the cells are what loom watches: it fails if two threads meet in one.
unsafe impl Sync for Shared {}
// SAFETY: nothing in it belongs to a thread.
unsafe impl Send for Shared {}

/// Each run's work, doubled.
fn work(shared: &Shared, idx: usize, n_runs: usize) {
    let mut seen = 0;
    for _ in 0..n_runs {
        seen = shared.barrier.wait_for_run(idx, seen);
        // SAFETY: loom says so, or fails.
        let work = shared.work.with(|work| unsafe { *work });
        // SAFETY: as above.
        let caller = shared.caller.with(|caller| unsafe { (*caller).clone() });
        // SAFETY: as above.
        shared.results[idx].with_mut(|result| unsafe { *result = 2 * work });
        if shared.barrier.finish()
            && let Some(caller) = caller
        {
            caller.unpark();
        }
    }
}

/// Runs, each of which looks at what the workers made of it.
fn call(shared: &Shared, workers: &[Thread], n_runs: usize) {
    for run in 1..=n_runs {
        // SAFETY: as in `work`.
        shared.work.with_mut(|work| unsafe { *work = run });
        // SAFETY: as above.
        shared.caller.with_mut(|caller| unsafe { *caller = Some(thread::current()) });
        shared.barrier.start(|idx| workers[idx].unpark());
        shared.barrier.wait_for_workers();
        for result in &shared.results {
            // SAFETY: as above.
            assert_eq!(result.with(|result| unsafe { *result }), 2 * run);
        }
    }
}

/// `n_runs` runs of `n_workers` workers. The caller is not the thread that joins the others, since loom
/// lets a late `unpark` end a join.
fn runs(n_workers: usize, n_runs: usize) {
    let shared = Arc::new(Shared {
        barrier: Barrier::new(n_workers),
        work: UnsafeCell::new(0),
        caller: UnsafeCell::new(None),
        results: (0..n_workers).map(|_| UnsafeCell::new(0)).collect(),
    });
    let mut threads: Vec<_> = (0..shared.barrier.n_workers())
        .map(|idx| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || work(&shared, idx, n_runs))
        })
        .collect();
    let workers: Vec<Thread> = threads.iter().map(|worker| worker.thread().clone()).collect();
    threads.push(thread::spawn(move || call(&shared, &workers, n_runs)));
    for thread in threads {
        thread.join().unwrap();
    }
}

fn check(preemptions: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(model);
}

#[test]
fn no_order_of_one_worker_hangs_or_meets_the_caller() {
    check(None, || runs(1, 1));
    check(Some(3), || runs(1, 2));
}

#[test]
fn no_order_of_two_workers_hangs_or_meets_the_caller() {
    check(Some(2), || runs(2, 2));
}

/// The model can fail: without the second look a thread sleeps for ever.
#[test]
fn a_sleeper_that_does_not_look_again_is_found() {
    use sync::{AtomicBool, Ordering, fence, park};

    let model = || {
        let flags = Arc::new((AtomicBool::new(false), AtomicBool::new(false)));
        let theirs = Arc::clone(&flags);
        let worker = thread::spawn(move || {
            let (is_done, asleep) = &*theirs;
            if !is_done.load(Ordering::Acquire) {
                asleep.store(true, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                park();
            }
        });
        let (is_done, asleep) = &*flags;
        is_done.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        if asleep.load(Ordering::Relaxed) {
            worker.thread().unpark();
        }
        worker.join().unwrap();
    };
    let found = std::panic::catch_unwind(|| check(None, model)).unwrap_err();
    let message = found.downcast_ref::<String>().map_or("", String::as_str);
    assert!(message.contains("deadlock"), "{message}");
}
