//! Products with weights in GGML's blocks, straight from the bytes of a mapped file.
//!
//! A row of weights is blocks of 32 (`Q8_0`, `Q4_0`) or 256 elements (`Q4_K`, `Q5_K`, `Q6_K`) with their
//! scales; their layouts are those of ggml's `ggml-quants.c`. Activations become signed bytes in blocks
//! of 32 with an f32 scale each, found on the way; the products of bytes are exact, and blocks are
//! summed in f32:
//!
//! ```text
//! y = sum over blocks of (scale of w * scale of x * sum w_i x_i  -  least value of w * sum of x)
//! ```
//!
//! Rounding activations to 127 steps of a block's largest value costs about 0.4 % of an element's size,
//! at random, which is below the weights' own error even at 8 bits. A weight is decoded once for four rows.
//! This is for few rows, where memory decides; a [`Matrix`](crate::Matrix) of 8 bits is faster for many.
//!
//! A row's result doesn't depend on its batch or on the number of threads. An activation that is not
//! finite makes its row NaN.

use crate::error::{KernelError, length};
use crate::matmul::Epilogue;
use crate::matmul::drive::quantise;
use crate::matmul::epilogue::{Place, finish};
use crate::memory::{Region, Scratch, aligned};
use crate::pool::{Cpu, Parts, part};
use crate::vector::{Arithmetic, Simd};

mod format;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use format::{Activations, Format, Q4K, Q4Zero, Q5K, Q6K, Q8Zero};

/// A type of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BlockFormat {
    /// 32 elements of 8 bits, one scale.
    Q8Zero,
    /// 32 elements of 4 bits, one scale.
    Q4Zero,
    /// 256 elements of 4 bits, eight scales and least values.
    Q4K,
    /// 256 elements of 5 bits, eight scales and least values.
    Q5K,
    /// 256 elements of 6 bits, sixteen scales.
    Q6K,
}

impl BlockFormat {
    /// Elements of a block.
    pub fn block_len(self) -> usize {
        match self {
            Self::Q8Zero | Self::Q4Zero => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Q8Zero => 34,
            Self::Q4Zero => 18,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }
}

/// Elements of activations that share a scale.
const GROUP: usize = 32;

/// Columns that a thread computes before their epilogue.
const COLUMNS: usize = 32;

/// Weights of a linear layer, `[n_out, n_in]`, in rows of blocks.
#[derive(Clone, Copy)]
pub struct BlockMatrix<'a> {
    format: BlockFormat,
    bytes: &'a [u8],
    n_out: usize,
    n_in: usize,
}

impl std::fmt::Debug for BlockMatrix<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockMatrix {:?} [{}, {}]", self.format, self.n_out, self.n_in)
    }
}

impl<'a> BlockMatrix<'a> {
    /// Looks at `bytes` as rows of `n_in` elements. They may begin anywhere.
    ///
    /// # Errors
    /// `n_in` is not whole blocks, or `bytes` not whole rows.
    pub fn new(format: BlockFormat, bytes: &'a [u8], n_in: usize) -> Result<Self, KernelError> {
        if n_in == 0 || !n_in.is_multiple_of(format.block_len()) {
            let wanted = "a multiple of the block's 32 or 256 elements";
            return Err(KernelError::Value { what: "the number of columns", found: n_in, wanted });
        }
        let row_bytes = n_in / format.block_len() * format.block_bytes();
        let n_out = bytes.len() / row_bytes;
        length("a matrix of blocks, in bytes,", bytes.len(), n_out * row_bytes)?;
        Ok(Self { format, bytes, n_out, n_in })
    }

    /// Columns of the result.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// Columns of the activations.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// Bytes of the weights.
    pub fn n_bytes(&self) -> usize {
        self.bytes.len()
    }

    fn row_bytes(&self) -> usize {
        self.n_in / self.format.block_len() * self.format.block_bytes()
    }

    /// Scratch memory that a product of `n_rows` with `n_threads` needs. It grows with both.
    pub fn scratch_bytes(&self, n_rows: usize, n_threads: usize) -> usize {
        Plan::new(self, n_rows, n_threads).n_bytes
    }

