//! Tokens to hidden states.

use drivetrain_engine::{Batch, EngineError};
use drivetrain_execution::{Planned, model_error};
use drivetrain_transformer::CanonicalTensor;

use crate::adapters::Additions;
use crate::arena::Arena;
use crate::linear::{After, Linear};
use crate::norm::NormLayer;
use crate::step::{Step, compute};

/// Rows of a table, read where they lie in the file.
#[derive(Debug)]
pub(crate) struct Table<'a> {
    pub(crate) values: TableValues<'a>,
    /// Columns.
    pub(crate) width: usize,
}

/// Where a table's values are.
#[derive(Debug)]
pub(crate) enum TableValues<'a> {
    /// In the mapped file, row by row.
    Mapped(CanonicalTensor<'a>),
    /// In memory, `[n_rows, width]`.
    Own(Vec<f32>),
}

impl Table<'_> {
    /// Writes row `idx` to `out` `[width]`.
    fn read(&self, idx: u32, out: &mut [f32]) -> Result<(), EngineError> {
        let at = idx as usize * self.width;
        match &self.values {
            TableValues::Mapped(tensor) => {
                tensor.source().read_f32_at(at, out).map_err(|error| model_error(&error))
            }
            TableValues::Own(values) => match values.get(at..at + self.width) {
                Some(row) => {
                    out.copy_from_slice(row);
                    Ok(())
                }
                None => Err(EngineError::bad_input(format!("there is no row {idx} in the table"))),
            },
        }
    }
}

/// Positions that are added to tokens: rows of a table.
#[derive(Debug)]
pub(crate) struct PositionTable<'a> {
    pub(crate) table: Table<'a>,
    /// The row of position 0.
    pub(crate) offset: u32,
    /// A token without a position, which has the row of its own number.
    pub(crate) skipped: Option<u32>,
}

/// Tables and norm ahead of the first layer.
#[derive(Debug)]
pub(crate) struct EmbeddingWeights<'a> {
    /// `[vocab, width]`.
    pub(crate) tokens: Table<'a>,
    /// What adapters add to it.
    pub(crate) additions: Additions,
    /// A matrix that follows the table.
    pub(crate) projection: Option<Linear<'a>>,
    /// Factor on what comes of a token.
    pub(crate) scale: f32,
    pub(crate) positions: Option<PositionTable<'a>>,
    /// `[n_token_types, dim]`.
    pub(crate) token_types: Option<Table<'a>>,
    pub(crate) norm: Option<NormLayer>,
    /// Columns of the hidden states.
    pub(crate) dim: usize,
}

impl EmbeddingWeights<'_> {
    /// Fills `arena.x` `[n_rows, dim]` with the batch's tokens.
    pub(crate) fn forward(
        &self,
        batch: &Batch<'_>,
        step: &Step<'_>,
        planned: &[Planned],
        arena: &mut Arena,
    ) -> Result<(), EngineError> {
        let (n_rows, dim, width) = (step.n_rows, self.dim, self.tokens.width);
        let Arena { x, y, embedded, tokens, workspace, .. } = arena;
        tokens.clear();
        batch.segments().for_each(|segment| tokens.extend_from_slice(segment.tokens));
        let x = &mut x[..n_rows * dim];
        let y = &mut y[..n_rows * dim];
        let rows = match &self.projection {
            Some(_) => &mut embedded[..n_rows * width],
            None => &mut *x,
        };
        for (token, row) in tokens.iter().zip(rows.chunks_exact_mut(width)) {
            self.tokens.read(*token, row)?;
        }
        if self.additions.concern(step.runs) {
            let scratch = (&mut workspace.scratch, &mut workspace.adapters);
            let rows = (&tokens[..], rows, width);
            self.additions
                .add_rows(step.cpu, rows, step.runs, scratch.0, scratch.1)
                .map_err(compute)?;
        }
        if let Some(projection) = &self.projection {
            let with = (step.cpu, step.runs);
            let embedded = &embedded[..n_rows * width];
            projection.forward(with, embedded, x, After::NOTHING, workspace).map_err(compute)?;
        }
        if self.scale != 1.0 {
            x.iter_mut().for_each(|x| *x *= self.scale);
        }
        if let Some(table) = &self.token_types {
            let types = batch.segments().flat_map(|segment| {
                let of = move |idx| segment.token_types.get(idx).copied().unwrap_or(0);
                (0..segment.tokens.len()).map(of)
            });
            add_rows(table, types, x, &mut y[..dim])?;
        }
        if let Some(positions) = &self.positions {
            let of_rows = batch.segments().zip(planned).flat_map(|(segment, planned)| {
                positions.rows(segment.tokens, planned.position as u32)
            });
            add_rows(&positions.table, of_rows, x, &mut y[..dim])?;
        }
        if let Some(norm) = &self.norm {
            y.copy_from_slice(x);
            norm.apply(step.cpu, y, x).map_err(compute)?;
        }
        Ok(())
    }
}

/// Adds rows of a table to those of `x`; `row` has room for one.
fn add_rows(
    table: &Table<'_>,
    ids: impl Iterator<Item = u32>,
    x: &mut [f32],
    row: &mut [f32],
) -> Result<(), EngineError> {
    for (id, x) in ids.zip(x.chunks_exact_mut(row.len())) {
        table.read(id, row)?;
        x.iter_mut().zip(&*row).for_each(|(x, add)| *x += add);
    }
    Ok(())
}

impl PositionTable<'_> {
    /// The table's rows for tokens from `first` on.
    fn rows<'t>(&self, tokens: &'t [u32], first: u32) -> impl Iterator<Item = u32> + use<'t> {
        let (skipped, mut next) = (self.skipped, first + self.offset);
        tokens.iter().map(move |token| {
            if Some(*token) == skipped {
                return *token;
            }
            next += 1;
            next - 1
        })
    }
}
