//! The loops around the inner one, and who does what of them.
//!
//! ```text
//! all threads: pack the activations, each some blocks
//! each thread, for its share of (row tile, panels):
//!   for each piece of the steps:           a panel's piece fits the first-level cache
//!     for each panel:
//!       for each block of the row tile:    their pieces fit the second-level cache
//!         tile::add
//!   epilogue
//! ```

use std::ops::Range;

use super::epilogue::{Epilogue, Place, finish};
use super::product::{Brain, Byte, Float, Half, Product};
use super::tile::{self, Block, Start};
use super::{Layout, Matrix, Precision};
use crate::error::KernelError;
use crate::memory::{Region, Scratch, aligned};
use crate::pool::{Parts, Pool, part};
use crate::vector::{Arithmetic, Simd};

/// Bytes of a piece of a panel: half of a first-level cache.
const PIECE: usize = 16 << 10;

/// Steps of a piece, at most: the rows' part of it, 4 bytes each, is in that cache, too.
const PIECE_STEPS: usize = 512;

/// Panels whose sums are kept at once.
const PANELS: usize = 8;

/// Where things are in the scratch memory.
pub(super) struct ScratchPlan {
    /// Blocks of packed activations, `[steps, rows of the block]` each, 4 bytes an element.
    scales_at: usize,
    bytes_at: usize,
    bytes_stride: usize,
    sums_at: usize,
    sums_stride: usize,
    pub(super) n_bytes: usize,
}

impl ScratchPlan {
    pub(super) fn new(matrix: &Matrix, n_rows: usize, n_threads: usize) -> Self {
        let blocks = Blocks::new(matrix, n_rows);
        let is_int = matrix.precision == Precision::Int8;
        let scales_at = aligned(n_rows * matrix.steps * 4);
        let bytes_at = scales_at + aligned(if is_int { n_rows * 4 } else { 0 });
        let padded = matrix.steps * matrix.geometry.group;
        let bytes_stride = aligned(if is_int { padded } else { 0 });
        let sums_at = bytes_at + bytes_stride * n_threads;
        let sums_stride =
            aligned(blocks.most_rows_of_a_tile() * PANELS * matrix.geometry.width * 4);
        let n_bytes = sums_at + sums_stride * n_threads;
        Self { scales_at, bytes_at, bytes_stride, sums_at, sums_stride, n_bytes }
    }
}

/// How rows are cut: into blocks of nearly equal size, and these into tiles.
#[derive(Clone, Copy)]
struct Blocks {
    n_rows: usize,
    n_blocks: usize,
    n_tiles: usize,
}

impl Blocks {
    fn new(matrix: &Matrix, n_rows: usize) -> Self {
        let n_blocks = n_rows.div_ceil(matrix.geometry.max_rows);
        Self { n_rows, n_blocks, n_tiles: n_blocks.div_ceil(matrix.geometry.blocks) }
    }

    fn rows(self, block_idx: usize) -> Range<usize> {
        part(self.n_rows, 1, block_idx, self.n_blocks)
    }

    fn of_tile(self, tile_idx: usize) -> Range<usize> {
        part(self.n_blocks, 1, tile_idx, self.n_tiles)
    }

    fn most_rows_of_a_tile(self) -> usize {
        let blocks = self.n_blocks.div_ceil(self.n_tiles.max(1));
        blocks * self.n_rows.div_ceil(self.n_blocks.max(1))
    }
}

/// A product that is under way.
struct Job<'a> {
    matrix: &'a Matrix,
    activations: &'a [f32],
    output: Parts<'a, f32>,
    epilogue: &'a Epilogue<'a>,
    blocks: Blocks,
    plan: ScratchPlan,
    scratch: Region<'a>,
}

