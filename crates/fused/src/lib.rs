//! A model's description executed with the project's own CPU kernels, as a whole or one share a rank.
//!
//! All tokens of a batch form one matrix `[n_rows, dim]`, whatever sequences they belong to. A layer is
//! a handful of passes over it: queries, keys and values are one product, the feed-forward's gate is
//! multiplied where its sums are, biases, activations and residuals are added to sums that are still in
//! the cache. Keys and values lie in blocks that sequences share. What a step needs is reserved at load;
//! a step allocates nothing.
//!
//! A row's result depends on its own sequence, the weights, the instruction set and the number of ranks,
//! not on the batch, on how a prompt is cut, or on the number of threads.
//!
//! With several ranks ([`Settings::degree`]) each has a share of every layer (`share`) on threads of its
//! own. All have the same hidden states; where a branch ends they add up what each computed of it
//! ([`Collective`]). With one there is nothing to add up, and nothing of this is there. A rank may also be
//! a process of its own ([`load_rank`]), which finds the others through a [`Group`].
#![forbid(unsafe_code)]

mod adapters;
mod arena;
mod attention;
mod cache;
mod collective;
mod distances;
mod embedding;
mod feed_forward;
mod footprint;
mod head;
mod layer;
mod linear;
mod load;
mod loading;
mod model;
mod norm;
mod options;
mod packed;
mod pass;
mod share;
mod stack;
mod step;

pub use collective::Collective;
pub use loading::{Group, Settings, check, load, load_rank, plan};
pub use model::RankModel;
pub use options::{LoadOptions, WeightForm};

/// What a [`Collective`] is asked with.
pub use drivetrain_kernels::{Cpu, KernelError, Onto};
