//! CPU compute for engines: what a transformer's layers need, chosen by instruction set at run time.
//!
//! An engine asks once, at load, for an [`Isa`] and makes a [`Pool`]; both together are a [`Cpu`]. It packs
//! each linear layer as a [`Matrix`], or looks at blocks of a mapped GGUF file as a [`BlockMatrix`]; it
//! reserves [`Scratch`] memory and a [`KvCache`] a layer. From then on nothing here allocates.
//!
//! | work | with |
//! | --- | --- |
//! | linear layers, with bias, activation, gate, scale and residual | [`Matrix::multiply`], [`Epilogue`] |
//! | the same from GGML's blocks | [`BlockMatrix::multiply`] |
//! | norms, with the residual, or of heads where they lie | [`Norm::apply`], [`Norm::apply_heads`] |
//! | attention: causal, cross, windows, shared heads, biases, caps | [`KvCache::append`], [`Attention::apply`] |
//! | positions | [`Rotary::apply`] |
//! | embeddings | [`Gather::apply`] |
//! | softmax of rows | [`softmax`] |
//! | what tensor-parallel ranks exchange | [`Team`], [`Member`] |
//!
//! ```
//! use std::num::NonZeroUsize;
//! use drivetrain_kernels::{Activation, Cpu, Epilogue, Isa, Matrix, Pool, Precision, Scratch, Source};
//!
//! let isa = Isa::choose(None)?;
//! let pool = Pool::new(NonZeroUsize::new(2).unwrap())?;
//! let cpu = Cpu { isa, pool: &pool };
//! // Two columns of three inputs each.
//! let weights = [1.0, 2.0, 3.0, -1.0, -2.0, -3.0];
//! let matrix = Matrix::pack(cpu, &[Source::F32(&weights)], 3, Precision::F32)?;
//! let mut scratch = Scratch::with_capacity(matrix.scratch_bytes(1, pool.n_threads()));
//! let mut output = [0.0; 2];
//! let epilogue = Epilogue { activation: Activation::Relu, ..Epilogue::default() };
//! matrix.multiply(&pool, &[1.0, 1.0, 1.0], &mut output, &epilogue, &mut scratch)?;
//! assert_eq!(output, [6.0, 0.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **Same bits.** A row's result depends on the row, the weights and the instruction set: not on the other
//! rows of its batch, the number of threads or where its cache's blocks lie.
//!
//! **Bad numbers.** A NaN or an infinity stays in its row, and is seen in what comes of it.
//!
//! Slices are checked before anything is computed; a wrong size is a [`KernelError`] that names it.

pub use attention::{
    Attention, HeadGroups, Heads, KvCache, KvPrecision, KvShape, Mask, PositionBias, Segment,
    TOKENS_PER_BLOCK,
};
pub use blocks::{BlockFormat, BlockMatrix};
pub use embedding::{Gather, Onto};
pub use error::{IsaError, KernelError};
pub use isa::{FORCE_VARIABLE, Isa};
pub use matmul::{Activation, Epilogue, Matrix, Precision, Residual, Source};
pub use memory::{Floats, Scratch};
pub use norm::{Norm, NormHeads, NormKind, NormRows};
pub use pool::{Cpu, Pool, part};
pub use ranks::{Member, Team};
pub use rotary::{Rotary, RotaryPairs, RotaryRows};
pub use softmax::softmax;

mod attention;
mod blocks;
mod embedding;
mod error;
mod isa;
mod matmul;
mod memory;
mod norm;
pub mod peak;
mod pool;
mod ranks;
mod rotary;
mod softmax;
#[doc(hidden)]
pub mod testing;
mod vector;
