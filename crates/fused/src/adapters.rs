//! Low-rank adapters beside the weights: what they add.

use std::collections::HashMap;

use drivetrain_engine::{AdapterId, EngineError};
use drivetrain_execution::Runs;
use drivetrain_kernels::{Cpu, Epilogue, Floats, KernelError, Matrix, Precision, Scratch, Source};
use drivetrain_transformer::LowRank;

use crate::linear::Part;
use crate::step::compute;

/// What adapters add to a matrix, or to a table.
#[derive(Debug, Default)]
pub(crate) struct Additions(HashMap<AdapterId, Vec<Addition>>);

/// What an adapter adds to some consecutive columns of a matrix's output.
#[derive(Debug)]
pub(crate) struct Addition {
    /// The first of the columns.
    first_column: usize,
    /// `[rank, n_in]`.
    down: Matrix,
    /// `[n_out, rank]`.
    up: Matrix,
    /// `[n_out, rank]` as rows, for tables.
    rows: Vec<f32>,
}

/// Memory for what adapters compute.
#[derive(Debug, Default)]
pub(crate) struct AdapterRows {
    /// `[n_rows, rank]`.
    inner: Floats,
    /// `[n_rows, n_out]` of one part.
    outer: Floats,
    /// `[n_rows, n_out]` of all parts.
    pub(crate) sum: Floats,
}

impl Addition {
    /// Of `low_rank`, the share that fits `part` of the matrix.
    pub(crate) fn new(
        cpu: Cpu<'_>,
        first_column: usize,
        low_rank: &LowRank,
        part: &Part,
    ) -> Result<Self, EngineError> {
        let pack = |values: &[f32], n_in| {
            Matrix::pack(cpu, &[Source::F32(values)], n_in, Precision::F32).map_err(compute)
        };
        let (rank, n_in) = (low_rank.rank(), low_rank.n_in());
        let up = &low_rank.up()[part.rows.start * rank..part.rows.end * rank];
        let rows = low_rank.down().chunks_exact(n_in);
        let down: Vec<f32> = rows.flat_map(|row| &row[part.columns.clone()]).copied().collect();
        Ok(Self {
            first_column,
            down: pack(&down, part.columns.len())?,
            up: pack(up, rank)?,
            rows: up.to_vec(),
        })
    }

    /// Scratch memory that it needs for `n_rows`.
    pub(crate) fn scratch_bytes(&self, n_rows: usize, n_threads: usize) -> usize {
        let of = |matrix: &Matrix| matrix.scratch_bytes(n_rows, n_threads);
        of(&self.down).max(of(&self.up))
    }
}

impl AdapterRows {
    /// Makes room for adapters of this rank, for sums of `width` columns.
    pub(crate) fn reserve(&mut self, n_rows: usize, rank: usize, width: usize) {
        let grow = |values: &mut Floats, n: usize| {
            if values.len() < n {
                *values = Floats::zeroed(n);
            }
        };
        grow(&mut self.inner, n_rows * rank);
        grow(&mut self.outer, n_rows * width);
        grow(&mut self.sum, n_rows * width);
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

    /// Whether one of the runs has something to add.
    pub(crate) fn concern(&self, runs: &Runs) -> bool {
        !self.0.is_empty() && runs.iter().any(|run| self.0.contains_key(&run.adapter))
    }

    /// Fills `rows.sum` `[n_rows, width]` with what the adapters make of rows `x` `[n_rows, n_in]`.
    pub(crate) fn compute(
        &self,
        cpu: Cpu<'_>,
        (x, n_in): (&[f32], usize),
        width: usize,
        runs: &Runs,
        (rows, scratch): (&mut AdapterRows, &mut Scratch),
    ) -> Result<(), KernelError> {
        let none = Epilogue::default();
        rows.sum[..x.len() / n_in * width].fill(0.0);
        for run in runs.iter() {
            for addition in self.0.get(&run.adapter).into_iter().flatten() {
                let x = &x[run.first * n_in..(run.first + run.n) * n_in];
                let (rank, n_out) = (addition.down.n_out(), addition.up.n_out());
                let inner = &mut rows.inner[..run.n * rank];
                addition.down.multiply(cpu.pool, x, inner, &none, scratch)?;
                let outer = &mut rows.outer[..run.n * n_out];
                addition.up.multiply(cpu.pool, inner, outer, &none, scratch)?;
                let sums = rows.sum.chunks_exact_mut(width).skip(run.first);
                for (sum, outer) in sums.zip(outer.chunks_exact(n_out)) {
                    let sum = &mut sum[addition.first_column..addition.first_column + n_out];
                    sum.iter_mut().zip(outer).for_each(|(sum, x)| *sum += x);
                }
            }
        }
        Ok(())
    }

    /// Adds what the adapters have for the rows `ids` of a table to `y` `[n_rows, width]`.
    pub(crate) fn add_rows(
        &self,
        cpu: Cpu<'_>,
        (ids, y, width): (&[u32], &mut [f32], usize),
        runs: &Runs,
        scratch: &mut Scratch,
        rows: &mut AdapterRows,
    ) -> Result<(), KernelError> {
        let none = Epilogue::default();
        for run in runs.iter() {
            for addition in self.0.get(&run.adapter).into_iter().flatten() {
                // The table is `up down`, with `down` `[rank, width]` turned round at load.
                let rank = addition.down.n_in();
                let ids = &ids[run.first..run.first + run.n];
                for (id, inner) in ids.iter().zip(rows.inner.chunks_exact_mut(rank)) {
                    let at = *id as usize * rank;
                    inner.copy_from_slice(&addition.rows[at..at + rank]);
                }
                let inner = &rows.inner[..run.n * rank];
                let outer = &mut rows.outer[..run.n * width];
                addition.down.multiply(cpu.pool, inner, outer, &none, scratch)?;
                let y = &mut y[run.first * width..(run.first + run.n) * width];
                y.iter_mut().zip(&*outer).for_each(|(y, x)| *y += x);
            }
        }
        Ok(())
    }

    /// What an adapter adds to a token table: rows of `up`, times `down` `[rank, width]`.
    pub(crate) fn of_table(cpu: Cpu<'_>, part: &LowRank) -> Result<Addition, EngineError> {
        let (rank, width) = (part.rank(), part.n_in());
        let mut turned = vec![0.0; rank * width];
        for (inner, row) in part.down().chunks_exact(width).enumerate() {
            for (column, value) in row.iter().enumerate() {
                turned[column * rank + inner] = *value;
            }
        }
        let down = Matrix::pack(cpu, &[Source::F32(&turned)], rank, Precision::F32);
        let up = Matrix::pack(cpu, &[Source::F32(&part.up()[..rank])], rank, Precision::F32);
        Ok(Addition {
            first_column: 0,
            down: down.map_err(compute)?,
            up: up.map_err(compute)?,
            rows: part.up().to_vec(),
        })
    }
}
