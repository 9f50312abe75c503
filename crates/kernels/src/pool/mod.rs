//! Threads that wait for short work: a step of a model is hundreds of them.
//!
//! A run is one closure that each thread calls once. Threads are started with the pool; between runs
//! they watch a counter for some microseconds and then sleep. The thread that calls [`Pool::run`] is
//! number 0 and works, too. Nothing is allocated for a run.
//!
//! How they wait for each other is in `barrier`.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};

use barrier::Barrier;

use crate::isa::Isa;

mod barrier;

/// What the barrier is made of; its model in `tests/barrier.rs` has others.
mod sync {
    pub(super) use std::hint::spin_loop;
    pub(super) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
    pub(super) use std::thread::{park, yield_now};

    /// Looks at a counter before its thread goes to sleep: some tens of microseconds.
    pub(super) const LOOKS: u32 = 10_000;
}

/// The closure of a run, without its type.
#[derive(Clone, Copy)]
struct Work {
    closure: *const (),
    call: unsafe fn(*const (), usize, usize),
}

struct Shared {
    barrier: Barrier,
    /// Written by the caller while no worker runs.
    work: UnsafeCell<Option<Work>>,
    /// The thread to wake at the end of the run; written as `work` is.
    caller: UnsafeCell<Option<Thread>>,
    /// What a worker panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    ends: AtomicBool,
    /// Whether its threads may run other pools while they work.
    leads: bool,
}

// SAFETY: `work` and `caller` are written only between runs, by the thread that holds the pool's lock,
// and read by workers only between a run's start and their own `finish`. The closure that `work` points to is `Sync`, as `Pool::run` asks, and outlives the run.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it belongs to a thread.
unsafe impl Send for Shared {}

/// Threads that call one closure together, again and again.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held for a run, so that two threads may share a pool.
    lock: Mutex<()>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("n_threads", &self.n_threads()).finish()
    }
}

