//! Products with weights in blocks, GGML's straight from the bytes of a mapped file.
//!
//! A row of weights is blocks of 32 (`Q8_0`, `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`) or 256 elements (`Q4_K`,
//! `Q5_K`, `Q6_K`) with their scales; their layouts are those of ggml's `ggml-quants.c`. `encode` makes
//! blocks of other weights. Activations become signed bytes in blocks
//! of 32 with an f32 scale each, found on the way; the sums of 32 products are exact, and those are
//! summed in f32:
//!
//! ```text
//! y = sum over blocks of (scale of w * scale of x * sum w_i x_i  -  least value of w * sum of x)
//! ```
//!
//! Rounding activations to 127 steps of a block's largest value costs about 0.4 % of an element's size,
//! at random, which is below the weights' own error even at 8 bits.
//!
//! One row reads blocks as they lie in the file: memory decides. For several, columns are unpacked, eight
//! of them side by side (`product`), and all rows of a tile are multiplied with them:
//!
//! ```text
//! all threads: make bytes of the activations, each some rows
//! each thread, for its columns:
//!   for each tile of rows:                 their bytes fit the second-level cache
//!     for each sixteen columns:
//!       for each piece along n_in:         sixteen columns of it fit the first-level cache
//!         unpack it
//!         for each four rows of the tile: multiply
//!     epilogue
//! ```
//!
//! A row's result doesn't depend on its batch or on the number of threads. An activation that is not
//! finite makes its row NaN.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::ops::Range;

use half::f16;

use crate::error::{KernelError, length};
use crate::isa::Isa;
use crate::matmul::epilogue::{Place, finish};
use crate::matmul::{Epilogue, Source};
use crate::memory::{Region, Scratch, aligned};
use crate::pool::{Cpu, Parts, Pool, part};
use crate::vector::{Arithmetic, Simd};

mod encode;
mod format;
mod product;
mod quantise;

use format::{
    Format, Group4, Group8, Q4K, Q4One, Q4Zero, Q5K, Q5One, Q5Zero, Q6K, Q8Zero, Shape, extra,
};
use product::{PANEL, PANELS, ROWS, Tile};
use quantise::{Extra, Extras, Row};

/// A type of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BlockFormat {
    /// 32 elements of 8 bits, one scale.
    Q8Zero,
    /// 32 elements of 4 bits, one scale.
    Q4Zero,
    /// 32 elements of 4 bits, one scale and least value.
    Q4One,
    /// 32 elements of 5 bits, one scale.
    Q5Zero,
    /// 32 elements of 5 bits, one scale and least value.
    Q5One,
    /// 256 elements of 4 bits, eight scales and least values.
    Q4K,
    /// 256 elements of 5 bits, eight scales and least values.
    Q5K,
    /// 256 elements of 6 bits, sixteen scales.
    Q6K,
    /// 32 elements of 4 bits of a group with one scale and zero, as GPTQ and AWQ have them.
    Group4,
    /// 32 elements of 8 bits of a group with one scale and zero.
    Group8,
}

impl BlockFormat {
    /// All of them, with their names: those of ggml's in ggml.
    const NAMES: [(Self, &str); 10] = [
        (Self::Q8Zero, "Q8_0"),
        (Self::Q4Zero, "Q4_0"),
        (Self::Q4One, "Q4_1"),
        (Self::Q5Zero, "Q5_0"),
        (Self::Q5One, "Q5_1"),
        (Self::Q4K, "Q4_K"),
        (Self::Q5K, "Q5_K"),
        (Self::Q6K, "Q6_K"),
        (Self::Group4, "G4"),
        (Self::Group8, "G8"),
    ];

