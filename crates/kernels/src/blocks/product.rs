//! The inner loops: blocks straight from the file for one row, and unpacked ones for several.
//!
//! Lanes are columns: eight blocks of as many columns are turned so that a lane's four bytes are its
//! column's next four, and each four bytes of a row are multiplied with all lanes at once. For one row that
//! is done on the way; for several, unpacked panels of eight columns are kept in memory. Of 8 bits there is
//! nothing to unpack: one row multiplies with bytes as they lie, and the sums are turned; for several rows
//! two numbers of 16 bits take the place of four bytes, whose products would not be within 16 bits.
//!
//! Sums of a group are exact; what follows is the same with the same numbers in the same order, so that
//! a row's sums have the same bits.

#![expect(
    clippy::needless_range_loop,
    reason = "arrays of registers, by index with constant bounds"
)]

use std::hint::black_box;

use super::GROUP;
use super::format::{Blocks, Format, Joint, Planes, Shape};
use super::quantise::Row;
use crate::vector::Simd;

/// Columns of a panel: lanes.
pub(super) const PANEL: usize = 8;

/// Panels that are multiplied at once with unpacked blocks.
pub(super) const PANELS: usize = 2;

/// Rows that are multiplied at once with unpacked blocks.
pub(super) const ROWS: usize = 4;

/// Bytes ahead that are asked for.
const AHEAD: usize = 1024;

/// Bytes ahead that the second-level cache keeps until they are read.
const FAR: usize = 128 << 10;

/// Does the same for each group of a block, where its number is a constant: shifts depend on it.
macro_rules! each_group {
    ($format:ident, $idx:ident => $body:block) => {{
        each_group!(@ $idx, $body, 0);
        if $format::Shape::GROUPS > 1 {
            each_group!(@ $idx, $body, 1 2 3 4 5 6 7);
        }
    }};
    (@ $idx:ident, $body:block, $($n:literal)*) => {
        $({
            let $idx: usize = $n;
            $body
        })*
    };
}

/// The blocks at `columns`.
///
/// # Safety
/// Each can be read.
#[inline(always)]
unsafe fn blocks<'a, F: Format>(columns: &[*const u8; PANEL], block_idx: usize) -> Blocks<'a> {
    columns.map(|column| {
        let at = column.wrapping_add(block_idx * F::BYTES);
        // SAFETY: the caller says so.
        unsafe { std::slice::from_raw_parts(at, F::BYTES) }
    })
}

/// An offset of a row.
///
/// # Safety
/// The row has it.
#[inline(always)]
unsafe fn offset<S: Simd>(s: S, row: &Row, idx: usize) -> S::Pairs {
    // SAFETY: the caller says so.
    s.as_pairs(unsafe { s.quad(row.extras.offsets().add(idx).cast_const().cast()) })
}

/// A group's sums of 8 columns, from blocks as they lie: of 8 bits.
///
/// # Safety
/// The row has this group.
#[inline(always)]
unsafe fn whole_of_wide<S: Simd, F: Format>(
    s: S,
    blocks: &Blocks<'_>,
    of_row: usize,
    row: &Row,
) -> S::Ints {
    // SAFETY: the caller says that the row has this group.
    let x = unsafe { s.load_bytes_32(row.bytes.add(of_row * GROUP)) };
    let mut fours = [s.ints(0); PANEL];
    for column in 0..PANEL {
        fours[column] = s.fours(F::wide(s, blocks[column]), x);
    }
    s.sums(fours)
}

