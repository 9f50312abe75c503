//! The fused-kernel engine: a model's description executed with the project's own CPU kernels.
//!
//! All tokens of a batch form one matrix `[n_rows, dim]`, whatever sequences they belong to. A layer is
//! a handful of passes over it: queries, keys and values are one product, the feed-forward's gate is
//! multiplied where its sums are, biases, activations and residuals are added to sums that are still in
//! the cache. Keys and values lie in blocks that sequences share. What a step needs is reserved at load;
//! a step allocates nothing.
//!
//! A row's result depends on its own sequence, the weights and the instruction set, not on the batch, on
//! how a prompt is cut, or on the number of threads: `option.deterministic` asks for what is always so.
#![forbid(unsafe_code)]

mod adapters;
mod arena;
mod attention;
mod cache;
mod distances;
mod embedding;
mod engine;
mod feed_forward;
mod head;
mod layer;
mod linear;
mod load;
mod model;
mod norm;
mod options;
mod stack;
mod step;

pub use engine::FasterTransformer;

drivetrain_engine::export_engine!(FasterTransformer);