    /// The format of this name, such as `Q4_K`.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, own)| *own == name).map(|(format, _)| *format)
    }

    /// Its name, such as `Q4_K`: that in ggml if it is one of ggml's.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(format, _)| *format == self).map_or("", |(_, name)| name)
    }

    /// Bytes of `n_elements` elements, which are whole blocks.
    pub fn bytes_for(self, n_elements: usize) -> usize {
        n_elements / self.block_len() * self.block_bytes()
    }

    /// Elements of a block.
    pub fn block_len(self) -> usize {
        match self {
            Self::Q8Zero | Self::Q4Zero | Self::Q4One | Self::Q5Zero | Self::Q5One => 32,
            Self::Group4 | Self::Group8 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Q8Zero => 34,
            Self::Q4Zero => 18,
            Self::Q4One => 20,
            Self::Q5Zero => 22,
            Self::Q5One => 24,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Group4 => 19,
            Self::Group8 => 35,
        }
    }

    /// Whether [`BlockMatrix::encode`] makes such blocks.
    pub fn is_encoded(self) -> bool {
        matches!(self, Self::Q8Zero | Self::Q4One)
    }

    /// Fills `to` with the blocks of `sources`, rows of `n_in` elements one below the other.
    ///
    /// # Errors
    /// Weights are not encoded to this format ([`Self::is_encoded`]), `n_in` is not whole blocks, or
    /// `to` has another size than the rows take.
    pub fn encode(
        self,
        pool: &Pool,
        sources: &[Source<'_>],
        n_in: usize,
        to: &mut [u8],
    ) -> Result<(), KernelError> {
        let row_bytes = self.row_bytes(n_in)?;
        let mut n_out = 0;
        for source in sources {
            length("a matrix of weights", source.len(), source.len() / n_in * n_in)?;
            n_out += source.len() / n_in;
        }
        length("the blocks, in bytes,", to.len(), n_out * row_bytes)?;
        encode::encode(self, pool, sources, (n_in, row_bytes), to)
    }

    /// Fills `to` with a block of whole numbers that share a scale and a zero: `(number - zero) * scale`,
    /// to the last bit of f32. Numbers and the zero are below 16 in [`Self::Group4`].
    ///
    /// # Errors
    /// The format is neither [`Self::Group4`] nor [`Self::Group8`], or `to` is no block.
    pub fn put_group(
        self,
        scale: f16,
        zero: u8,
        numbers: &[u8; 32],
        to: &mut [u8],
    ) -> Result<(), KernelError> {
        length("a block, in bytes,", to.len(), self.block_bytes())?;
        let packed = match self {
            Self::Group4 | Self::Group8 => &mut to[3..],
            _ => {
                let (what, found) = ("the format's elements in a block", self.block_len());
                let wanted = "32 that share a zero: G4 or G8";
                return Err(KernelError::Value { what, found, wanted });
            }
        };
        if self == Self::Group4 {
            let (low, high) = numbers.split_at(16);
            for ((to, low), high) in packed.iter_mut().zip(low).zip(high) {
                *to = low & 0xf | high << 4;
            }
        } else {
            packed.copy_from_slice(numbers);
        }
        to[..2].copy_from_slice(&scale.to_le_bytes());
        to[2] = zero;
        Ok(())
    }

    /// Bytes of a row.
    fn row_bytes(self, n_in: usize) -> Result<usize, KernelError> {
        if n_in == 0 || !n_in.is_multiple_of(self.block_len()) {
            let wanted = "a multiple of the block's 32 or 256 elements";
            return Err(KernelError::Value { what: "the number of columns", found: n_in, wanted });
        }
        Ok(n_in / self.block_len() * self.block_bytes())
    }

    /// What products want of activations beside their bytes.
    fn extra(self) -> Extra {
        match self {
            Self::Q8Zero => extra::<Q8Zero>(),
            Self::Q4Zero => extra::<Q4Zero>(),
            Self::Q4One => extra::<Q4One>(),
            Self::Q5Zero => extra::<Q5Zero>(),
            Self::Q5One => extra::<Q5One>(),
            Self::Q4K => extra::<Q4K>(),
            Self::Q5K => extra::<Q5K>(),
            Self::Q6K => extra::<Q6K>(),
            Self::Group4 => extra::<Group4>(),
            Self::Group8 => extra::<Group8>(),
        }
    }

    /// Whether weights have 8 bits, which several rows are multiplied with as 16.
    fn is_wide(self) -> bool {
        matches!(self, Self::Q8Zero | Self::Group8)
    }

    /// Elements of a piece along `n_in`: what is unpacked of it fits the first-level cache.
    fn piece(self) -> usize {
        if self.is_wide() { 512 } else { 1024 }
    }
}

/// Elements of activations that share a scale.
const GROUP: usize = 32;

/// Columns that a thread computes before their epilogue.
const COLUMNS: usize = 32;

/// Rows of a tile, at most.
const TILE_ROWS: usize = 128;