/// A group's sums of 8 columns, side by side.
///
/// # Safety
/// The row has this group, the `group_idx`-th of its block and the `of_row`-th of all.
#[inline(always)]
unsafe fn whole<S: Simd, F: Format>(
    s: S,
    (planes, joint): (&Planes<S>, &Joint<S>),
    (group_idx, of_row): (usize, usize),
    row: &Row,
) -> S::Ints {
    let n_vectors = F::Shape::VECTORS / F::Shape::PARTS;
    let mut whole = s.ints(0);
    for part in 0..F::Shape::PARTS {
        let mut sums = s.sixteen(0);
        // SAFETY: the caller says that the row has this group, and so its offsets.
        unsafe {
            if F::Shape::HAS_OFFSET {
                sums = offset(s, row, of_row * F::Shape::SCALES.max(1) + part);
            }
            for four in part * n_vectors..(part + 1) * n_vectors {
                let x = s.quad(row.bytes.add(of_row * GROUP + 4 * four));
                let products = s.pairs(F::bytes(s, planes, group_idx, four), x);
                sums = s.add_pairs(sums, products);
            }
        }
        let scales = joint.scales::<F::Shape>(s, group_idx, part);
        whole = s.add_ints(whole, s.join_pairs(sums, scales));
    }
    whole
}

/// One row times eight columns of `n_blocks`.
///
/// # Safety
/// The row and each column have as many blocks.
#[inline(always)]
pub(super) unsafe fn one<S: Simd, F: Format>(
    s: S,
    (columns, n_blocks): ([*const u8; PANEL], usize),
    row: &Row,
) -> S::Eight {
    // Where the next columns begin, if that is near.
    let ahead = match PANEL * n_blocks * F::BYTES {
        next if next <= FAR => next,
        _ => AHEAD,
    };
    let n_groups = F::Shape::GROUPS;
    let mut planes: Planes<S> = [s.as_bytes(s.sixteen(0)); _];
    let mut sum = s.eight(0.0);
    for block_idx in 0..n_blocks {
        // SAFETY: the caller says that the columns have this block.
        let blocks = unsafe { blocks::<F>(&columns, block_idx) };
        if block_idx.is_multiple_of((64 / F::BYTES).max(1)) {
            for block in &blocks {
                for line in 0..F::BYTES.div_ceil(64) {
                    s.prefetch(block.as_ptr().wrapping_add(ahead + 64 * line));
                }
            }
        }
        let joint = F::joint(s, &blocks);
        if !F::Shape::IS_WIDE {
            F::turn(s, &blocks, &mut planes);
        }
        let mut t = s.eight(0.0);
        each_group!(F, idx => {
            let of_row = block_idx * n_groups + idx;
            // SAFETY: the caller says that the row has this block.
            let (whole, scale, total) = unsafe {
                let whole = match F::Shape::IS_WIDE {
                    true => whole_of_wide::<S, F>(s, &blocks, of_row, row),
                    false => whole::<S, F>(s, (&planes, &joint), (idx, of_row), row),
                };
                let total = match F::Shape::HAS_LEAST {
                    true => *row.extras.totals().add(of_row),
                    false => 0.0,
                };
                (s.float(whole), s.eight(*row.scales.add(of_row)), s.eight(total))
            };
            t = join::<S, F::Shape>(s, whole, scale, t);
            if F::Shape::HAS_LEAST {
                sum = s.fma_eight(joint.least::<F::Shape>(s, idx), total, sum);
            }
        });
        sum = s.fma_eight(t, joint.d, sum);
    }
    sum
}

/// Adds a group's products.
#[inline(always)]
fn join<S: Simd, H: Shape>(s: S, whole: S::Eight, scale: S::Eight, t: S::Eight) -> S::Eight {
    // The only group has nothing to be added to.
    if H::GROUPS == 1 { s.mul_eight(whole, scale) } else { s.fma_eight(whole, scale, t) }
}

