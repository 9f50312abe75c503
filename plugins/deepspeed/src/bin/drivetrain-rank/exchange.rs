//! What ranks exchange, by MPI.
//!
//! ```text
//! short sum   every rank gets all parts, and adds them up itself
//! long sum    every rank gets all parts of its own piece (all-to-all), adds them up,
//!             and all get the sums (all-gather)
//! ```
//!
//! An element is part 0 + part 1 + ... either way, as it is where ranks are threads, so results have the
//! same bits on every rank, in every run, and in either form of ranks. MPI's own sums promise no order.
//! Nothing is allocated after the start. An error ends the job, which is MPI's default.

use drivetrain_fused::{Collective, Cpu, Group, KernelError, Onto};
use mpi::collective::SystemOperation;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};

/// Elements up to which a sum is short: where the number of messages costs more than their bytes.
const SHORT: usize = 4 << 10;

/// All ranks of the job.
#[derive(Debug)]
pub(crate) struct World {
    n_here: usize,
}

impl World {
    /// The job's ranks, once MPI runs.
    pub(crate) fn new() -> Self {
        let world = SimpleCommunicator::world();
        let here = world.split_shared(world.rank());
        Self { n_here: usize::try_from(here.size()).unwrap_or(1) }
    }
}

fn rank() -> usize {
    usize::try_from(SimpleCommunicator::world().rank()).unwrap_or(0)
}

fn n_ranks() -> usize {
    usize::try_from(SimpleCommunicator::world().size()).unwrap_or(1).max(1)
}

impl Group for World {
    fn rank(&self) -> usize {
        rank()
    }

    fn n_here(&self) -> usize {
        self.n_here
    }

    fn sum(&mut self, value: u64) -> u64 {
        let mut sum = 0;
        let world = SimpleCommunicator::world();
        world.all_reduce_into(&value, &mut sum, SystemOperation::sum());
        sum
    }

    fn least(&mut self, values: [u64; 2]) -> [u64; 2] {
        let mut least = [0; 2];
        let world = SimpleCommunicator::world();
        world.all_reduce_into(&values, &mut least, SystemOperation::min());
        least
    }

    fn collective(&mut self, capacity: usize) -> Box<dyn Collective> {
        Box::new(Exchange::new(capacity))
    }
}

/// One rank's memory for what it exchanges.
struct Exchange {
    rank: usize,
    n_ranks: usize,
    capacity: usize,
    /// This rank's part.
    own: Vec<f32>,
    /// What has come from all.
    all: Vec<f32>,
    /// Sums of this rank's piece.
    piece: Vec<f32>,
    /// Columns of each rank.
    widths: Vec<u64>,
    failed: std::sync::atomic::AtomicBool,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {} under MPI", self.rank, self.n_ranks)
    }
}

impl Exchange {
    fn new(capacity: usize) -> Self {
        let n_ranks = n_ranks();
        let padded = capacity.next_multiple_of(n_ranks);
        Self {
            rank: rank(),
            n_ranks,
            capacity,
            own: vec![0.0; padded],
            all: vec![0.0; padded.max(n_ranks * SHORT.min(capacity))],
            piece: vec![0.0; padded / n_ranks],
            widths: vec![0; n_ranks],
            failed: false.into(),
        }
    }

    /// Adds up the parts of `from`, one after the other, each as long as `to`.
    fn add_up(from: &[f32], to: &mut [f32]) {
        let mut parts = from.chunks_exact(to.len().max(1));
        if let Some(first) = parts.next() {
            to.copy_from_slice(first);
        }
        for part in parts {
            to.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
        }
    }

    fn check(&self, what: &'static str, found: usize) -> Result<(), KernelError> {
        if self.failed.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(KernelError::Abandoned);
        }
        if found > self.capacity {
            return Err(KernelError::Value { what, found, wanted: "at most the group's capacity" });
        }
        Ok(())
    }
}

/// Writes sums to `to`, or adds them.
fn put(sums: &[f32], to: &mut [f32], onto: Onto) {
    match onto {
        Onto::Nothing => to.copy_from_slice(sums),
        Onto::Output => to.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum),
    }
}

impl Collective for Exchange {
    fn rank(&self) -> usize {
        self.rank
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn partial(&mut self, len: usize) -> Result<&mut [f32], KernelError> {
        self.check("a partial result", len)?;
        Ok(&mut self.own[..len])
    }

    fn sum(&mut self, _: Cpu<'_>, to: &mut [f32], onto: Onto) -> Result<(), KernelError> {
        let (len, n) = (to.len(), self.n_ranks);
        self.check("a sum", len)?;
        if len == 0 {
            return Ok(());
        }
        let world = SimpleCommunicator::world();
        if len <= SHORT {
            let all = &mut self.all[..len * n];
            world.all_gather_into(&self.own[..len], all);
            // The own part has gone out.
            let sums = &mut self.own[..len];
            Self::add_up(all, sums);
            put(sums, to, onto);
            return Ok(());
        }
        let piece = len.div_ceil(n);
        let all = &mut self.all[..piece * n];
        world.all_to_all_into(&self.own[..piece * n], all);
        let sums = &mut self.piece[..piece];
        Self::add_up(all, sums);
        world.all_gather_into(&*sums, all);
        put(&all[..len], to, onto);
        Ok(())
    }

    fn gather(
        &mut self,
        _: Cpu<'_>,
        (n_rows, width): (usize, usize),
        to: Option<&mut [f32]>,
    ) -> Result<(), KernelError> {
        self.check("gathered columns", n_rows.saturating_mul(width))?;
        let world = SimpleCommunicator::world();
        world.all_gather_into(&(width as u64), &mut self.widths[..]);
        let widest = self.widths.iter().copied().max().unwrap_or(0) as usize;
        let total = self.widths.iter().sum::<u64>() as usize;
        if let Some(to) = &to
            && to.len() != n_rows * total
        {
            let wanted = n_rows * total;
            return Err(KernelError::Length { what: "the gathered rows", found: to.len(), wanted });
        }
        let mut to = to;
        // As many rows at a time as there is room for, of all ranks.
        if self.all.len() < widest * self.n_ranks {
            // Once: widths don't change.
            self.all.resize(widest * self.n_ranks, 0.0);
        }
        let of_all = self.all.len() / (widest * self.n_ranks).max(1);
        let n_step = of_all.min(self.own.len() / widest.max(1)).max(1);
        let mut first = 0;
        while first < n_rows && widest > 0 {
            let n = n_step.min(n_rows - first);
            let len = n * widest;
            let from = first * width..(first + n) * width;
            self.own.copy_within(from.clone(), 0);
            let all = &mut self.all[..len * self.n_ranks];
            world.all_gather_into(&self.own[..len], all);
            if let Some(to) = &mut to {
                let rows = to[first * total..(first + n) * total].chunks_exact_mut(total);
                for (row, to) in rows.enumerate() {
                    let mut column = 0;
                    for (part, width) in all.chunks_exact(len).zip(&self.widths) {
                        let width = *width as usize;
                        to[column..column + width]
                            .copy_from_slice(&part[row * width..(row + 1) * width]);
                        column += width;
                    }
                }
            }
            first += n;
        }
        Ok(())
    }

    fn abandon(&self) {
        // The leader is told, which ends the job: that lets the others go.
        self.failed.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
