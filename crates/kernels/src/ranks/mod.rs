//! What the ranks of a tensor-parallel model exchange: sums of what each computed, and columns side by side.
//!
//! Ranks are threads of one process that run the same program ([`Team`]). Each has memory of its own that
//! the others may read once all have met:
//!
//! ```text
//! sum      each: write a partial result
//!          all meet
//!          each: to += partial of rank 0 + of rank 1 + ...
//! ```
//!
//! There are two such memories a rank, used in turn: who writes the next result has met all others since
//! they read the one before it, so one meeting is enough. Of a long result each rank reads all partials
//! only for its own share of the elements, and the others' sums after a second meeting; an element is the
//! same chain of additions either way, so results have the same bits on every rank and in every run.
//!
//! Each rank says what it asks for before it meets the others. Where they don't agree, or one of them has
//! given up ([`Member::abandon`]), all get an error and none waits for ever.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use rendezvous::Rendezvous;

use crate::embedding::Onto;
use crate::error::{KernelError, length};
use crate::memory::{Buffer, Pages};
use crate::pool::{Cpu, Load, Parts, Pool, part};
use crate::vector::{Arithmetic, Simd, load, store};

mod rendezvous;

/// What the rendezvous is made of; its model in `tests/rendezvous.rs` has others.
mod sync {
    pub(super) use std::hint::spin_loop;
    pub(super) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
    pub(super) use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
    pub(super) use std::thread::yield_now;
}

/// Looks at the others before a rank goes to sleep, where each has a core: some tens of microseconds.
const LOOKS: u32 = 10_000;

/// The same where ranks share cores.
const FEW_LOOKS: u32 = 256;

/// Elements of a result from which on ranks share its summation, if there are three of them or more.
pub const LONG: usize = 16 << 10;

/// Threads for ranks, one each. Inside, kernels run on each rank's own pool.
#[derive(Debug)]
pub struct Team {
    leaders: Pool,
}

impl Team {
    /// Starts a thread for each rank but the first, which is the caller's.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn new(n_ranks: NonZeroUsize) -> std::io::Result<Self> {
        Ok(Self { leaders: Pool::of_leaders(n_ranks)? })
    }

    /// Calls `work(rank, state)` once for each rank, each on its thread, and waits for all of them.
    ///
    /// # Panics
    /// There is not a state for each rank, or it is called inside a run of a pool. With what `work`
    /// panicked with, once all are done.
    pub fn each<T: Send>(&self, states: &mut [T], work: impl Fn(usize, &mut T) + Sync) {
        assert_eq!(states.len(), self.leaders.n_threads(), "a state for each rank");
        let n_ranks = states.len();
        let states = Parts::new(states);
        self.leaders.run(|rank, n_threads| {
            assert_eq!(n_threads, n_ranks, "ranks are started inside another run");
            // SAFETY: each thread has a number of its own.
            let state = unsafe { states.take(rank..rank + 1) };
            work(rank, &mut state[0]);
        });
    }
}

/// What a rank asks for, as the others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Request {
    /// Which of the exchanges it is.
    step: usize,
    /// Elements of a sum; 0 for columns.
    len: usize,
    /// Rows of columns; 0 for a sum.
    n_rows: usize,
    /// The rank's own columns.
    width: usize,
}

/// A request where others read it.
#[derive(Default)]
#[repr(align(128))]
struct Posted {
    step: AtomicUsize,
    len: AtomicUsize,
    n_rows: AtomicUsize,
    width: AtomicUsize,
}

impl Posted {
    fn post(&self, request: Request) {
        self.step.store(request.step, Relaxed);
        self.len.store(request.len, Relaxed);
        self.n_rows.store(request.n_rows, Relaxed);
        self.width.store(request.width, Relaxed);
    }

    fn read(&self) -> Request {
        Request {
            step: self.step.load(Relaxed),
            len: self.len.load(Relaxed),
            n_rows: self.n_rows.load(Relaxed),
            width: self.width.load(Relaxed),
        }
    }
}

/// A rank's memory.
struct Own {
    buffers: [Buffer; 2],
    posted: [Posted; 2],
}

struct Shared {
    rendezvous: Rendezvous,
    ranks: Vec<Own>,
    /// Elements of a buffer.
    capacity: usize,
}

impl Shared {
    /// Where a rank's partial result begins.
    fn start(&self, rank: usize, turn: usize) -> *mut f32 {
        self.ranks[rank].buffers[turn].as_ptr().cast_mut().cast()
    }

    /// Elements of a rank's partial result.
    ///
    /// # Safety
    /// They lie inside, and nobody writes them before what is returned is dropped.
    unsafe fn read(&self, rank: usize, turn: usize, range: Range<usize>) -> &[f32] {
        debug_assert!(range.end <= self.capacity);
        // SAFETY: the caller says so; all bits are numbers.
        unsafe { std::slice::from_raw_parts(self.start(rank, turn).add(range.start), range.len()) }
    }

