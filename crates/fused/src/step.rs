//! What every pass of a step needs.

use drivetrain_engine::{EngineError, ErrorKind};
use drivetrain_execution::Runs;
use drivetrain_kernels::{Cpu, KernelError, Segment};

/// A batch on its way through a stack.
#[derive(Clone, Copy)]
pub(crate) struct Step<'a> {
    /// Instruction set and threads.
    pub(crate) cpu: Cpu<'a>,
    /// The rows of each sequence, with the blocks of its own keys.
    pub(crate) segments: &'a [Segment<'a>],
    /// The same with the blocks of its encoder's output.
    pub(crate) cross_segments: &'a [Segment<'a>],
    /// Which rows go through which adapter.
    pub(crate) runs: &'a Runs,
    /// Rows of the batch.
    pub(crate) n_rows: usize,
}

/// An error of a kernel: shapes are checked at load, so it is a fault of this engine.
pub(crate) fn compute(error: KernelError) -> EngineError {
    EngineError::wrap(ErrorKind::Internal, "the computation failed", &error)
}

/// An empty list of the memory of another, which was of segments that are gone.
pub(crate) fn recycle<'a>(mut spare: Vec<Segment<'_>>) -> Vec<Segment<'a>> {
    spare.clear();
    // Of no elements; the memory is taken over as it is.
    let of_none = |segment: Segment<'_>| Segment {
        first_row: segment.first_row,
        n_rows: segment.n_rows,
        first_position: segment.first_position,
        n_keys: segment.n_keys,
        blocks: &[],
    };
    spare.into_iter().map(of_none).collect()
}
