//! CPU compute for engines.

pub use attention::{
    Attention, Heads, KvCache, KvPrecision, KvShape, Mask, PositionBias, Segment, TOKENS_PER_BLOCK,
};
pub use blocks::{BlockFormat, BlockMatrix};
pub use embedding::{Gather, Onto};
pub use error::{IsaError, KernelError};
pub use isa::{FORCE_VARIABLE, Isa};
pub use matmul::{Activation, Epilogue, Matrix, Precision, Residual, Source};
pub use memory::Scratch;
pub use norm::{Norm, NormKind, NormRows};
pub use pool::{Cpu, Pool, part};
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
#[cfg(test)]
mod random;
mod rotary;
mod softmax;
mod vector;
