//! Products of activations with the weights of a linear layer: `y = f(x W^T + b)`.
//!
//! Weights are packed once, at load. Columns of `W^T` (rows of a checkpoint's matrix) are grouped into
//! panels as wide as two vectors; a panel holds, for each step along `k`, its columns' elements side by
//! side, so that a product reads it from front to back:
//!
//! ```text
//! panel   [steps, 2 * LANES, group]    group: 1 float, or 2 or 4 bytes
//! rows    [steps, rows of a block]     activations, packed again for each product
//! ```
//!
//! The inner loop (`tile`) keeps a block of rows times one panel in registers (6 x 16 with AVX2,
//! 14 x 32 with AVX-512), or, for one to three rows, times several panels, whose memory is then read as
//! several streams. Around it the steps are cut so that a piece of a panel stays in the first-level cache
//! and the blocks' activations in the second (`drive`). What follows a product (`epilogue`) is done on
//! sums that are still in the cache.
//!
//! **Same bits.** An element is one chain of fused additions along `k`, from the first step to the last,
//! whatever the number of rows, threads and panels at once. A row's result doesn't depend on its batch.
//! It does depend on the instruction set: without FMA each product is rounded on its own.
//!
//! **8 bits.** Weights have one scale a column. Activations become bytes on the way, too, with one scale
//! for each 64 along `k` (the largest size is 127), so that an outlier costs its neighbours their
//! precision and no others: on SmolLM2-135M one scale a row costs 1.7 % of perplexity, and these 0.7 %, of
//! which the weights' own rounding is 0.2 %. Products of 64 are exact; what they come to is summed in
//! f32. Or activations stay f32 (`Int8Weights`). A row with a NaN or an infinity gives NaN.

use half::{bf16, f16};

pub use epilogue::{Activation, Epilogue, Residual};

use crate::error::{KernelError, length};
use crate::isa::Isa;
use crate::memory::{Buffer, Pages, Scratch};
use crate::pool::{Cpu, Pool};
use crate::vector::{Arithmetic, Simd};

pub(crate) mod drive;
pub(crate) mod epilogue;
mod pack;
mod product;
mod tile;

/// How the elements of a packed matrix are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Precision {
    /// 32 bits.
    F32,
    /// binary16 in memory, multiplied as f32.
    F16,
    /// bfloat16 in memory, multiplied as f32.
    Bf16,
    /// 8 bits and a scale a column; activations become 8 bits and a scale for each 64.
    Int8,
    /// 8 bits and a scale a column, multiplied as f32.
    Int8Weights,
}

impl Precision {
    /// Whether columns have scales.
    fn has_scales(self) -> bool {
        matches!(self, Self::Int8 | Self::Int8Weights)
    }
}

/// Activations of a row that share a scale, where they become bytes.
pub const SHARED: usize = 64;

/// Rows of a checkpoint's matrix, `[n_out, n_in]`, row-major.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Source<'a> {
    /// binary32.
    F32(&'a [f32]),
    /// binary16.
    F16(&'a [f16]),
    /// bfloat16.
    Bf16(&'a [bf16]),
}

impl Source<'_> {
    /// Elements there are.
    #[expect(clippy::len_without_is_empty, reason = "a matrix has elements")]
    pub fn len(self) -> usize {
        match self {
            Self::F32(all) => all.len(),
            Self::F16(all) => all.len(),
            Self::Bf16(all) => all.len(),
        }
    }
}

/// Whether a matrix is one, or two whose results are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Plain,
    /// Panels of the gate and of the other matrix take turns.
    Gated,
}

impl Layout {
    /// Panels that give one panel of output.
    fn n_panels(self) -> usize {
        match self {
            Self::Plain => 1,
            Self::Gated => 2,
        }
    }
}

/// What the instruction set asks of a matrix.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    /// Columns of a panel.
    width: usize,
    /// Rows of a block, at most.
    max_rows: usize,
    /// Blocks of a row tile, at most.
    blocks: usize,
    /// Elements of a column that join a sum at once.
    group: usize,
    /// What is added to signed bytes to store them.
    offset: u8,
}

