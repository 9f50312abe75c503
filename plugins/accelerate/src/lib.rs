//! The device-map engine: a model's description executed with candle.
//!
//! All tokens of a batch form one matrix `[n_tokens, dim]`, whatever sequences they belong to;
//! projections, norms and activations work on its rows. Only attention looks at sequences, each at
//! its own keys and values, so there is no padding. Keys and values lie in blocks that sequences
//! share after a fork.
//!
//! A device map says which device holds which part (`placing`), a plan made ahead what each takes
//! (`memory`). Parts that stay on the disk are read by a thread while others are computed with
//! (`streaming`).
//!
//! Activations are f32. Matrices are, too, or of 16 bits or in blocks (`forms`, `matrix`), which
//! `drivetrain-kernels` multiplies with. What candle has no fast CPU code for (a few rows times a matrix,
//! attention of a few queries, norms, activations) has kernels of its own here; on other devices
//! candle's operations serve.
#![forbid(unsafe_code)]

mod adapters;
mod attention;
mod cache;
mod distances;
mod engine;
mod error;
mod executor;
mod feed_forward;
mod file_rows;
mod forms;
mod head;
mod kernels;
mod layer;
mod linear;
mod load;
mod matrix;
mod memory;
mod model;
mod norm;
mod options;
mod pipeline;
mod placing;
mod rows;
mod stack;
mod streaming;

pub use engine::Accelerate;

drivetrain_engine::export_engine!(Accelerate);