/// See [`Matrix::multiply`], which has checked the sizes.
pub(super) fn multiply(
    matrix: &Matrix,
    pool: &Pool,
    activations: &[f32],
    (output, epilogue): (&mut [f32], &Epilogue<'_>),
    scratch: &mut Scratch,
) -> Result<(), KernelError> {
    let n_rows = activations.len() / matrix.n_in;
    let plan = ScratchPlan::new(matrix, n_rows, pool.n_threads());
    let scratch = scratch.take(plan.n_bytes)?;
    let blocks = Blocks::new(matrix, n_rows);
    let output = Parts::new(output);
    let job = Job { matrix, activations, output, epilogue, blocks, plan, scratch };
    let isa = matrix.isa;
    // One row of floats is packed as it is.
    if n_rows > 1 || matrix.precision == Precision::Int8 {
        pool.run(|thread_idx, n_threads| {
            isa.run(Pack {
                job: &job,
                thread_idx,
                blocks: part(blocks.n_blocks, 1, thread_idx, n_threads),
            });
        });
    }
    let n_units = matrix.n_out.div_ceil(matrix.geometry.width);
    pool.run(|thread_idx, n_threads| {
        let units = part(blocks.n_tiles * n_units, 1, thread_idx, n_threads);
        isa.run(Compute { job: &job, thread_idx, units, n_units });
    });
    Ok(())
}

/// Packs some blocks of activations.
struct Pack<'a> {
    job: &'a Job<'a>,
    thread_idx: usize,
    blocks: Range<usize>,
}

impl Arithmetic for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let job = self.job;
        let (n_in, steps) = (job.matrix.n_in, job.matrix.steps);
        for block_idx in self.blocks {
            let rows = job.blocks.rows(block_idx);
            let n_rows = rows.len();
            let n_elements = n_rows * steps;
            let to: *mut u32 = job.scratch.at(rows.start * steps * 4, n_elements * 4);
            // SAFETY: blocks don't meet, and each is packed by one thread.
            let to = unsafe { std::slice::from_raw_parts_mut(to, n_elements) };
            let from = &job.activations[rows.start * n_in..rows.end * n_in];
            if job.matrix.precision == Precision::Int8 {
                let plan = &job.plan;
                let padded = steps * S::GROUP;
                let at = plan.bytes_at + self.thread_idx * plan.bytes_stride;
                // SAFETY: each thread has bytes of its own, and each row a scale of its own.
                let (bytes, scales) = unsafe {
                    let bytes = job.scratch.at(at, padded);
                    let scales = job.scratch.at(plan.scales_at + rows.start * 4, n_rows * 4);
                    (
                        std::slice::from_raw_parts_mut(bytes, padded),
                        std::slice::from_raw_parts_mut(scales, n_rows),
                    )
                };
                pack_bytes(s, from, (n_in, n_rows), bytes, (to, scales));
            } else {
                pack_floats(from, (n_in, n_rows), to);
            }
        }
    }
}

/// `[n_rows, n_in]` to `[n_in, n_rows]`.
#[inline(always)]
fn pack_floats(from: &[f32], (n_in, n_rows): (usize, usize), to: &mut [u32]) {
    for (row, values) in from.chunks_exact(n_in).enumerate() {
        for (step, x) in to.chunks_exact_mut(n_rows).zip(values) {
            step[row] = x.to_bits();
        }
    }
}

/// Each row to signed bytes and a scale, then to groups, `[steps, n_rows]`.
#[inline(always)]
fn pack_bytes<S: Simd>(
    s: S,
    from: &[f32],
    (n_in, n_rows): (usize, usize),
    bytes: &mut [i8],
    (to, scales): (&mut [u32], &mut [f32]),
) {
    for (row, values) in from.chunks_exact(n_in).enumerate() {
        scales[row] = quantise(s, values, &mut bytes[..n_in]);
        bytes[n_in..].fill(0);
        for (step, group) in to.chunks_exact_mut(n_rows).zip(bytes.chunks_exact(S::GROUP)) {
            step[row] = s.group(group);
        }
    }
}

/// A row to bytes from -127 to 127; returns what one stands for, NaN where the row is not finite.
#[inline(always)]
fn quantise<S: Simd>(s: S, values: &[f32], bytes: &mut [i8]) -> f32 {
    let (mut largest, mut probe) = (s.splat(0.0), s.splat(0.0));
    for chunk in values.chunks(S::LANES) {
        // SAFETY: the chunk is as long as that.
        let x = unsafe { s.load_first(chunk.as_ptr(), chunk.len()) };
        largest = s.max(s.abs(x), largest);
        probe = s.fma(x, s.splat(0.0), probe);
    }
    let largest = s.largest(largest);
    let scale = largest / 127.0;
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let (groups, rest) = values.as_chunks::<32>();
    let (to, to_rest) = bytes.as_chunks_mut::<32>();
    for (to, group) in to.iter_mut().zip(groups) {
        let rounded = s.round_bytes(group, inverse);
        // SAFETY: there are 32.
        unsafe { s.store_bytes_32(to.as_mut_ptr().cast(), rounded) };
    }
    for (byte, x) in to_rest.iter_mut().zip(rest) {
        // Added to this, a number of up to 22 bits is rounded to an integer in the lowest bits.
        const SHIFT: f32 = 12_582_912.0;
        *byte = (x * inverse + SHIFT).to_bits() as i8;
    }
    scale + s.sum(probe)
}

