//! The tensor-parallel engine: every layer is shared out to ranks, which are threads of this process, or
//! processes of their own that MPI connects ([`ranks`]).
//!
//! How a layer is cut and what ranks exchange is `drivetrain-fused`'s; here are the engine's name and the
//! options that DeepSpeed's users know it by.
#![forbid(unsafe_code)]

mod engine;
mod options;
pub mod ranks;

pub use engine::DeepSpeed;

drivetrain_engine::export_engine!(DeepSpeed);
