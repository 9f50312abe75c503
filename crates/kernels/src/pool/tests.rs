//! Runs of a pool: that each thread has its part, that sleepers wake, and what a panic does.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use drivetrain_kernels::testing::Parts;
use drivetrain_kernels::{Pool, part};

fn pool(n_threads: usize) -> Pool {
    Pool::new(NonZeroUsize::new(n_threads).unwrap()).unwrap()
}

#[test]
fn every_thread_is_called_once_a_run() {
    for n_threads in 1..=5 {
        let pool = pool(n_threads);
        let calls: Vec<AtomicUsize> = (0..n_threads).map(|_| AtomicUsize::new(0)).collect();
        for run in 1..=2000 {
            pool.run(|idx, n| {
                assert_eq!(n, n_threads);
                calls[idx].fetch_add(1, SeqCst);
            });
            assert!(calls.iter().all(|calls| calls.load(SeqCst) == run), "run {run}");
        }
    }
}

#[test]
fn sleepers_wake() {
    let pool = pool(3);
    let total = AtomicUsize::new(0);
    for pause in [0, 20, 1, 0, 15, 3] {
        thread::sleep(Duration::from_millis(pause));
        pool.run(|idx, _| {
            // The caller waits long enough to sleep, too.
            thread::sleep(Duration::from_millis(idx as u64 * 3));
            total.fetch_add(1, SeqCst);
        });
    }
    assert_eq!(total.load(SeqCst), 18);
}

#[test]
fn a_panic_reaches_the_caller_and_ends_nothing() {
    let pool = pool(3);
    for wrong in [0, 1, 2, 1] {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(|idx, _| assert_ne!(idx, wrong, "thread {wrong}"));
        }));
        let message = *outcome.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains(&format!("thread {wrong}")), "{message}");
        let called = AtomicUsize::new(0);
        pool.run(|_, _| {
            called.fetch_add(1, SeqCst);
        });
        assert_eq!(called.load(SeqCst), 3);
    }
}

#[test]
fn what_a_run_wrote_is_seen_by_the_next() {
    let pool = pool(4);
    let mut values = vec![0_u64; 1003];
    for round in 0..500 {
        let parts = Parts::new(&mut values);
        pool.run(|idx, n| {
            // Each round another thread has each element.
            let range = part(1003, 7, (idx + round) % n, n);
            // SAFETY: ranges of different threads don't meet.
            let mine = unsafe { parts.take(range) };
            mine.iter_mut().for_each(|value| *value += 1);
        });
    }
    assert!(values.iter().all(|value| *value == 500));
}

#[test]
fn pools_can_be_shared_and_runs_nested() {
    let pool = pool(2);
    let total = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..200 {
                    pool.run(|_, _| {
                        pool.run(|idx, n| {
                            assert_eq!((idx, n), (0, 1));
                            total.fetch_add(1, SeqCst);
                        });
                    });
                }
            });
        }
    });
    assert_eq!(total.load(SeqCst), 1200);
}

#[test]
fn parts_cover_all_and_are_whole_units() {
    for (len, unit, n) in [(100, 16, 3), (5, 16, 4), (0, 4, 2), (64, 1, 7)] {
        let parts: Vec<_> = (0..n).map(|idx| part(len, unit, idx, n)).collect();
        assert_eq!((parts[0].start, parts[n - 1].end), (0, len));
        assert!(parts.windows(2).all(|two| two[0].end == two[1].start));
        assert!(parts.iter().all(|part| part.start % unit == 0 || part.start == len));
    }
}