/// Unpacks the `n_blocks` of eight columns.
///
/// # Safety
/// The columns have as many blocks, and as many of `BLOCK_BYTES` can be written.
#[inline(always)]
pub(super) unsafe fn unpack<S: Simd, F: Format>(
    s: S,
    (columns, n_blocks): ([*const u8; PANEL], usize),
    to: *mut u8,
) {
    let mut to = Unpacked { s, at: to };
    let mut planes: Planes<S> = [s.as_bytes(s.sixteen(0)); _];
    for block_idx in 0..n_blocks {
        // SAFETY: the caller says that the columns have this block, and vouches for the memory: there
        // are as many vectors as the shape says.
        unsafe {
            let blocks = blocks::<F>(&columns, block_idx);
            let joint = F::joint(s, &blocks);
            F::turn(s, &blocks, &mut planes);
            each_group!(F, idx => {
                for half in 0..F::Shape::VECTORS / PANEL {
                    for four in 0..PANEL {
                        let bytes = F::bytes(s, &planes, idx, four);
                        to.put(match F::Shape::IS_WIDE {
                            true => s.as_bytes(s.widen(bytes)[half]),
                            false => bytes,
                        });
                    }
                }
                for part in 0..F::Shape::SCALES {
                    to.put(s.as_bytes(joint.scales::<F::Shape>(s, idx, part)));
                }
                if F::Shape::HAS_LEAST {
                    to.put(s.bytes_of(joint.least::<F::Shape>(s, idx)));
                }
            });
            to.put(s.bytes_of(joint.d));
        }
    }
}

/// Memory for vectors of an unpacked block.
struct Unpacked<S> {
    s: S,
    at: *mut u8,
}

impl<S: Simd> Unpacked<S> {
    /// Adds a vector.
    ///
    /// # Safety
    /// There is room for it.
    #[inline(always)]
    unsafe fn put(&mut self, vector: S::B) {
        // SAFETY: the caller says so.
        unsafe { self.s.store_bytes_32(self.at, vector) };
        self.at = self.at.wrapping_add(32);
    }
}

/// Unpacked columns.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Where the first panel begins, and the next ones so many bytes on.
    pub(super) start: *const u8,
    pub(super) stride: usize,
    pub(super) n_blocks: usize,
}

/// Sums of `R` rows and `PANELS` panels.
type Sums<T, const R: usize> = [[T; PANELS]; R];

/// The group's sums of `R` rows and `PANELS` panels, whose weights lie at `panels`.
///
/// # Safety
/// The rows have this group, and the panels are unpacked groups.
#[inline(always)]
unsafe fn wholes<S: Simd, H: Shape, const R: usize>(
    s: S,
    panels: [*const u8; PANELS],
    (rows, group_idx): (&[Row; R], usize),
    n_vectors: usize,
) -> Sums<S::Ints, R> {
    let mut wholes = [[s.ints(0); PANELS]; R];
    if H::IS_WIDE {
        for idx in 0..n_vectors {
            // SAFETY: the caller vouches for both.
            unsafe {
                let mut weights = [s.sixteen(0); PANELS];
                for panel in 0..PANELS {
                    weights[panel] = s.as_pairs(s.load_bytes_32(panels[panel].add(idx * 32)));
                }
                for row in 0..R {
                    let at = rows[row].bytes.add(group_idx * 2 * GROUP + 4 * idx);
                    let x = s.as_pairs(s.quad(at));
                    for panel in 0..PANELS {
                        let products = s.join_pairs(weights[panel], x);
                        wholes[row][panel] = s.add_ints(wholes[row][panel], products);
                    }
                }
            }
        }
        return wholes;
    }
    let n_offsets = H::SCALES.max(1);
    for part in 0..H::PARTS {
        let mut sums = [[s.sixteen(0); PANELS]; R];
        if H::HAS_OFFSET {
            for row in 0..R {
                // SAFETY: the row has as many offsets.
                let offset = unsafe { offset(s, &rows[row], group_idx * n_offsets + part) };
                sums[row] = [offset; PANELS];
            }
        }
        for idx in part * n_vectors..(part + 1) * n_vectors {
            // SAFETY: the caller vouches for both.
            unsafe {
                let mut weights = [s.as_bytes(s.sixteen(0)); PANELS];
                for panel in 0..PANELS {
                    weights[panel] = s.load_bytes_32(panels[panel].add(idx * 32));
                }
                for row in 0..R {
                    let x = s.quad(rows[row].bytes.add(group_idx * GROUP + 4 * idx));
                    for panel in 0..PANELS {
                        let products = s.pairs(weights[panel], x);
                        sums[row][panel] = s.add_pairs(sums[row][panel], products);
                    }
                }
            }
        }
        for panel in 0..PANELS {
            let scales = match H::SCALES {
                0 => s.sixteen(1),
                n => {
                    let at = panels[panel].wrapping_add((H::VECTORS + part % n) * 32);
                    // SAFETY: the scales follow the weights.
                    s.as_pairs(unsafe { s.load_bytes_32(at) })
                }
            };
            for row in 0..R {
                let products = s.join_pairs(sums[row][panel], scales);
                wholes[row][panel] = s.add_ints(wholes[row][panel], products);
            }
        }
    }
    wholes
}

