//! What the tests of this package look at beside its interface.
//!
//! They are a program of their own (`tests/kernels`), since a library takes minutes to compile once more
//! with its tests inside.

use crate::isa::Isa;
use crate::vector::{Arithmetic, Simd, math};

pub use crate::matmul::SHARED;
pub use crate::pool::Parts;
pub use crate::ranks::LONG;

/// A function of one number.
#[derive(Clone, Copy, Debug)]
pub enum Function {
    /// e to the power of it.
    Exp,
    /// 1 / (1 + exp(-x)).
    Sigmoid,
    /// The hyperbolic tangent.
    Tanh,
    /// The error function.
    Erf,
}

/// Replaces each value by what the vectors of an instruction set make of it.
pub fn apply(isa: Isa, function: Function, values: &mut [f32]) {
    isa.run(Apply(function, values));
}

struct Apply<'a>(Function, &'a mut [f32]);

impl Arithmetic for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for chunk in self.1.chunks_mut(S::LANES) {
            // SAFETY: both touch the chunk alone.
            let x = unsafe { s.load_first(chunk.as_ptr(), chunk.len()) };
            let y = match self.0 {
                Function::Exp => math::exp(s, x),
                Function::Sigmoid => math::sigmoid(s, x),
                Function::Tanh => math::tanh(s, x),
                Function::Erf => math::erf(s, x),
            };
            // SAFETY: as above.
            unsafe { s.store_first(chunk.as_mut_ptr(), y, chunk.len()) };
        }
    }
}
