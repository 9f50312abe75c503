//! The tensor-parallel engine: every layer is shared out to ranks, which are threads of this process.
//!
//! How a layer is cut and what ranks exchange is `drivetrain-fused`'s; here are the engine's name and the
//! options that DeepSpeed's users know it by.
#![forbid(unsafe_code)]

mod engine;
mod options;

pub use engine::DeepSpeed;

drivetrain_engine::export_engine!(DeepSpeed);
