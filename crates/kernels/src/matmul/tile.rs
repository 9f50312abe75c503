//! The inner loop: a block of rows times a few panels, with all sums in registers.

use super::product::{Product, Scale};
use crate::vector::Simd;

/// Whether sums begin or go on from the steps before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    Zero,
    Stored,
}

/// Where a block's operands lie.
pub(super) struct Block<E, W> {
    pub(super) start: Start,
    pub(super) steps: usize,
    pub(super) n_rows: usize,
    pub(super) n_panels: usize,
    /// `[steps, n_rows]`.
    pub(super) rows: *const E,
    /// `[groups of steps, n_rows]`, where the form has groups; `steps` are whole ones but for a row's
    /// last.
    pub(super) scales: *const Scale,
    /// The first panel at the first step: `[steps, 2 * LANES, GROUP]`.
    pub(super) panels: *const W,
    /// From one panel to the next, in stored elements.
    pub(super) panel_stride: usize,
    /// `[n_rows, 2 * LANES]` for each panel.
    pub(super) sums: *mut f32,
    /// From one panel's sums to the next's.
    pub(super) sums_stride: usize,
}

/// Most panels at once.
const MAX_PANELS: usize = 4;

/// Panels that a block of `n_rows` takes at once: as many as keep the multipliers busy, since a chain
/// of additions waits for itself.
pub(super) fn panels_at_once(n_rows: usize, max_rows: usize) -> usize {
    match n_rows {
        1 => MAX_PANELS,
        2 => 2,
        // Where there are registers for the sums of six.
        3 if max_rows >= 6 => 2,
        _ => 1,
    }
}

/// Adds `steps` products to the sums of a block.
///
/// # Safety
/// All that `block` describes can be read, its sums written; `n_rows` is 1 to `MAX_ROWS`, and
/// `n_panels` is 1 or `panels_at_once(n_rows)`.
#[inline(always)]
pub(super) unsafe fn add<S: Simd, P: Product<S>>(s: S, block: &Block<P::Element, P::Stored>) {
    macro_rules! by_rows {
        ($($rows:literal)*) => {
            match block.n_rows {
                $($rows if const { $rows <= S::MAX_ROWS } => {
                    // SAFETY: the caller vouches for what the block describes.
                    unsafe { fixed::<S, P, $rows, 1>(s, block) }
                })*
                _ => unreachable!("a block has at most MAX_ROWS rows"),
            }
        };
    }
    match (block.n_rows, block.n_panels) {
        // SAFETY: the caller vouches for what the block describes.
        (1, 4) => unsafe { fixed::<S, P, 1, 4>(s, block) },
        // SAFETY: as above.
        (2, 2) => unsafe { fixed::<S, P, 2, 2>(s, block) },
        // SAFETY: as above.
        (3, 2) if const { S::MAX_ROWS >= 3 } => unsafe { fixed::<S, P, 3, 2>(s, block) },
        _ => by_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14),
    }
}

/// [`add`] for numbers that the compiler knows.
#[inline(always)]
unsafe fn fixed<S: Simd, P: Product<S>, const R: usize, const N: usize>(
    s: S,
    block: &Block<P::Element, P::Stored>,
) {
    let lanes = S::LANES;
    let sums_at = |n: usize, r: usize, half: usize| {
        block.sums.wrapping_add(n * block.sums_stride + (r * 2 + half) * lanes)
    };
    let mut sums = [[[s.splat(0.0); 2]; R]; N];
    if block.start == Start::Stored {
        for (n, sums) in sums.iter_mut().enumerate() {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (half, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: the block's sums can be read.
                    *sum = unsafe { s.load(sums_at(n, r, half)) };
                }
            }
        }
    }
    let mut rows = block.rows;
    let mut panels: [*const P::Stored; N] =
        std::array::from_fn(|n| block.panels.wrapping_add(n * block.panel_stride));
    let mut scales = block.scales;
    let mut left = block.steps;
    while left > 0 {
        let steps = P::STEPS.min(left);
        let mut partial = [[[P::zero(s); 2]; R]; N];
        for (partial, sums) in partial.iter_mut().zip(&sums) {
            for (r, (partial, sums)) in partial.iter_mut().zip(sums).enumerate() {
                for (partial, sum) in partial.iter_mut().zip(sums) {
                    // SAFETY: each group has a scale for each row.
                    *partial = unsafe { P::begin(s, *sum, scales.wrapping_add(r)) };
                }
            }
        }
        for _ in 0..steps {
            for (partial, panel) in partial.iter_mut().zip(&mut panels) {
                // Blocks in between load as much as the machine can without.
                if N > 1 || R > 4 {
                    s.prefetch(panel.wrapping_byte_add(AHEAD).cast());
                }
                // SAFETY: the panel has this step.
                let low = unsafe { P::weights(s, *panel) };
                // SAFETY: as above.
                let high = unsafe { P::weights(s, panel.wrapping_add(lanes * P::GROUP)) };
                for (r, [first, second]) in partial.iter_mut().enumerate() {
                    // SAFETY: the rows have this step.
                    let element = unsafe { *rows.add(r) };
                    *first = P::join(s, *first, low, element);
                    *second = P::join(s, *second, high, element);
                }
                *panel = panel.wrapping_add(2 * lanes * P::GROUP);
            }
            rows = rows.wrapping_add(R);
        }
        for (sums, partial) in sums.iter_mut().zip(&partial) {
            for (r, (sums, partial)) in sums.iter_mut().zip(partial).enumerate() {
                for (sum, partial) in sums.iter_mut().zip(partial) {
                    // SAFETY: each group has a scale for each row.
                    *sum = unsafe { P::end(s, *partial, *sum, scales.wrapping_add(r)) };
                }
            }
        }
        scales = scales.wrapping_add(R);
        left -= steps;
    }
    for (n, sums) in sums.iter().enumerate() {
        for (r, sums) in sums.iter().enumerate() {
            for (half, sum) in sums.iter().enumerate() {
                // SAFETY: the block's sums can be written.
                unsafe { s.store(sums_at(n, r, half), *sum) };
            }
        }
    }
}

/// Bytes ahead of a panel's stream that are asked for: with few rows all of it comes from memory, with
/// many the first block's.
const AHEAD: usize = 1024;
