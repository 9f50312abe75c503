//! `drivetrain-rank`: one rank of a model under MPI, started by `mpirun`, which a server starts.
#![forbid(unsafe_code)]

mod exchange;

use std::error::Error;
use std::process::ExitCode;

use drivetrain_deepspeed::ranks::{Place, serve};
use mpi::Threading;
use mpi::traits::Communicator;

use exchange::World;

/// Where launchers say which rank a process is, before MPI runs.
const RANK_VARIABLES: [&str; 3] = ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"];

fn main() -> ExitCode {
    let rank = RANK_VARIABLES.iter().find_map(|name| std::env::var(name).ok()?.parse().ok());
    // Kept to the end: MPI is left when it goes.
    let mut universe = None;
    let group = || {
        // Only this thread calls MPI; a kernel's threads don't.
        let (world, level) = mpi::initialize_with_threading(Threading::Funneled)
            .ok_or("MPI runs already in this process")?;
        let world = &*universe.insert(world);
        if level < Threading::Funneled {
            return Err(format!("the MPI library grants no threads beside its own ({level:?})"));
        }
        let (found, said) = (world.world().rank(), rank.unwrap_or(0));
        if u32::try_from(found) != Ok(said) {
            return Err(format!("MPI calls this rank {found}, and its launcher {said}"));
        }
        Ok(World::new())
    };
    match serve(Place { rank: rank.unwrap_or(0) }, group) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut next = error.source();
            while let Some(cause) = next {
                text.push_str(&format!(": {cause}"));
                next = cause.source();
            }
            eprintln!("drivetrain-rank {}: {text}", rank.unwrap_or(0));
            // Leaving MPI would wait for ranks that may never come.
            std::process::exit(1)
        }
    }
}
