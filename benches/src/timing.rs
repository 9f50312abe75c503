//! Best of several rounds.

use drivetrain_kernels::Pool;
use rustix::time::{ClockId, clock_gettime};

/// Seconds of a clock. A single thread is timed by the processor time it got, which other programs can't
/// add to; several threads by the wall clock, since they wait for each other.
pub(crate) fn now(n_threads: usize) -> f64 {
    let clock = if n_threads == 1 { ClockId::ThreadCPUTime } else { ClockId::Monotonic };
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// The shortest of `n` runs of `work`, in seconds.
pub(crate) fn best(n_threads: usize, n: usize, mut work: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..n {
        let started = now(n_threads);
        work();
        best = best.min(now(n_threads) - started);
    }
    best
}

/// What `work` counts, a second.
pub(crate) fn rate(pool: &Pool, work: impl FnOnce() -> f64) -> f64 {
    let started = now(pool.n_threads());
    let amount = work();
    amount / (now(pool.n_threads()) - started)
}

/// How long a run that does nothing takes.
pub(crate) fn pool(pool: &Pool) {
    let n = 1000;
    let seconds = best(pool.n_threads(), 50, || (0..n).for_each(|_| pool.run(|_, _| {})));
    println!("empty run: {:.0} ns", seconds / f64::from(n) * 1e9);
}
