//! The fused-kernel engine: a model's description executed with the project's own CPU kernels, as
//! `drivetrain-fused` has it, on the threads of one process and as a whole.
//!
//! A row's result depends on its own sequence, the weights and the instruction set, not on the batch, on
//! how a prompt is cut, or on the number of threads: `option.deterministic` asks for what is always so.
#![forbid(unsafe_code)]

mod engine;
mod options;

pub use engine::FasterTransformer;

drivetrain_engine::export_engine!(FasterTransformer);
