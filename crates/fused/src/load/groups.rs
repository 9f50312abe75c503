//! Matrices that GPTQ or AWQ packed, to blocks that are equal to them.

use drivetrain_kernels::{BlockFormat, BlockMatrix};
use drivetrain_transformer::{CanonicalTensor, CanonicalWeights};
use half::f16;

use super::{Cut, Loaded, Loader};
use crate::options::WeightForm;
use crate::step::compute;

/// Elements of a block.
const LEN: usize = 32;

/// The blocks that hold a packed matrix as it is: 32 neighbouring inputs share a scale that f16 holds.
pub(crate) fn group_format(tensor: &CanonicalTensor<'_>, form: WeightForm) -> Option<BlockFormat> {
    let groups = tensor.source().groups().filter(|_| form == WeightForm::AsStored)?;
    why_not(tensor).is_none().then_some(match groups.bits() {
        4 => BlockFormat::Group4,
        _ => BlockFormat::Group8,
    })
}

/// Why no blocks hold a packed matrix as it is.
fn why_not(tensor: &CanonicalTensor<'_>) -> Option<&'static str> {
    let groups = tensor.source().groups()?;
    let n_in = tensor.shape().last().copied().unwrap_or(0);
    match groups.group_len() {
        None => Some("its inputs are grouped in another order (desc_act)"),
        Some(len) if !n_in.is_multiple_of(LEN) || !(len.is_multiple_of(LEN) || len >= n_in) => {
            Some("its groups are not whole blocks of 32")
        }
        Some(_) if !groups.has_f16_scales() => Some("f16 does not hold its scales"),
        Some(_) => None,
    }
}

/// What the log should say of packed matrices that become f32, if some do.
pub(crate) fn note_of_groups(weights: &CanonicalWeights<'_>, form: WeightForm) -> Option<String> {
    if form != WeightForm::AsStored {
        return None;
    }
    let packed = weights.distinct().filter(|tensor| tensor.source().groups().is_some());
    let unpacked: Vec<_> = packed.filter_map(|t| Some((t.name(), why_not(t)?))).collect();
    let (name, why) = unpacked.first()?;
    Some(format!(
        "{} packed matrices are held in f32, eight or four times as large: of {name}, {why}; \
         option.dtype=fp16 halves them",
        unpacked.len()
    ))
}

impl Loader<'_, '_> {
    /// A packed matrix, or the part that a rank has of it, in blocks.
    pub(super) fn groups<'b>(
        &self,
        name: &str,
        format: BlockFormat,
        cut: &Cut,
    ) -> Loaded<Option<BlockMatrix<'b>>> {
        let tensor = self.get(name)?;
        let Some(groups) = tensor.source().groups() else { return Ok(None) };
        let (rows, columns) = cut.to_blocks(LEN).of(tensor.shape());
        let stored = tensor.rows();
        let group = |row: usize, column: usize, numbers: &mut [u8; LEN]| {
            let (row, first) = (stored.stored_row(rows.start + row), columns.start + column);
            for (number, column) in numbers.iter_mut().zip(first..) {
                *number = groups.number(row, column);
            }
            (f16::from_f32(groups.scale(row, first)), groups.zero(row, first))
        };
        let shape = (rows.len(), columns.len());
        let matrix =
            BlockMatrix::of_groups(format, self.cpu.pool, shape, group).map_err(compute)?;
        self.count(tensor, cut)?;
        self.release(&[name])?;
        Ok(Some(matrix))
    }
}
