//! CPU compute for engines.

pub use error::{IsaError, KernelError};
pub use isa::{FORCE_VARIABLE, Isa};
pub use matmul::{Activation, Epilogue, Matrix, Precision, Residual, Source};
pub use memory::Scratch;
pub use pool::{Pool, part};

pub mod peak;

mod error;
mod isa;
mod matmul;
mod memory;
mod pool;
#[cfg(test)]
mod random;
mod vector;