/// Weights of a linear layer, `[n_out, n_in]`, in rows of blocks.
pub struct BlockMatrix<'a> {
    format: BlockFormat,
    bytes: Cow<'a, [u8]>,
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
        let row_bytes = format.row_bytes(n_in)?;
        let n_out = bytes.len() / row_bytes;
        length("a matrix of blocks, in bytes,", bytes.len(), n_out * row_bytes)?;
        Ok(Self { format, bytes: Cow::Borrowed(bytes), n_out, n_in })
    }

    /// Takes `bytes` as rows of `n_in` elements.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of_bytes(
        format: BlockFormat,
        bytes: Vec<u8>,
        n_in: usize,
    ) -> Result<BlockMatrix<'static>, KernelError> {
        let n_out = BlockMatrix::new(format, &bytes, n_in)?.n_out;
        Ok(BlockMatrix { format, bytes: Cow::Owned(bytes), n_out, n_in })
    }

    /// Makes blocks of `sources`, one below the other: `[n_out, n_in]`, where `n_out` is the sum of
    /// theirs.
    ///
    /// # Errors
    /// `format` is not one that weights are encoded to ([`BlockFormat::is_encoded`]), `n_in` is not whole
    /// blocks, or a source not whole rows.
    pub fn encode(
        format: BlockFormat,
        pool: &Pool,
        sources: &[Source<'_>],
        n_in: usize,
    ) -> Result<BlockMatrix<'static>, KernelError> {
        let row_bytes = format.row_bytes(n_in)?;
        let n_out = sources.iter().map(|source| source.len() / n_in).sum();
        let mut bytes = vec![0; n_out * row_bytes];
        format.encode(pool, sources, n_in, &mut bytes)?;
        Ok(BlockMatrix { format, bytes: Cow::Owned(bytes), n_out, n_in })
    }

    /// Makes blocks of groups: `group` is given a row, the first of 32 columns and room for their numbers,
    /// and answers with the scale and the zero that they share ([`BlockFormat::put_group`]).
    ///
    /// # Errors
    /// `format` is no format of groups, or `n_in` is not whole blocks.
    pub fn of_groups(
        format: BlockFormat,
        pool: &Pool,
        (n_out, n_in): (usize, usize),
        group: impl Fn(usize, usize, &mut [u8; 32]) -> (f16, u8) + Sync,
    ) -> Result<BlockMatrix<'static>, KernelError> {
        let row_bytes = format.row_bytes(n_in)?;
        let mut bytes = vec![0; n_out * row_bytes];
        encode::groups(format, pool, &group, (n_in, row_bytes), &mut bytes)?;
        Ok(BlockMatrix { format, bytes: Cow::Owned(bytes), n_out, n_in })
    }

    /// How the weights are held.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// Columns of the result.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// Columns of the activations.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// The weights: blocks of one output after those of the other.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
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
        let isa = cpu.isa;
        let job = Job { matrix: self, isa, n_rows, activations, output, epilogue, plan, scratch };
        // One row is some microseconds of work, as much as a run of its own costs.
        let quantise = |rows| isa.run_256(Quantise { job: &job, rows });
        if n_rows == 1 {
            quantise(0..1);
        } else {
            cpu.pool.run(|idx, n_threads| quantise(part(n_rows, 1, idx, n_threads)));
        }
        cpu.pool.run(|thread_idx, n_threads| {
            let columns = part(self.n_out, PANEL, thread_idx, n_threads);
            isa.run_256(Compute { job: &job, thread_idx, columns });
        });
        Ok(())
    }
}

/// Where things are in the scratch memory. For each piece of `n_in`, one after the other: bytes
/// `[n_rows, n_piece]`, scales `[n_rows, n_piece / 32]`, extras with room for two a scale. For each
/// thread: sums of products `[rows of a tile, COLUMNS]`, unpacked panels of a piece.
struct Plan {
    /// Bytes of an activation.
    width: usize,
    scales_at: usize,
    extras_at: usize,
    thread_at: usize,
    thread_stride: usize,
    tile_at: usize,
    /// Bytes of a panel.
    panel_stride: usize,
    n_bytes: usize,
}

impl Plan {
    fn new(matrix: &BlockMatrix<'_>, n_rows: usize, n_threads: usize) -> Self {
        let is_wide = matrix.format.is_wide();
        let width = if is_wide && n_rows > 1 { 2 } else { 1 };
        let n_groups = n_rows * matrix.n_in / GROUP;
        let scales_at = aligned(n_rows * matrix.n_in * width);
        let extras_at = scales_at + aligned(n_groups * 4);
        let thread_at = extras_at + aligned(n_groups * 8);
        let tile_at = aligned(n_rows.min(TILE_ROWS) * COLUMNS * 4);
        let panel_stride = matrix.format.piece() / GROUP * format::unpacked_bytes(is_wide);
        let thread_stride = tile_at + aligned(PANELS * panel_stride);
        let n_bytes = thread_at + thread_stride * n_threads;
        Self {
            width,
            scales_at,
            extras_at,
            thread_at,
            thread_stride,
            tile_at,
            panel_stride,
            n_bytes,
        }
    }
}