    /// The same, to be written.
    ///
    /// # Safety
    /// They lie inside, and nobody else touches them before what is returned is dropped.
    #[expect(clippy::mut_from_ref, reason = "ranks take different parts of what they share")]
    unsafe fn write(&self, rank: usize, turn: usize, range: Range<usize>) -> &mut [f32] {
        debug_assert!(range.end <= self.capacity);
        // SAFETY: the caller says so; all bits are numbers.
        unsafe {
            std::slice::from_raw_parts_mut(self.start(rank, turn).add(range.start), range.len())
        }
    }
}

/// One of the ranks that exchange results.
pub struct Member {
    shared: Arc<Shared>,
    rank: usize,
    /// Exchanges so far.
    step: usize,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.n_ranks())
    }
}

impl Member {
    /// A member for each of `n_ranks`, for results of `capacity` elements at most.
    pub fn group(n_ranks: NonZeroUsize, capacity: usize) -> Vec<Self> {
        let n_ranks = n_ranks.get();
        let n_cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let looks = if n_ranks <= n_cores { LOOKS } else { FEW_LOOKS };
        let buffer = || Buffer::new(capacity * size_of::<f32>(), Pages::Small);
        let own = || Own {
            buffers: [buffer(), buffer()],
            posted: [Posted::default(), Posted::default()],
        };
        let shared = Arc::new(Shared {
            rendezvous: Rendezvous::new(n_ranks, looks),
            ranks: (0..n_ranks).map(|_| own()).collect(),
            capacity,
        });
        let of = |rank| Self { shared: Arc::clone(&shared), rank, step: 0 };
        (0..n_ranks).map(of).collect()
    }

