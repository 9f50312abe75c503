//! What ranks exchange.
//!
//! A model that is not shared has none of this: [`Arena`](crate::arena::Arena) has no collective then,
//! and its layers add what they compute to their input where the sums are.

use drivetrain_kernels::{Cpu, KernelError, Member, Onto};

/// One rank's side of what all ranks do together. Every rank calls the same functions in the same order.
pub trait Collective: Send + Sync + std::fmt::Debug {
    /// This rank's number.
    fn rank(&self) -> usize;

    /// Most elements of a partial result.
    fn capacity(&self) -> usize;

    /// Memory for this rank's part of the next [`Self::sum`] or [`Self::gather`].
    ///
    /// # Errors
    /// `len` is more than the capacity, or a rank has failed.
    fn partial(&mut self, len: usize) -> Result<&mut [f32], KernelError>;

    /// Writes the sum of all ranks' parts to `to`, or adds it: the same bits on every rank and in every
    /// run.
    ///
    /// # Errors
    /// A rank has failed.
    fn sum(&mut self, cpu: Cpu<'_>, to: &mut [f32], onto: Onto) -> Result<(), KernelError>;

    /// Puts all ranks' parts `[n_rows, width]` side by side into `to`, on the ranks that give one.
    ///
    /// # Errors
    /// A rank has failed.
    fn gather(
        &mut self,
        cpu: Cpu<'_>,
        rows: (usize, usize),
        to: Option<&mut [f32]>,
    ) -> Result<(), KernelError>;

    /// Lets the others go: this rank has failed.
    fn abandon(&self);
}

/// The collective that a rank has, if its model is shared, for as long as its arena is borrowed.
pub(crate) type Borrowed<'c> = Option<&'c mut (dyn Collective + 'static)>;

/// Ranks that are threads of this process.
impl Collective for Member {
    fn rank(&self) -> usize {
        Self::rank(self)
    }

    fn capacity(&self) -> usize {
        Self::capacity(self)
    }

    fn partial(&mut self, len: usize) -> Result<&mut [f32], KernelError> {
        Self::partial(self, len)
    }

    fn sum(&mut self, cpu: Cpu<'_>, to: &mut [f32], onto: Onto) -> Result<(), KernelError> {
        Self::sum(self, cpu, to, onto)
    }

    fn gather(
        &mut self,
        cpu: Cpu<'_>,
        rows: (usize, usize),
        to: Option<&mut [f32]>,
    ) -> Result<(), KernelError> {
        Self::gather(self, cpu, rows, to)
    }

    fn abandon(&self) {
        Self::abandon(self);
    }
}
