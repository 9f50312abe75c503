//! Weights that an earlier start packed, or that the next one is to find so.

use drivetrain_kernels::{BlockFormat, BlockMatrix, Matrix, Precision};

use super::{Cut, Loaded, Loader};
use crate::step::compute;

/// Which weights a product has.
pub(super) struct Kept<'k> {
    /// The tensors, one below the other.
    pub(super) names: &'k [String],
    /// What is loaded of each.
    pub(super) cuts: &'k [Cut],
    /// Rows and columns: `[n_out, n_in]`.
    pub(super) shape: (usize, usize),
}

impl Kept<'_> {
    /// What it is called in the file.
    fn name(&self, form: &str) -> String {
        format!("{} {:?} {:?} {form}", self.names.join(" "), self.cuts, self.shape)
    }
}

impl Loader<'_, '_> {
    /// A packed matrix that an earlier start has left, or the one that `make` packs, which is left for the
    /// next. With a gate the shape is that of each of the two.
    pub(super) fn kept_matrix(
        &self,
        kept: &Kept<'_>,
        (precision, is_gated): (Precision, bool),
        make: impl FnOnce() -> Loaded<Matrix>,
    ) -> Loaded<Matrix> {
        let Some(packed) = self.packed else { return make() };
        let name = kept.name(&format!("{precision:?} {is_gated}"));
        let of_scales = format!("{name} scales");
        let form = (precision, is_gated);
        let mut matrix = Matrix::zeroed(self.cpu.isa, kept.shape, form).map_err(compute)?;
        let (panels, scales) = matrix.parts_mut();
        let scales: &mut [u8] = bytemuck::cast_slice_mut(scales);
        if packed.has(&name, panels.len()) && packed.has(&of_scales, scales.len()) {
            let pool = self.cpu.pool;
            if packed.read(&name, pool, panels) && packed.read(&of_scales, pool, scales) {
                return self.counted(kept).map(|()| matrix);
            }
        }
        // Before another takes as much memory.
        drop(matrix);
        let matrix = make()?;
        let (panels, scales) = matrix.parts();
        packed.write(&name, panels);
        packed.write(&of_scales, bytemuck::cast_slice(scales));
        Ok(matrix)
    }

    /// The same of a matrix in blocks.
    pub(super) fn kept_blocks(
        &self,
        kept: &Kept<'_>,
        format: BlockFormat,
        make: impl FnOnce() -> Loaded<BlockMatrix<'static>>,
    ) -> Loaded<BlockMatrix<'static>> {
        let Some(packed) = self.packed else { return make() };
        let name = kept.name(&format!("{format:?}"));
        let (n_out, n_in) = kept.shape;
        let n_bytes = n_out * (n_in / format.block_len()) * format.block_bytes();
        if packed.has(&name, n_bytes) {
            let mut bytes = vec![0; n_bytes];
            if packed.read(&name, self.cpu.pool, &mut bytes) {
                self.counted(kept)?;
                return BlockMatrix::of_bytes(format, bytes, n_in).map_err(compute);
            }
        }
        let matrix = make()?;
        packed.write(&name, matrix.bytes());
        Ok(matrix)
    }

    /// Counts what is loaded.
    fn counted(&self, kept: &Kept<'_>) -> Loaded<()> {
        let mut parts = kept.names.iter().zip(kept.cuts);
        parts.try_for_each(|(name, cut)| self.count(self.get(name)?, cut))
    }
}
