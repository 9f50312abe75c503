//! Ranks that are processes, on one machine or several.
//!
//! ```text
//! server:  mpirun -n N drivetrain-rank      one such job a model
//!          <- each rank calls, shows the token, says who it is
//!          -> what to load                  <- what it has
//!          -> a call, to every rank         <- the first one's result
//! ranks:   the same call on each; within it they meet by MPI
//! ```
//!
//! The server is no part of the job: the end of a rank ends the job and not the server, which learns of it
//! from the rank's connection, or from its silence. A rank whose leader goes ends, too. Between calls ranks
//! sleep, each in the read of its connection.
//!
//! The server links no MPI. What does is the program `drivetrain-rank`, which is built with the feature
//! `mpi`.

mod digest;
mod leader;
mod links;
mod messages;
mod process;
mod proxy;
mod serve;
mod stream;
mod wire;

pub(crate) use leader::load;
pub use serve::{Place, RankError, serve};

/// Where a rank finds the address of its leader.
const LEADER_VARIABLE: &str = "DRIVETRAIN_RANK_LEADER";
/// Where it finds what it has to show there.
const TOKEN_VARIABLE: &str = "DRIVETRAIN_RANK_TOKEN";
