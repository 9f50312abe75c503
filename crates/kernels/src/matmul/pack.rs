//! Weights into panels, at load; activations into blocks, for each product.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::drive::SHIFT;
use super::{Geometry, Layout, Matrix, Precision, Source};
use crate::pool::{Parts, Pool, part};

/// Where the rows of a panel come from.
struct Rows<'a> {
    sources: &'a [Source<'a>],
    layout: Layout,
    n_in: usize,
}

impl Rows<'_> {
    /// Column `lane` of panel `panel_idx` as f32, or false where there is none.
    fn decode(&self, (panel_idx, lane, width): (usize, usize, usize), row: &mut [f32]) -> bool {
        let mut at = match self.layout {
            Layout::Plain => panel_idx * width + lane,
            Layout::Gated => panel_idx / 2 * width + lane,
        };
        let sources = match self.layout {
            Layout::Plain => self.sources,
            Layout::Gated => &self.sources[panel_idx % 2..=panel_idx % 2],
        };
        for source in sources {
            let n_rows = source.len() / self.n_in;
            if at < n_rows {
                let range = at * self.n_in..(at + 1) * self.n_in;
                match source {
                    Source::F32(all) => row.copy_from_slice(&all[range]),
                    Source::F16(all) => all[range].convert_to_f32_slice(row),
                    Source::Bf16(all) => all[range].convert_to_f32_slice(row),
                }
                return true;
            }
            at -= n_rows;
        }
        false
    }
}

/// Fills an empty matrix; columns beyond the last stay zero.
pub(super) fn fill(matrix: &mut Matrix, pool: &Pool, sources: &[Source<'_>]) {
    let rows = Rows { sources, layout: matrix.layout, n_in: matrix.n_in };
    let geometry = matrix.geometry;
    let width = geometry.width;
    let precision = matrix.precision;
    let n_panels = matrix.n_out.div_ceil(width) * matrix.layout.n_panels();
    let panel_bytes = matrix.panel_bytes();
    // SAFETY: the buffer is that long, was zeroed, and is borrowed mutably.
    let bytes = unsafe {
        std::slice::from_raw_parts_mut(matrix.panels.as_mut_ptr(), n_panels * panel_bytes)
    };
    let bytes = Parts::new(bytes);
    let scales = Parts::new(&mut matrix.scales);
    pool.run(|thread_idx, n_threads| {
        let mut row = vec![0.0_f32; rows.n_in];
        for panel_idx in part(n_panels, 1, thread_idx, n_threads) {
            // SAFETY: each panel is one thread's.
            let panel =
                unsafe { bytes.take(panel_idx * panel_bytes..(panel_idx + 1) * panel_bytes) };
            for lane in 0..width {
                if !rows.decode((panel_idx, lane, width), &mut row) {
                    continue;
                }
                match precision {
                    Precision::F32 => scatter(panel, (width, lane), &row, f32::to_le_bytes),
                    Precision::F16 => {
                        scatter(panel, (width, lane), &row, |x| f16::from_f32(x).to_le_bytes());
                    }
                    Precision::Bf16 => {
                        scatter(panel, (width, lane), &row, |x| bf16::from_f32(x).to_le_bytes());
                    }
                    Precision::Int8 | Precision::Int8Weights => {
                        let column = panel_idx * width + lane;
                        // SAFETY: each column belongs to one panel.
                        let scale = unsafe { scales.take(column..column + 1) };
                        scale[0] = bytes_of_row(panel, lane, geometry, &row);
                    }
                }
            }
        }
    });
}

/// Writes a column of floats into its panel.
fn scatter<const N: usize>(
    panel: &mut [u8],
    (width, lane): (usize, usize),
    row: &[f32],
    encode: impl Fn(f32) -> [u8; N],
) {
    for (step, x) in panel.chunks_exact_mut(width * N).zip(row) {
        step[lane * N..(lane + 1) * N].copy_from_slice(&encode(*x));
    }
}

/// Writes a column of bytes into its panel, and returns its scale.
fn bytes_of_row(panel: &mut [u8], lane: usize, geometry: Geometry, row: &[f32]) -> f32 {
    let group = geometry.group;
    let largest = row.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let scale = largest / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for (step, values) in panel.chunks_exact_mut(geometry.width * group).zip(row.chunks(group)) {
        for (to, x) in step[lane * group..].iter_mut().zip(values) {
            *to = (x * inverse + SHIFT).to_bits().wrapping_add(u32::from(geometry.offset)) as u8;
        }
    }
    scale
}
