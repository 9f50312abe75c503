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
use super::product::{Brain, Byte, Float, Half, Product, Scale, WeightByte};
use super::tile::{self, Block, Start};
use super::{Layout, Matrix, Precision, SHARED};
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
    /// After blocks of packed activations, `[steps, rows of the block]` each, 4 bytes an element:
    /// `[groups, rows of the block]` each.
    scales_at: usize,
    sums_at: usize,
    sums_stride: usize,
    pub(super) n_bytes: usize,
}

impl ScratchPlan {
    pub(super) fn new(matrix: &Matrix, n_rows: usize, n_threads: usize) -> Self {
        let blocks = Blocks::new(matrix, n_rows);
        let scales_at = aligned(n_rows * matrix.steps * 4);
        let n_scales = n_rows * matrix.n_groups();
        let sums_at = scales_at + aligned(n_scales * size_of::<Scale>());
        let sums_stride =
            aligned(blocks.most_rows_of_a_tile() * PANELS * matrix.geometry.width * 4);
        let n_bytes = sums_at + sums_stride * n_threads;
        Self { scales_at, sums_at, sums_stride, n_bytes }
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

impl Job<'_> {
    /// The scales of a block's groups, which begins with row `first` and has `n` of them.
    fn scales_at(&self, first: usize, n: usize) -> *mut Scale {
        let at = self.plan.scales_at + first * self.matrix.n_groups() * size_of::<Scale>();
        self.scratch.at(at, n * size_of::<Scale>())
    }
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
            let blocks = part(blocks.n_blocks, 1, thread_idx, n_threads);
            match matrix.precision {
                Precision::Int8 => isa.run_bytes(Pack::<true> { job: &job, blocks }),
                _ => isa.run(Pack::<false> { job: &job, blocks }),
            }
        });
    }
    let n_units = matrix.n_out.div_ceil(matrix.geometry.width);
    pool.run(|thread_idx, n_threads| {
        let units = part(blocks.n_tiles * n_units, 1, thread_idx, n_threads);
        match matrix.precision {
            Precision::Int8 => {
                isa.run_bytes(Compute::<true> { job: &job, thread_idx, units, n_units });
            }
            _ => isa.run(Compute::<false> { job: &job, thread_idx, units, n_units }),
        }
    });
    Ok(())
}

/// Packs some blocks of activations, as `BYTES` or as they are.
struct Pack<'a, const BYTES: bool> {
    job: &'a Job<'a>,
    blocks: Range<usize>,
}

impl<const BYTES: bool> Arithmetic for Pack<'_, BYTES> {
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
            if BYTES {
                let n_scales = n_rows * job.matrix.n_groups();
                let scales = job.scales_at(rows.start, n_scales);
                // SAFETY: as above.
                let scales = unsafe { std::slice::from_raw_parts_mut(scales, n_scales) };
                pack_bytes(s, from, (n_in, n_rows), (to, scales));
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

/// Each row to signed bytes, `[steps, n_rows]`, and scales, `[groups, n_rows]`.
#[inline(always)]
fn pack_bytes<S: Simd>(
    s: S,
    from: &[f32],
    (n_in, n_rows): (usize, usize),
    (to, scales): (&mut [u32], &mut [Scale]),
) {
    for (row, values) in from.chunks_exact(n_in).enumerate() {
        let groups = to.chunks_mut(SHARED / S::GROUP * n_rows).zip(scales.chunks_exact_mut(n_rows));
        for (values, (to, scales)) in values.chunks(SHARED).zip(groups) {
            let mut bytes = [0; SHARED];
            let scale = quantise(s, values, &mut bytes[..values.len()]);
            let sum = match S::OFFSET {
                0 => 0,
                _ => bytes.iter().map(|byte| i32::from(*byte)).sum(),
            };
            scales[row] = Scale { scale, start: -S::OFFSET * sum };
            for (step, bytes) in to.chunks_exact_mut(n_rows).zip(bytes.chunks_exact(S::GROUP)) {
                step[row] = s.group(bytes);
            }
        }
    }
}

/// Added to this, a number of up to 22 bits is rounded to an integer in the lowest bits.
pub(crate) const SHIFT: f32 = 12_582_912.0;

/// Activations to bytes from -127 to 127; returns what one stands for, NaN where one is not finite.
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
        *byte = (x * inverse + SHIFT).to_bits() as i8;
    }
    scale + s.sum(probe)
}

/// Computes some panels of some row tiles, of activations that are `BYTES` or of others.
struct Compute<'a, const BYTES: bool> {
    job: &'a Job<'a>,
    thread_idx: usize,
    /// Of `n_tiles * n_units`.
    units: Range<usize>,
    n_units: usize,
}

impl<const BYTES: bool> Arithmetic for Compute<'_, BYTES> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut next = self.units.start;
        while next < self.units.end {
            let (tile_idx, unit) = (next / self.n_units, next % self.n_units);
            let most = PANELS / self.job.matrix.layout.n_panels();
            let n = most.min(self.n_units - unit).min(self.units.end - next);
            let share = Share { tile_idx, first: unit, n_units: n, thread_idx: self.thread_idx };
            if BYTES {
                share.compute::<S, Byte>(s, self.job);
            } else {
                match self.job.matrix.precision {
                    Precision::F16 => share.compute::<S, Half>(s, self.job),
                    Precision::Bf16 => share.compute::<S, Brain>(s, self.job),
                    Precision::Int8Weights => share.compute::<S, WeightByte>(s, self.job),
                    Precision::F32 | Precision::Int8 => share.compute::<S, Float>(s, self.job),
                }
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
    fn sums<'a>(&self, job: &'a Job<'_>) -> &'a mut [f32] {
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
            _ => {
                let steps = PIECE * matrix.steps / matrix.panel_bytes();
                // Whole groups of any form.
                steps.clamp(SHARED, PIECE_STEPS) / SHARED * SHARED
            }
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
                        scales: match matrix.precision {
                            Precision::Int8 => job
                                .scales_at(block_rows.start, n_rows * matrix.n_groups())
                                .wrapping_add(step / P::STEPS * n_rows),
                            _ => std::ptr::null(),
                        },
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
        if matrix.precision.has_scales() {
            self.scale_columns(s, job, sums);
        }
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

    /// Columns times what their bytes stand for, in place.
    #[inline(always)]
    fn scale_columns<S: Simd>(&self, s: S, job: &Job<'_>, sums: &mut [f32]) {
        let matrix = job.matrix;
        let width = 2 * S::LANES;
        let n_rows = self.rows(job).len();
        let first_panel = self.first * matrix.layout.n_panels();
        for (panel, sums) in sums.chunks_exact_mut(n_rows * width).enumerate() {
            let columns = (first_panel + panel) * width..(first_panel + panel + 1) * width;
            let scales = &matrix.scales[columns];
            for sums in sums.chunks_exact_mut(width) {
                for (sums, scales) in
                    sums.chunks_exact_mut(S::LANES).zip(scales.chunks_exact(S::LANES))
                {
                    // SAFETY: there are as many of each.
                    unsafe {
                        let scaled = s.mul(s.load(sums.as_ptr()), s.load(scales.as_ptr()));
                        s.store(sums.as_mut_ptr(), scaled);
                    }
                }
            }
        }
    }
}