/// Computes some panels of some row tiles.
struct Compute<'a> {
    job: &'a Job<'a>,
    thread_idx: usize,
    /// Of `n_tiles * n_units`.
    units: Range<usize>,
    n_units: usize,
}

impl Arithmetic for Compute<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut next = self.units.start;
        while next < self.units.end {
            let (tile_idx, unit) = (next / self.n_units, next % self.n_units);
            let most = PANELS / self.job.matrix.layout.n_panels();
            let n = most.min(self.n_units - unit).min(self.units.end - next);
            let share = Share { tile_idx, first: unit, n_units: n, thread_idx: self.thread_idx };
            match self.job.matrix.precision {
                Precision::F32 => share.compute::<S, Float>(s, self.job),
                Precision::F16 => share.compute::<S, Half>(s, self.job),
                Precision::Bf16 => share.compute::<S, Brain>(s, self.job),
                Precision::Int8 => share.compute::<S, Byte>(s, self.job),
            }
            share.finish(s, self.job);
            next += n;
        }
    }
}

/// One row tile times a few panels.
struct Share {
    tile_idx: usize,
    /// The first panel of the output.
    first: usize,
    n_units: usize,
    thread_idx: usize,
}

impl Share {
    /// The tile's rows.
    fn rows(&self, job: &Job<'_>) -> Range<usize> {
        let blocks = job.blocks.of_tile(self.tile_idx);
        job.blocks.rows(blocks.start).start..job.blocks.rows(blocks.end - 1).end
    }

    /// This thread's sums: `[panels, rows of the tile, width]`.
    #[expect(clippy::mut_from_ref, reason = "a thread takes its sums once at a time")]
    fn sums<'a>(&self, job: &'a Job<'_>) -> &'a mut [u32] {
        let n_panels = self.n_units * job.matrix.layout.n_panels();
        let n = n_panels * self.rows(job).len() * job.matrix.geometry.width;
        let at = job.plan.sums_at + self.thread_idx * job.plan.sums_stride;
        // SAFETY: each thread has sums of its own, and one slice of them at a time.
        unsafe { std::slice::from_raw_parts_mut(job.scratch.at(at, n * 4), n) }
    }

    #[inline(always)]
    fn compute<S: Simd, P: Product<S>>(&self, s: S, job: &Job<'_>) {
        let matrix = job.matrix;
        let width = 2 * S::LANES;
        let tile_rows = self.rows(job);
        let blocks = job.blocks.of_tile(self.tile_idx);
        let n_panels = self.n_units * matrix.layout.n_panels();
        let first_panel = self.first * matrix.layout.n_panels();
        let sums = self.sums(job).as_mut_ptr();
        let panel_stride = matrix.steps * width * P::GROUP;
        let panels = matrix.panels.as_ptr().cast::<P::Stored>();
        let is_packed = job.blocks.n_rows > 1 || matrix.precision == Precision::Int8;
        let rows = match is_packed {
            true => {
                job.scratch.at::<P::Element>(0, job.blocks.n_rows * matrix.steps * 4).cast_const()
            }
            false => job.activations.as_ptr().cast(),
        };
        // A single block has no need for pieces: nothing is read twice.
        let piece = match blocks.len() {
            1 => matrix.steps,
            _ => (PIECE * matrix.steps / matrix.panel_bytes()).clamp(64, PIECE_STEPS),
        };
        let at_once = match blocks.len() {
            1 => tile::panels_at_once(tile_rows.len(), matrix.geometry.max_rows),
            _ => 1,
        };
        let mut step = 0;
        while step < matrix.steps {
            let steps = piece.min(matrix.steps - step);
            let mut panel = 0;
            while panel < n_panels {
                let n = if n_panels - panel >= at_once { at_once } else { 1 };
                for block_idx in blocks.clone() {
                    let block_rows = job.blocks.rows(block_idx);
                    let n_rows = block_rows.len();
                    let row_at = block_rows.start * matrix.steps + step * n_rows;
                    let sums_at =
                        (panel * tile_rows.len() + block_rows.start - tile_rows.start) * width;
                    let block = Block {
                        start: if step == 0 { Start::Zero } else { Start::Stored },
                        steps,
                        n_rows,
                        n_panels: n,
                        rows: rows.wrapping_add(row_at),
                        panels: panels.wrapping_add(
                            (first_panel + panel) * panel_stride + step * width * P::GROUP,
                        ),
                        panel_stride,
                        sums: sums.wrapping_add(sums_at),
                        sums_stride: tile_rows.len() * width,
                    };
                    // SAFETY: the panels are `[n_panels, steps, width, GROUP]`, the packed rows
                    // `[steps, n_rows]` a block, the sums as `Self::sums` says.
                    unsafe { tile::add::<S, P>(s, &block) };
                }
                panel += n;
            }
            step += steps;
        }
    }