/// A product that is under way.
struct Job<'a> {
    matrix: &'a BlockMatrix<'a>,
    isa: Isa,
    n_rows: usize,
    activations: &'a [f32],
    output: Parts<'a, f32>,
    epilogue: &'a Epilogue<'a>,
    plan: Plan,
    scratch: Region<'a>,
}

impl Job<'_> {
    /// The pieces of `n_in`, which lie one after the other; one row is a piece as it is.
    fn pieces(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let n_in = self.matrix.n_in;
        let len = if self.n_rows == 1 { n_in } else { self.matrix.format.piece() };
        (0..n_in).step_by(len).map(move |start| start..n_in.min(start + len))
    }

    /// Where a row's piece lies.
    fn row(&self, row: usize, piece: &Range<usize>) -> Row {
        // In elements: of the pieces before, of the rows before.
        let at = self.n_rows * piece.start + row * piece.len();
        let (n_groups, width) = (piece.len() / GROUP, self.plan.width);
        let extras = self.scratch.at(self.plan.extras_at + at / GROUP * 8, n_groups * 8);
        Row {
            bytes: self.scratch.at(at * width, piece.len() * width),
            scales: self.scratch.at(self.plan.scales_at + at / GROUP * 4, n_groups * 4),
            extras: Extras(extras),
        }
    }
}

/// Makes bytes of some rows.
struct Quantise<'a> {
    job: &'a Job<'a>,
    rows: Range<usize>,
}

impl Arithmetic for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let job = self.job;
        let n_in = job.matrix.n_in;
        let kind = (job.matrix.format.extra(), job.plan.width == 2);
        for row in self.rows {
            let values = &job.activations[row * n_in..(row + 1) * n_in];
            for piece in job.pieces() {
                let to = job.row(row, &piece);
                // SAFETY: each row is quantised by one thread, before any reads it.
                unsafe { quantise::quantise(s, &values[piece], kind, to) };
            }
        }
    }
}

/// Computes some columns of all rows.
struct Compute<'a> {
    job: &'a Job<'a>,
    thread_idx: usize,
    columns: Range<usize>,
}

impl Arithmetic for Compute<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.job.matrix.format {
            BlockFormat::Q8Zero => self.all::<S, Q8Zero>(s),
            BlockFormat::Q4Zero => self.all::<S, Q4Zero>(s),
            BlockFormat::Q4One => self.all::<S, Q4One>(s),
            BlockFormat::Q5Zero => self.all::<S, Q5Zero>(s),
            BlockFormat::Q5One => self.all::<S, Q5One>(s),
            BlockFormat::Q4K => self.all::<S, Q4K>(s),
            BlockFormat::Q5K => self.all::<S, Q5K>(s),
            BlockFormat::Q6K => self.all::<S, Q6K>(s),
            BlockFormat::Group4 => self.all::<S, Group4>(s),
            BlockFormat::Group8 => self.all::<S, Group8>(s),
        }
    }
}