/// `R` rows times the panels of a tile, added to `sums`, rows of which are `stride` apart.
///
/// # Safety
/// The rows and the tile have as many blocks, and there are sums for all.
#[inline(always)]
pub(super) unsafe fn some<S: Simd, H: Shape, const R: usize>(
    s: S,
    tile: &Tile,
    rows: &[Row; R],
    (sums, stride): (*mut f32, usize),
) {
    // A number that the compiler doesn't know: it would unroll the loop over vectors, add in another
    // order, and run out of registers, which costs a quarter of the time.
    let n_vectors = black_box(H::VECTORS / H::PARTS);
    let place = |row: usize, panel: usize| sums.wrapping_add(row * stride + panel * PANEL);
    let mut all = [[s.eight(0.0); PANELS]; R];
    for row in 0..R {
        for panel in 0..PANELS {
            // SAFETY: the caller vouches for the sums.
            all[row][panel] = unsafe { s.load_eight(place(row, panel)) };
        }
    }
    for block_idx in 0..tile.n_blocks {
        let blocks: [*const u8; PANELS] = std::array::from_fn(|panel| {
            tile.start.wrapping_add(panel * tile.stride + block_idx * H::BLOCK_BYTES)
        });
        let mut t = [[s.eight(0.0); PANELS]; R];
        for idx in 0..H::GROUPS {
            let of_row = block_idx * H::GROUPS + idx;
            let panels = blocks.map(|block| block.wrapping_add(idx * H::GROUP_BYTES));
            // SAFETY: the caller says that the rows and the tile have this group.
            unsafe {
                let wholes = wholes::<S, H, R>(s, panels, (rows, of_row), n_vectors);
                for row in 0..R {
                    let scale = s.eight(*rows[row].scales.add(of_row));
                    for panel in 0..PANELS {
                        let whole = s.float(wholes[row][panel]);
                        t[row][panel] = join::<S, H>(s, whole, scale, t[row][panel]);
                    }
                }
                if H::HAS_LEAST {
                    let at = (H::VECTORS + H::SCALES) * 32;
                    for panel in 0..PANELS {
                        let least = s.load_eight(panels[panel].add(at).cast());
                        for row in 0..R {
                            let total = s.eight(*rows[row].extras.totals().add(of_row));
                            all[row][panel] = s.fma_eight(least, total, all[row][panel]);
                        }
                    }
                }
            }
        }
        for panel in 0..PANELS {
            // SAFETY: the scale follows the groups.
            let d = unsafe { s.load_eight(blocks[panel].add(H::BLOCK_BYTES - 32).cast()) };
            for row in 0..R {
                all[row][panel] = s.fma_eight(t[row][panel], d, all[row][panel]);
            }
        }
    }
    for row in 0..R {
        for panel in 0..PANELS {
            // SAFETY: the caller vouches for the sums.
            unsafe { s.store_eight(place(row, panel), all[row][panel]) };
        }
    }
}