thread_local! {
    /// Whether this thread is inside a run, where another can't be started.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl Pool {
    /// Starts `n_threads - 1` threads.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn new(n_threads: NonZeroUsize) -> std::io::Result<Self> {
        Self::start_threads(n_threads, false)
    }

    /// As [`Self::new`], of threads that may run other pools inside a run.
    pub(crate) fn of_leaders(n_threads: NonZeroUsize) -> std::io::Result<Self> {
        Self::start_threads(n_threads, true)
    }

    fn start_threads(n_threads: NonZeroUsize, leads: bool) -> std::io::Result<Self> {
        let n_workers = n_threads.get() - 1;
        let shared = Arc::new(Shared {
            barrier: Barrier::new(n_workers),
            work: UnsafeCell::new(None),
            caller: UnsafeCell::new(None),
            panic: Mutex::new(None),
            ends: AtomicBool::new(false),
            leads,
        });
        let mut pool =
            Self { shared, workers: Vec::with_capacity(n_workers), lock: Mutex::new(()) };
        for worker_idx in 0..n_workers {
            let shared = Arc::clone(&pool.shared);
            let role = if leads { "rank" } else { "kernels" };
            let name = format!("{role}-{}", worker_idx + 1);
            let worker =
                thread::Builder::new().name(name).spawn(move || serve(&shared, worker_idx))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads that work on a run, the caller's among them.
    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work(thread_idx, n_threads)` once on each thread and waits for all of them.
    ///
    /// Inside another run, of any pool, it is called once, as the only thread.
    ///
    /// # Panics
    /// With what `work` panicked with, on whichever thread, once all are done.
    pub fn run<F: Fn(usize, usize) + Sync>(&self, work: F) {
        if self.workers.is_empty() || INSIDE.get() {
            return work(0, 1);
        }
        let _guard = lock(&self.lock);
        let n_threads = self.n_threads();
        // SAFETY: no worker runs, since each run waits for all of them, and the lock is held.
        unsafe {
            *self.shared.work.get() =
                Some(Work { closure: (&raw const work).cast(), call: call::<F> });
            *self.shared.caller.get() = Some(thread::current());
        }
        self.start();
        INSIDE.set(!self.shared.leads);
        let own = catch_unwind(AssertUnwindSafe(|| work(0, n_threads)));
        INSIDE.set(false);
        self.shared.barrier.wait_for_workers();
        let theirs = lock(&self.shared.panic).take();
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        if let Some(panic) = theirs {
            resume_unwind(panic);
        }
    }

    /// Calls `work` once with each piece of `bytes`, of `len` but for the last, and its index; the threads
    /// share them out in order.
    ///
    /// # Panics
    /// `len` is 0, or as [`Self::run`].
    pub fn pieces(&self, bytes: &mut [u8], len: usize, work: impl Fn(usize, &mut [u8]) + Sync) {
        let (n, end) = (bytes.len().div_ceil(len), bytes.len());
        let bytes = Parts::new(bytes);
        self.run(|thread_idx, n_threads| {
            for idx in part(n, 1, thread_idx, n_threads) {
                // SAFETY: each piece is one thread's.
                work(idx, unsafe { bytes.take(idx * len..end.min((idx + 1) * len)) });
            }
        });
    }

    /// Lets the workers run.
    fn start(&self) {
        self.shared.barrier.start(|worker_idx| {
            if let Some(worker) = self.workers.get(worker_idx) {
                worker.thread().unpark();
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        self.start();
        for worker in self.workers.drain(..) {
            // A worker catches what its work panics with, so there is nothing to hear.
            let _ = worker.join();
        }
    }
}

/// Takes a lock whose data no panic leaves half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls the closure that `closure` points to.
///
/// # Safety
/// It points to an `F` that lives until this returns.
unsafe fn call<F: Fn(usize, usize) + Sync>(
    closure: *const (),
    thread_idx: usize,
    n_threads: usize,
) {
    // SAFETY: the caller says so.
    let work = unsafe { &*closure.cast::<F>() };
    work(thread_idx, n_threads);
}

/// What a worker does until the pool ends.
fn serve(shared: &Shared, worker_idx: usize) {
    INSIDE.set(!shared.leads);
    let n_threads = shared.barrier.n_workers() + 1;
    let mut seen = 0;
    loop {
        seen = shared.barrier.wait_for_run(worker_idx, seen);
        if shared.ends.load(Ordering::Relaxed) {
            return;
        }
        // SAFETY: the caller wrote it before it started the run, and writes again only when all workers
        // have finished.
        let (work, caller) = unsafe { (*shared.work.get(), (*shared.caller.get()).clone()) };
        if let Some(work) = work {
            // SAFETY: the closure lives until `Pool::run` returns, which waits for `running`.
            let run = || unsafe { (work.call)(work.closure, worker_idx + 1, n_threads) };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
                lock(&shared.panic).get_or_insert(panic);
            }
        }
        if shared.barrier.finish()
            && let Some(caller) = caller
        {
            caller.unpark();
        }
    }
}

/// What kernels run on: vector instructions and threads.
#[derive(Clone, Copy, Debug)]
pub struct Cpu<'a> {
    /// The instruction set, chosen at load.
    pub isa: Isa,
    /// The threads.
    pub pool: &'a Pool,
}

impl Cpu<'_> {
    /// Calls `work` once with each thread's part of `0..n`. With little work, which its caller knows,
    /// the others are not woken.
    pub(crate) fn split(self, n: usize, load: Load, work: impl Fn(Range<usize>) + Sync) {
        match load {
            Load::Light => work(0..n),
            Load::Heavy => self.pool.run(|idx, n_threads| {
                let range = part(n, 1, idx, n_threads);
                if !range.is_empty() {
                    work(range);
                }
            }),
        }
    }
}

/// Whether work is worth more than one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    Light,
    Heavy,
}

impl Load {
    /// Of a pass over `n` elements: waking the others costs as much as some thousands.
    pub(crate) fn of(n: usize) -> Self {
        if n < 8192 { Self::Light } else { Self::Heavy }
    }
}

/// The part of `0..len` that is `thread_idx`'s: parts are as equal as whole `unit`s allow, in order.
pub fn part(len: usize, unit: usize, thread_idx: usize, n_threads: usize) -> Range<usize> {
    let n_units = len.div_ceil(unit);
    let start = |idx: usize| (n_units * idx / n_threads * unit).min(len);
    start(thread_idx)..start(thread_idx + 1)
}

/// A slice that threads write different parts of.
#[derive(Clone, Copy)]
pub struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it is a mutable slice, whose users promise to touch different elements.
unsafe impl<T: Send> Sync for Parts<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    /// The whole slice, to be taken in parts.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: std::marker::PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No other thread touches them before what is returned is dropped.
    ///
    /// # Panics
    /// `range` is not inside the slice.
    #[expect(clippy::mut_from_ref, reason = "callers take different parts of what they share")]
    pub unsafe fn take(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "a part outside its slice");
        // SAFETY: it lies inside the slice, and the caller says that it's taken once.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