impl Compute<'_> {
    #[inline(always)]
    fn all<S: Simd, F: Format>(&self, s: S) {
        let job = self.job;
        let n_tiles = job.n_rows.div_ceil(TILE_ROWS);
        for tile_idx in 0..n_tiles {
            let rows = part(job.n_rows, 1, tile_idx, n_tiles);
            for first in self.columns.clone().step_by(COLUMNS) {
                let columns = first..self.columns.end.min(first + COLUMNS);
                if job.n_rows == 1 {
                    self.one::<S, F>(s, &columns);
                } else {
                    self.several::<S, F>(s, &rows, &columns);
                }
                job.isa.run_256(Finish { compute: self, rows: &rows, columns: &columns });
            }
        }
    }

    /// This thread's scratch memory from byte `at` on.
    #[expect(clippy::mut_from_ref, reason = "a thread takes each of its parts once at a time")]
    fn memory<T>(&self, at: usize, n: usize) -> &mut [T] {
        let plan = &self.job.plan;
        let at = plan.thread_at + self.thread_idx * plan.thread_stride + at;
        let start = self.job.scratch.at(at, n * size_of::<T>());
        // SAFETY: each thread has memory of its own, each part of it one type of numbers, and one slice
        // of a part is used at a time.
        unsafe { std::slice::from_raw_parts_mut(start, n) }
    }

    /// Where a panel of columns begins. Beyond the last column it is computed again, and not looked at.
    fn panel(&self, first: usize, end: usize) -> [*const u8; PANEL] {
        let row_bytes = self.job.matrix.row_bytes();
        std::array::from_fn(|idx| {
            let column = (first + idx).min(end - 1);
            self.job.matrix.bytes[column * row_bytes..][..row_bytes].as_ptr()
        })
    }

    /// The sums of products of the only row and some columns.
    #[inline(always)]
    fn one<S: Simd, F: Format>(&self, s: S, columns: &Range<usize>) {
        let n_in = self.job.matrix.n_in;
        let row = self.job.row(0, &(0..n_in));
        let (sums, _) = self.memory::<f32>(0, COLUMNS).as_chunks_mut::<PANEL>();
        for (first, sums) in columns.clone().step_by(PANEL).zip(sums) {
            let panel = (self.panel(first, columns.end), n_in / F::LEN);
            // SAFETY: the row was quantised in the run before; all have the same blocks. There are as
            // many sums.
            unsafe { s.store_eight(sums.as_mut_ptr(), product::one::<S, F>(s, panel, &row)) };
        }
    }

    /// The sums of products of some rows and columns.
    #[inline(always)]
    fn several<S: Simd, F: Format>(&self, s: S, rows: &Range<usize>, columns: &Range<usize>) {
        let job = self.job;
        self.memory::<f32>(0, rows.len() * COLUMNS).fill(0.0);
        for first in columns.clone().step_by(PANELS * PANEL) {
            for piece in job.pieces() {
                let n_blocks = piece.len() / F::LEN;
                let stride = job.plan.panel_stride;
                let unpacked = self.memory::<u8>(job.plan.tile_at, PANELS * stride);
                for (idx, to) in unpacked.chunks_exact_mut(stride).enumerate() {
                    let at = (first + idx * PANEL).min(columns.end - 1);
                    let from = self.panel(at, columns.end);
                    let from =
                        from.map(|column| column.wrapping_add(piece.start / F::LEN * F::BYTES));
                    // SAFETY: the columns have the piece's blocks, and there is room for as many.
                    unsafe { product::unpack::<S, F>(s, (from, n_blocks), to.as_mut_ptr()) };
                }
                let tile = Tile { start: unpacked.as_ptr(), stride, n_blocks };
                let sums = self.memory::<f32>(0, rows.len() * COLUMNS);
                let sums = sums[first - columns.start..].as_mut_ptr();
                let several = Several { job, tile, rows, piece: &piece, sums };
                let shape = PhantomData::<F::Shape>;
                job.isa.run_256(OfShape { several, shape });
            }
        }
    }
}

/// The epilogue of some rows and columns, the same whatever the format.
struct Finish<'a> {
    compute: &'a Compute<'a>,
    rows: &'a Range<usize>,
    columns: &'a Range<usize>,
}

impl Arithmetic for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let job = self.compute.job;
        let sums = self.compute.memory::<f32>(0, self.rows.len() * COLUMNS);
        for (row, sums) in self.rows.clone().zip(sums.chunks_exact(COLUMNS)) {
            let (column, n_columns) = (self.columns.start, self.columns.len());
            let n_out = job.matrix.n_out;
            let place = Place { row, column, n_out, sums, other: None, n_columns };
            // SAFETY: these columns are this thread's.
            unsafe { finish(s, job.epilogue, &place, &job.output) };
        }
    }
}

/// A tile of some rows and one of columns.
struct Several<'a> {
    job: &'a Job<'a>,
    tile: Tile,
    rows: &'a Range<usize>,
    piece: &'a Range<usize>,
    /// The first row's, `COLUMNS` before the next's.
    sums: *mut f32,
}

/// Multiplies a tile: formats of one shape share the code.
struct OfShape<'a, H> {
    several: Several<'a>,
    shape: PhantomData<H>,
}

impl<H: Shape> Arithmetic for OfShape<'_, H> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let several = self.several;
        let mut first = several.rows.start;
        first = several.some::<S, H, ROWS>(s, first);
        first = several.some::<S, H, 2>(s, first);
        several.some::<S, H, 1>(s, first);
    }
}

impl Several<'_> {
    /// Multiplies the rows from `first` on, `R` at once as far as there are as many, and answers with
    /// the first of the others.
    #[inline(always)]
    fn some<S: Simd, H: Shape, const R: usize>(&self, s: S, mut first: usize) -> usize {
        while self.rows.end - first >= R {
            let rows: [Row; R] = std::array::from_fn(|idx| self.job.row(first + idx, self.piece));
            let sums = self.sums.wrapping_add((first - self.rows.start) * COLUMNS);
            // SAFETY: the rows were quantised in the run before; they and the tile have the piece's
            // blocks, and there are sums for each row.
            unsafe { product::some::<S, H, R>(s, &self.tile, &rows, (sums, COLUMNS)) };
            first += R;
        }
        first
    }
}
