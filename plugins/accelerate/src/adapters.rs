//! Low-rank adapters beside the weights: what they add.

use std::collections::HashMap;

use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Result, Tensor, bail};
use drivetrain_engine::AdapterId;
use drivetrain_execution::Runs;
use drivetrain_transformer::LowRank;

use crate::linear::product;
use crate::rows::{contiguous, contiguous_mut, has_kernels};

/// What adapters add to a matrix, or to a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Additions(HashMap<AdapterId, Vec<Addition>>);

/// What an adapter adds to some consecutive columns of a matrix's output.
#[derive(Clone, Debug)]
pub(crate) struct Addition {
    /// The first of the columns.
    first_column: usize,
    /// `[rank, n_in]`, shared between parts of one fused matrix.
    down: Tensor,
    /// `[n_out, rank]`.
    up: Tensor,
}

impl Addition {
    pub(crate) fn new(first_column: usize, part: &LowRank, device: &Device) -> Result<Self> {
        let (rank, n_in, n_out) = (part.rank(), part.n_in(), part.n_out());
        Ok(Self {
            first_column,
            down: Tensor::from_slice(part.down(), (rank, n_in), device)?,
            up: Tensor::from_slice(part.up(), (n_out, rank), device)?,
        })
    }
}

impl Additions {
    pub(crate) fn insert(&mut self, adapter: AdapterId, additions: Vec<Addition>) {
        if !additions.is_empty() {
            self.0.insert(adapter, additions);
        }
    }

    pub(crate) fn remove(&mut self, adapter: AdapterId) {
        self.0.remove(&adapter);
    }

    /// Adds what the adapters make of rows `x` to `y`, what the matrix makes of them.
    pub(crate) fn add_to(&self, mut y: Tensor, x: &Tensor, runs: &Runs) -> Result<Tensor> {
        if self.0.is_empty() {
            return Ok(y);
        }
        for run in runs.iter() {
            for addition in self.0.get(&run.adapter).into_iter().flatten() {
                let inner = product(&x.narrow(0, run.first, run.n)?, &addition.down)?;
                let outer = product(&inner, &addition.up)?;
                y = add_block(y, &outer, run.first, addition.first_column)?;
            }
        }
        Ok(y)
    }

    /// Adds what the adapters have for the rows `ids` of a table to `y`, what the table has for them.
    pub(crate) fn add_rows_to(&self, mut y: Tensor, ids: &Tensor, runs: &Runs) -> Result<Tensor> {
        if self.0.is_empty() {
            return Ok(y);
        }
        for run in runs.iter() {
            for addition in self.0.get(&run.adapter).into_iter().flatten() {
                let inner = addition.up.index_select(&ids.narrow(0, run.first, run.n)?, 0)?;
                let outer = inner.matmul(&addition.down)?;
                y = add_block(y, &outer, run.first, addition.first_column)?;
            }
        }
        Ok(y)
    }
}

/// `y` with `block` added from this row and column on, in place where the device allows.
fn add_block(y: Tensor, block: &Tensor, row: usize, column: usize) -> Result<Tensor> {
    if has_kernels(&y) {
        y.inplace_op2(&block.contiguous()?, &AddBlock { row, column })?;
        return Ok(y);
    }
    let (n, width) = block.dims2()?;
    let sum = (y.narrow(0, row, n)?.narrow(1, column, width)? + block)?;
    y.slice_assign(&[row..row + n, column..column + width], &sum)
}

struct AddBlock {
    row: usize,
    column: usize,
}

impl InplaceOp2 for AddBlock {
    fn name(&self) -> &'static str {
        "add-block"
    }

    fn cpu_fwd(&self, y: &mut CpuStorage, yl: &Layout, x: &CpuStorage, xl: &Layout) -> Result<()> {
        let ((_, width), (_, block_width)) = (yl.shape().dims2()?, xl.shape().dims2()?);
        let rows = contiguous_mut(y, yl)?.chunks_exact_mut(width).skip(self.row);
        for (row, block) in rows.zip(contiguous(x, xl)?.chunks_exact(block_width)) {
            let Some(part) = row.get_mut(self.column..self.column + block_width) else {
                bail!("a block beyond its matrix");
            };
            part.iter_mut().zip(block).for_each(|(y, x)| *y += x);
        }
        Ok(())
    }
}