    /// Its number.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn n_ranks(&self) -> usize {
        self.shared.ranks.len()
    }

    /// Most elements of a partial result.
    pub fn capacity(&self) -> usize {
        self.shared.capacity
    }

    /// Memory for this rank's part of the next [`Self::sum`] or [`Self::gather`].
    ///
    /// # Errors
    /// `len` is more than the capacity, or a rank has given up.
    pub fn partial(&mut self, len: usize) -> Result<&mut [f32], KernelError> {
        if self.shared.rendezvous.is_abandoned() {
            return Err(KernelError::Abandoned);
        }
        if len > self.shared.capacity {
            let wanted = "at most the group's capacity";
            return Err(KernelError::Value { what: "a partial result", found: len, wanted });
        }
        // SAFETY: others read this buffer in the exchange before the last, which they left before they
        // came to the last one; this rank has left that, too. They will read it in the next one, for
        // which this member has to be borrowed again.
        Ok(unsafe { self.shared.write(self.rank, self.step % 2, 0..len) })
    }

    /// Writes the sum of all ranks' partial results to `to`, or adds it; every rank has the same.
    ///
    /// # Errors
    /// Ranks ask for different things, or one of them has given up; `to` is as it was.
    pub fn sum(&mut self, cpu: Cpu<'_>, to: &mut [f32], onto: Onto) -> Result<(), KernelError> {
        let (len, n_ranks) = (to.len(), self.n_ranks());
        let turn = self.meet(Request { step: self.step, len, n_rows: 0, width: 0 })?;
        let shared = &*self.shared;
        let is_shared = n_ranks > 2 && len >= LONG;
        if !is_shared {
            let to = Parts::new(to);
            cpu.split(len, Load::of(len * n_ranks), |range| {
                // SAFETY: ranges of different threads don't meet.
                let to = unsafe { to.take(range.clone()) };
                cpu.isa.run(Sum { shared, turn, range, to, onto });
            });
            return Ok(());
        }
        let own = part(len, 16, self.rank, n_ranks);
        cpu.split(own.len(), Load::of(own.len() * n_ranks), |range| {
            let range = own.start + range.start..own.start + range.end;
            // SAFETY: these elements of any buffer are read by this thread alone, and then written.
            let to = unsafe { shared.write(self.rank, turn, range.clone()) };
            cpu.isa.run(SumInPlace { shared, turn, range, to, rank: self.rank });
        });
        if !shared.rendezvous.wait() {
            return Err(KernelError::Abandoned);
        }
        let to = Parts::new(to);
        cpu.split(len, Load::of(len), |range| {
            for rank in 0..n_ranks {
                let own = part(len, 16, rank, n_ranks);
                let range = own.start.max(range.start)..own.end.min(range.end);
                if range.is_empty() {
                    continue;
                }
                // SAFETY: ranges of different threads don't meet.
                let to = unsafe { to.take(range.clone()) };
                // SAFETY: the rank has written its sums, and all have met since.
                let sums = unsafe { shared.read(rank, turn, range) };
                match onto {
                    Onto::Nothing => to.copy_from_slice(sums),
                    Onto::Output => to.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum),
                }
            }
        });
        Ok(())
    }

    /// Puts all ranks' partial results, `[n_rows, width]` with a width of each rank's own, side by side
    /// into `to` `[n_rows, sum of the widths]`, which one rank or several give.
    ///
    /// # Errors
    /// As [`Self::sum`], or `to` has another size.
    pub fn gather(
        &mut self,
        cpu: Cpu<'_>,
        (n_rows, width): (usize, usize),
        to: Option<&mut [f32]>,
    ) -> Result<(), KernelError> {
        let turn = self.meet(Request { step: self.step, len: 0, n_rows, width })?;
        let Some(to) = to else { return Ok(()) };
        let shared = &*self.shared;
        let widths = || shared.ranks.iter().map(|own| own.posted[turn].width.load(Relaxed));
        let total: usize = widths().sum();
        length("the gathered rows", to.len(), n_rows * total)?;
        let load = Load::of(to.len());
        let to = Parts::new(to);
        cpu.split(n_rows, load, |rows| {
            for row in rows {
                let mut column = row * total;
                for (rank, width) in widths().enumerate() {
                    // SAFETY: rows of different threads don't meet.
                    let to = unsafe { to.take(column..column + width) };
                    // SAFETY: the size was held against the capacity, and all have met since it was
                    // written.
                    to.copy_from_slice(unsafe {
                        shared.read(rank, turn, row * width..(row + 1) * width)
                    });
                    column += width;
                }
            }
        });
        Ok(())
    }

    /// Gives up: whoever waits for this rank, or would, gets an error. A group with a rank that has given
    /// up is of no further use.
    pub fn abandon(&self) {
        self.shared.rendezvous.abandon();
    }

    /// Says what is asked for, waits for the others, and compares. Returns which memories are in use.
    fn meet(&mut self, request: Request) -> Result<usize, KernelError> {
        let turn = self.step % 2;
        let n_elements = request.len.max(request.n_rows.saturating_mul(request.width));
        if n_elements > self.shared.capacity {
            self.abandon();
            let (found, wanted) = (n_elements, "at most the group's capacity");
            return Err(KernelError::Value { what: "a partial result", found, wanted });
        }
        self.shared.ranks[self.rank].posted[turn].post(request);
        if !self.shared.rendezvous.wait() {
            return Err(KernelError::Abandoned);
        }
        for own in &self.shared.ranks {
            let other = own.posted[turn].read();
            if (Request { width: request.width, ..other }) != request {
                self.abandon();
                let (found, wanted) = (other.len.max(other.n_rows), "what the other ranks ask for");
                return Err(KernelError::Value { what: "a rank's part", found, wanted });
            }
        }
        self.step += 1;
        Ok(turn)
    }
}

/// Elements `range` of all partial results to `to`.
struct Sum<'a> {
    shared: &'a Shared,
    turn: usize,
    range: Range<usize>,
    to: &'a mut [f32],
    onto: Onto,
}

impl Arithmetic for Sum<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { shared, turn, range, to, onto } = self;
        for (idx, to) in to.chunks_mut(S::LANES).enumerate() {
            let start = range.start + idx * S::LANES;
            let mut sum = s.splat(0.0);
            for rank in 0..shared.ranks.len() {
                // SAFETY: the range is inside what was asked for, and all have met since it was written.
                let from = load(s, unsafe { shared.read(rank, turn, start..start + to.len()) });
                sum = if rank == 0 { from } else { s.add(sum, from) };
            }
            if onto == Onto::Output {
                sum = s.add(load(s, to), sum);
            }
            store(s, to, sum);
        }
    }
}

/// Elements `range` of all partial results to `to`, which is these elements of `rank`'s own.
struct SumInPlace<'a> {
    shared: &'a Shared,
    turn: usize,
    range: Range<usize>,
    to: &'a mut [f32],
    rank: usize,
}

impl Arithmetic for SumInPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { shared, turn, range, to, rank: own } = self;
        for (idx, to) in to.chunks_mut(S::LANES).enumerate() {
            let start = range.start + idx * S::LANES;
            let mut sum = s.splat(0.0);
            for rank in 0..shared.ranks.len() {
                let from = match rank == own {
                    true => load(s, to),
                    // SAFETY: as in `Sum`, and it is another buffer than `to`'s.
                    false => load(s, unsafe { shared.read(rank, turn, start..start + to.len()) }),
                };
                sum = if rank == 0 { from } else { s.add(sum, from) };
            }
            store(s, to, sum);
        }
    }
}
