//! Kernels against what the machine can do: `cargo run --release -p drivetrain-benches [THREADS]
//! [FILTER]`.
//!
//! Each line is the best of several rounds, and the peak that it is compared with is measured in the same
//! rounds, so that a busy machine slows both. `DRIVETRAIN_FORCE_ISA` lowers the instruction set.

#![forbid(unsafe_code)]

use std::num::NonZeroUsize;

use anyhow::Context;
use drivetrain_kernels::{Cpu, FORCE_VARIABLE, Isa, Pool};

mod attention;
mod blocks;
mod matmul;
mod timing;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let n_threads = match arguments.next() {
        Some(threads) => threads.parse().with_context(|| format!("{threads}: threads?"))?,
        None => cores,
    };
    let filter = arguments.next().unwrap_or_default();
    let forced = std::env::var(FORCE_VARIABLE).ok();
    let isa = Isa::choose(forced.as_deref())?;
    let pool = Pool::new(NonZeroUsize::new(n_threads).context("0 threads")?)?;
    println!("{isa}, {n_threads} threads");
    timing::pool(&pool);
    matmul::run(isa, &pool, &filter)?;
    let cpu = Cpu { isa, pool: &pool };
    attention::run(cpu, &filter)?;
    blocks::run(cpu, &filter)
}