    /// `output = epilogue(activations W^T)`: `activations` is `[n_rows, n_in]`, `output`
    /// `[n_rows, n_out]`, both row-major.
    ///
    /// # Errors
    /// A slice is not of that size, or the scratch memory is smaller than
    /// [`scratch_bytes`](Self::scratch_bytes); `output` is as it was.
    pub fn multiply(
        &self,
        cpu: Cpu<'_>,
        activations: &[f32],
        output: &mut [f32],
        epilogue: &Epilogue<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        let n_rows = activations.len() / self.n_in;
        length("the activations", activations.len(), n_rows * self.n_in)?;
        length("the output", output.len(), n_rows * self.n_out)?;
        epilogue.check(n_rows, self.n_out, 1)?;
        if n_rows == 0 {
            return Ok(());
        }
        let plan = Plan::new(self, n_rows, cpu.pool.n_threads());
        let scratch = scratch.take(plan.n_bytes)?;
        let output = Parts::new(output);
        let job = Job { matrix: self, n_rows, activations, output, epilogue, plan, scratch };
        // One row is some microseconds of work, as much as a run of its own costs.
        let quantise = |rows| cpu.isa.run(Quantise { job: &job, rows });
        if n_rows == 1 {
            quantise(0..1);
        } else {
            cpu.pool.run(|idx, n_threads| quantise(part(n_rows, 1, idx, n_threads)));
        }
        cpu.pool.run(|thread_idx, n_threads| {
            let columns = part(self.n_out, 1, thread_idx, n_threads);
            cpu.isa.run(Compute { job: &job, thread_idx, columns });
        });
        Ok(())
    }
}

/// Where things are in the scratch memory: bytes `[n_rows, n_in]`, scales and sums
/// `[n_rows, n_in / 32]`, sums of products `[n_rows, COLUMNS]` a thread.
struct Plan {
    scales_at: usize,
    totals_at: usize,
    sums_at: usize,
    sums_stride: usize,
    n_bytes: usize,
}

impl Plan {
    fn new(matrix: &BlockMatrix<'_>, n_rows: usize, n_threads: usize) -> Self {
        let n_groups = n_rows * matrix.n_in / GROUP;
        let scales_at = aligned(n_rows * matrix.n_in);
        let totals_at = scales_at + aligned(n_groups * 4);
        let sums_at = totals_at + aligned(n_groups * 4);
        let sums_stride = aligned(n_rows * COLUMNS * 4);
        Self {
            scales_at,
            totals_at,
            sums_at,
            sums_stride,
            n_bytes: sums_at + sums_stride * n_threads,
        }
    }
}

/// A product that is under way.
struct Job<'a> {
    matrix: &'a BlockMatrix<'a>,
    n_rows: usize,
    activations: &'a [f32],
    output: Parts<'a, f32>,
    epilogue: &'a Epilogue<'a>,
    plan: Plan,
    scratch: Region<'a>,
}

/// Makes bytes of some rows.
struct Quantise<'a> {
    job: &'a Job<'a>,
    rows: std::ops::Range<usize>,
}

impl Arithmetic for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (n_in, plan) = (self.job.matrix.n_in, &self.job.plan);
        let n_groups = n_in / GROUP;
        for row in self.rows {
            let scratch = self.job.scratch;
            // SAFETY: each row is quantised by one thread, before any reads it.
            let (bytes, scales, totals) = unsafe {
                let at = row * n_groups * 4;
                (
                    std::slice::from_raw_parts_mut(scratch.at::<i8>(row * n_in, n_in), n_in),
                    std::slice::from_raw_parts_mut(
                        scratch.at::<f32>(plan.scales_at + at, n_groups * 4),
                        n_groups,
                    ),
                    std::slice::from_raw_parts_mut(
                        scratch.at::<f32>(plan.totals_at + at, n_groups * 4),
                        n_groups,
                    ),
                )
            };
            let values = self.job.activations[row * n_in..(row + 1) * n_in].chunks_exact(GROUP);
            let groups = values.zip(bytes.chunks_exact_mut(GROUP));
            for ((values, bytes), (scale, total)) in groups.zip(scales.iter_mut().zip(totals)) {
                *scale = quantise(s, values, bytes);
                let sum: i32 = bytes.iter().map(|byte| i32::from(*byte)).sum();
                *total = *scale * sum as f32;
            }
        }
    }
}