    /// The epilogue of all sums.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, job: &Job<'_>) {
        let matrix = job.matrix;
        let width = 2 * S::LANES;
        let rows = self.rows(job);
        let per_unit = matrix.layout.n_panels();
        let sums = self.sums(job);
        if matrix.precision == Precision::Int8 {
            self.to_floats(s, job, sums);
        }
        // SAFETY: u32 and f32 have the same size and alignment, and all bits are numbers.
        let sums: &[f32] = unsafe { std::slice::from_raw_parts(sums.as_ptr().cast(), sums.len()) };
        let of_panel = rows.len() * width;
        // Row by row: lines of the output that lie side by side are written one after the other.
        for (idx, row) in rows.clone().enumerate() {
            for unit in 0..self.n_units {
                let at = unit * per_unit * of_panel + idx * width;
                let other = match matrix.layout {
                    Layout::Plain => None,
                    Layout::Gated => Some(&sums[at + of_panel..at + of_panel + width]),
                };
                let column = (self.first + unit) * width;
                let place = Place {
                    row,
                    column,
                    n_out: matrix.n_out,
                    n_columns: width.min(matrix.n_out - column),
                    sums: &sums[at..at + width],
                    other,
                };
                // SAFETY: a row of a panel is computed by one thread.
                unsafe { finish(s, job.epilogue, &place, &job.output) };
            }
        }
    }

    /// Sums of bytes to f32, in place.
    #[inline(always)]
    fn to_floats<S: Simd>(&self, s: S, job: &Job<'_>, sums: &mut [u32]) {
        let matrix = job.matrix;
        let width = 2 * S::LANES;
        let rows = self.rows(job);
        let at = job.plan.scales_at + rows.start * 4;
        // SAFETY: the rows' scales were written before this run.
        let row_scales: &[f32] =
            unsafe { std::slice::from_raw_parts(job.scratch.at(at, rows.len() * 4), rows.len()) };
        let first_panel = self.first * matrix.layout.n_panels();
        for (panel, sums) in sums.chunks_exact_mut(rows.len() * width).enumerate() {
            let columns = (first_panel + panel) * width..(first_panel + panel + 1) * width;
            let (scales, offsets) = (&matrix.scales[columns.clone()], &matrix.sums[columns]);
            if S::OFFSET != 0 {
                for sums in sums.chunks_exact_mut(width) {
                    subtract(sums, offsets, S::OFFSET);
                }
            }
            for (sums, row_scale) in sums.chunks_exact_mut(width).zip(row_scales) {
                let row_scale = s.splat(*row_scale);
                for (sums, scales) in
                    sums.chunks_exact_mut(S::LANES).zip(scales.chunks_exact(S::LANES))
                {
                    // SAFETY: there are as many of each; i32, u32 and f32 have the same size.
                    unsafe {
                        let sum = s.to_float(s.load_int(sums.as_ptr().cast()));
                        let scale = s.mul(row_scale, s.load(scales.as_ptr()));
                        s.store(sums.as_mut_ptr().cast(), s.mul(sum, scale));
                    }
                }
            }
        }
    }
}

/// Takes away what `offset` added to each activation added to the sums of columns.
#[inline(always)]
fn subtract(sums: &mut [u32], of_columns: &[i32], offset: i32) {
    for (sum, column) in sums.iter_mut().zip(of_columns) {
        *sum = sum.cast_signed().wrapping_sub(offset.wrapping_mul(*column)).cast_unsigned();
    }
}