struct AskGeometry(Precision);

impl Arithmetic for AskGeometry {
    type Output = Geometry;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Geometry {
        Geometry {
            width: 2 * S::LANES,
            max_rows: match self.0 {
                Precision::Int8 => S::MAX_BYTE_ROWS,
                _ => S::MAX_ROWS,
            },
            blocks: S::BLOCKS,
            group: match self.0 {
                Precision::Int8 => S::GROUP,
                _ => 1,
            },
            offset: match self.0 {
                Precision::Int8 => S::OFFSET as u8,
                _ => 0,
            },
        }
    }
}

/// The packed weights of a linear layer.
pub struct Matrix {
    isa: Isa,
    geometry: Geometry,
    precision: Precision,
    layout: Layout,
    n_out: usize,
    n_in: usize,
    /// Steps along `n_in`.
    steps: usize,
    panels: Buffer,
    /// One for each column of each panel; with 8 bits only.
    scales: Vec<f32>,
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix {:?} [{}, {}] {:?}", self.precision, self.n_out, self.n_in, self.layout)
    }
}

impl Matrix {
    /// Packs `sources`, one below the other: `[n_out, n_in]`, where `n_out` is the sum of theirs. So the
    /// queries', keys' and values' matrices become one product.
    ///
    /// # Errors
    /// A source is not whole rows of `n_in`, or there are none.
    pub fn pack(
        cpu: Cpu<'_>,
        sources: &[Source<'_>],
        n_in: usize,
        precision: Precision,
    ) -> Result<Self, KernelError> {
        let mut n_out = 0;
        for source in sources {
            n_out += rows(*source, n_in)?;
        }
        let mut matrix = Self::empty(cpu.isa, (n_out, n_in), precision, Layout::Plain)?;
        pack::fill(&mut matrix, cpu.pool, sources);
        Ok(matrix)
    }

    /// Packs a gate and the matrix that it scales, each `[n_out, n_in]`: the product is
    /// `activation(x gate^T) * (x other^T)`.
    ///
    /// # Errors
    /// The sources are not whole rows of `n_in`, or have different numbers of them.
    pub fn pack_gated(
        cpu: Cpu<'_>,
        gate: Source<'_>,
        other: Source<'_>,
        (n_in, precision): (usize, Precision),
    ) -> Result<Self, KernelError> {
        let n_out = rows(gate, n_in)?;
        length("the matrix beside the gate", other.len(), gate.len())?;
        let mut matrix = Self::empty(cpu.isa, (n_out, n_in), precision, Layout::Gated)?;
        pack::fill(&mut matrix, cpu.pool, &[gate, other]);
        Ok(matrix)
    }

    /// Packs other weights of the same size in place of those that it holds, into the same memory.
    ///
    /// # Errors
    /// The sources are not as many rows as those it was packed from, or it has a gate; it is as it was.
    pub fn repack(&mut self, pool: &Pool, sources: &[Source<'_>]) -> Result<(), KernelError> {
        let mut n_out = 0;
        for source in sources {
            n_out += rows(*source, self.n_in)?;
        }
        length("the rows to pack", n_out * self.layout.n_panels(), self.n_out)?;
        pack::fill(self, pool, sources);
        Ok(())
    }

    fn empty(
        isa: Isa,
        (n_out, n_in): (usize, usize),
        precision: Precision,
        layout: Layout,
    ) -> Result<Self, KernelError> {
        if n_out == 0 {
            let wanted = "at least 1";
            return Err(KernelError::Value { what: "the number of rows", found: 0, wanted });
        }
        let geometry = match precision {
            Precision::Int8 => isa.run_bytes(AskGeometry(precision)),
            _ => isa.run(AskGeometry(precision)),
        };
        let steps = n_in.div_ceil(geometry.group);
        let n_panels = n_out.div_ceil(geometry.width) * layout.n_panels();
        let n_scales = if precision.has_scales() { n_panels * geometry.width } else { 0 };
        let mut matrix = Self {
            isa,
            geometry,
            precision,
            layout,
            n_out,
            n_in,
            steps,
            panels: Buffer::new(0, Pages::Huge),
            scales: vec![0.0; n_scales],
        };
        matrix.panels = Buffer::new(n_panels * matrix.panel_bytes(), Pages::Huge);
        Ok(matrix)
    }

    fn panel_bytes(&self) -> usize {
        let element_bytes = match self.precision {
            Precision::F32 => 4,
            Precision::F16 | Precision::Bf16 => 2,
            Precision::Int8 | Precision::Int8Weights => 1,
        };
        self.geometry.width * self.steps * self.geometry.group * element_bytes
    }

    /// Groups of activations along `n_in` that have a scale.
    fn n_groups(&self) -> usize {
        match self.precision {
            Precision::Int8 => self.n_in.div_ceil(SHARED),
            _ => 0,
        }
    }

    /// Columns of the result.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// Columns of the activations.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// How the weights are held.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Memory that the packed weights take.
    pub fn n_bytes(&self) -> usize {
        self.panels.len() + self.scales.len() * 4
    }

    /// A matrix of zeros, `[n_out, n_in]`, or two such with a gate, whose [`parts`](Self::parts) another
    /// of the same form and instruction set had.
    ///
    /// # Errors
    /// There are no rows.
    pub fn zeroed(
        isa: Isa,
        (n_out, n_in): (usize, usize),
        (precision, is_gated): (Precision, bool),
    ) -> Result<Self, KernelError> {
        let layout = if is_gated { Layout::Gated } else { Layout::Plain };
        Self::empty(isa, (n_out, n_in), precision, layout)
    }

    /// The panels, and the scales of their columns: all that it holds.
    pub fn parts(&self) -> (&[u8], &[f32]) {
        // SAFETY: the buffer is that long.
        let panels = unsafe { std::slice::from_raw_parts(self.panels.as_ptr(), self.panels.len()) };
        (panels, &self.scales)
    }

    /// The same, to be written.
    pub fn parts_mut(&mut self) -> (&mut [u8], &mut [f32]) {
        // SAFETY: the buffer is that long, and borrowed mutably.
        let panels =
            unsafe { std::slice::from_raw_parts_mut(self.panels.as_mut_ptr(), self.panels.len()) };
        (panels, &mut self.scales)
    }

    /// Scratch memory that a product of `n_rows` with `n_threads` needs. It grows with both.
    pub fn scratch_bytes(&self, n_rows: usize, n_threads: usize) -> usize {
        drive::ScratchPlan::new(self, n_rows, n_threads).n_bytes
    }

    /// `output = epilogue(activations W^T)`: `activations` is `[n_rows, n_in]`, `output`
    /// `[n_rows, n_out]`, both row-major.
    ///
    /// # Errors
    /// A slice is not of that size, or the scratch memory is smaller than
    /// [`scratch_bytes`](Self::scratch_bytes); `output` is as it was.
    pub fn multiply(
        &self,
        pool: &Pool,
        activations: &[f32],
        output: &mut [f32],
        epilogue: &Epilogue<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        let n_rows = activations.len() / self.n_in.max(1);
        length("the activations", activations.len(), n_rows * self.n_in)?;
        length("the output", output.len(), n_rows * self.n_out)?;
        epilogue.check(n_rows, self.n_out, self.layout.n_panels())?;
        if n_rows == 0 {
            return Ok(());
        }
        drive::multiply(self, pool, activations, (output, epilogue), scratch)
    }
}

/// Rows of `n_in` that a source has.
fn rows(source: Source<'_>, n_in: usize) -> Result<usize, KernelError> {
    if n_in == 0 {
        let wanted = "at least 1";
        return Err(KernelError::Value { what: "the number of columns", found: 0, wanted });
    }
    let n_rows = source.len() / n_in;
    length("a matrix of weights", source.len(), n_rows * n_in)?;
    Ok(n_rows)
}