/// Computes some columns of all rows.
struct Compute<'a> {
    job: &'a Job<'a>,
    thread_idx: usize,
    columns: std::ops::Range<usize>,
}

impl Arithmetic for Compute<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.job.matrix.format {
            BlockFormat::Q8Zero => self.all::<S, Q8Zero>(s),
            BlockFormat::Q4Zero => self.all::<S, Q4Zero>(s),
            BlockFormat::Q4K => self.all::<S, Q4K>(s),
            BlockFormat::Q5K => self.all::<S, Q5K>(s),
            BlockFormat::Q6K => self.all::<S, Q6K>(s),
        }
    }
}

impl Compute<'_> {
    #[inline(always)]
    fn all<S: Simd, F: Format>(&self, s: S) {
        let job = self.job;
        let n_sums = job.n_rows * COLUMNS;
        let at = job.plan.sums_at + self.thread_idx * job.plan.sums_stride;
        // SAFETY: each thread has sums of its own.
        let sums: &mut [f32] =
            unsafe { std::slice::from_raw_parts_mut(job.scratch.at(at, n_sums * 4), n_sums) };
        let row_bytes = job.matrix.row_bytes();
        let mut first = self.columns.start;
        while first < self.columns.end {
            let n = COLUMNS.min(self.columns.end - first);
            for column in 0..n {
                let weights = &job.matrix.bytes[(first + column) * row_bytes..][..row_bytes];
                let mut row = 0;
                while row < job.n_rows {
                    row += match job.n_rows - row {
                        1 => self.some::<S, F, 1>(s, weights, row, &mut sums[column..]),
                        2 | 3 => self.some::<S, F, 2>(s, weights, row, &mut sums[column..]),
                        _ => self.some::<S, F, 4>(s, weights, row, &mut sums[column..]),
                    };
                }
            }
            for (row, sums) in sums.chunks_exact(COLUMNS).enumerate() {
                // Columns beyond `n` are another thread's.
                let n_out = job.matrix.n_out;
                let place = Place { row, column: first, n_out, sums, other: None, n_columns: n };
                // SAFETY: these columns are this thread's.
                unsafe { finish(s, job.epilogue, &place, &job.output) };
            }
            first += n;
        }
    }

    /// One column of `R` rows; returns `R`.
    #[inline(always)]
    fn some<S: Simd, F: Format, const R: usize>(
        &self,
        s: S,
        weights: &[u8],
        row: usize,
        sums: &mut [f32],
    ) -> usize {
        let (n_in, plan) = (self.job.matrix.n_in, &self.job.plan);
        let scratch = self.job.scratch;
        let n_groups = n_in / GROUP;
        let rows: [Activations<'_>; R] = std::array::from_fn(|idx| {
            let row = row + idx;
            let at = row * n_groups * 4;
            // SAFETY: the rows were quantised in the run before, and nobody writes them now.
            unsafe {
                Activations {
                    bytes: std::slice::from_raw_parts(scratch.at(row * n_in, n_in), n_in),
                    scales: std::slice::from_raw_parts(
                        scratch.at(plan.scales_at + at, n_groups * 4),
                        n_groups,
                    ),
                    totals: std::slice::from_raw_parts(
                        scratch.at(plan.totals_at + at, n_groups * 4),
                        n_groups,
                    ),
                }
            }
        });
        let mut totals = [s.eight(0.0); R];
        for (idx, block) in weights.chunks_exact(F::BYTES).enumerate() {
            F::add(s, block, &rows, (idx * F::LEN / GROUP, &mut totals));
        }
        for (idx, total) in totals.into_iter().enumerate() {
            sums[(row + idx) * COLUMNS] = s.sum_eight(total);
        }
        R
    }
}
