//! Scores of contents with embedded distances: DeBERTa's disentangled attention.

use drivetrain_kernels::{Epilogue, Floats, Heads, KernelError, Matrix, Scratch};
use drivetrain_transformer::Disentangled;

use crate::step::Step;

/// The table of distances as the keys and queries of one attention, a matrix `[n_table, head_dim]` for
/// each head.
#[derive(Debug)]
pub(crate) struct Distances {
    /// The row of the table for each distance, from `-reach` to `reach`.
    rows: Vec<u32>,
    reach: usize,
    /// What queries meet.
    keys: Option<Vec<Matrix>>,
    /// What keys meet.
    queries: Option<Vec<Matrix>>,
}

/// Memory for a batch's scores with distances.
#[derive(Debug, Default)]
pub(crate) struct DistanceRows {
    /// `[n_rows, head_dim]`.
    head: Floats,
    /// `[n_rows, n_table]`.
    products: Floats,
    /// `[n_rows, n_heads, n_keys]`.
    pub(crate) bias: Floats,
}

impl DistanceRows {
    pub(crate) fn new(n_rows: usize, head_dim: usize, n_table: usize, n_scores: usize) -> Self {
        Self {
            head: Floats::zeroed(n_rows * head_dim),
            products: Floats::zeroed(n_rows * n_table),
            bias: Floats::zeroed(n_rows * n_scores),
        }
    }
}

impl Distances {
    pub(crate) fn new(
        spec: Disentangled,
        max_positions: u32,
        keys: Option<Vec<Matrix>>,
        queries: Option<Vec<Matrix>>,
    ) -> Self {
        let reach = i64::from(max_positions);
        let rows = (-reach..=reach).map(|distance| spec.row(distance)).collect();
        Self { rows, reach: reach as usize, keys, queries }
    }

    /// Scratch memory that its products need.
    pub(crate) fn scratch_bytes(&self, n_rows: usize, n_threads: usize) -> usize {
        let all = self.keys.iter().chain(&self.queries).flatten();
        all.map(|matrix| matrix.scratch_bytes(n_rows, n_threads)).max().unwrap_or(0)
    }

    /// Fills `to`'s bias with what queries and keys of each sequence score with their distances;
    /// returns the keys of a row. Every segment is a whole input.
    pub(crate) fn fill(
        &self,
        step: &Step<'_>,
        (queries, keys): (Heads<'_>, Heads<'_>),
        scale: f32,
        (to, scratch): (&mut DistanceRows, &mut Scratch),
    ) -> Result<usize, KernelError> {
        let n_keys = step.segments.iter().map(|segment| segment.n_keys).max().unwrap_or(0);
        let n_heads = self.keys.as_ref().or(self.queries.as_ref()).map_or(0, Vec::len);
        to.bias[..step.n_rows * n_heads * n_keys].fill(0.0);
        for (tables, heads, by_key) in [(&self.keys, queries, false), (&self.queries, keys, true)] {
            for (head_idx, table) in tables.iter().flatten().enumerate() {
                let head_dim = table.n_in();
                let rows = to.head.chunks_exact_mut(head_dim).zip(heads.rows.chunks(heads.stride));
                for (to, row) in rows {
                    let at = heads.first_column + head_idx * head_dim;
                    to.copy_from_slice(&row[at..at + head_dim]);
                }
                let n_table = table.n_out();
                let products = &mut to.products[..step.n_rows * n_table];
                let head = &to.head[..step.n_rows * head_dim];
                table.multiply(step.cpu.pool, head, products, &Epilogue::default(), scratch)?;
                for segment in step.segments {
                    let row_of = |idx: usize| segment.first_row + idx;
                    for query in 0..segment.n_rows {
                        let at = (row_of(query) * n_heads + head_idx) * n_keys;
                        let scores = to.bias[at..at + segment.n_keys].iter_mut().enumerate();
                        for (key, score) in scores {
                            let of = row_of(if by_key { key } else { query });
                            let table_row = self.rows[self.reach + query - key] as usize;
                            *score += scale * products[of * n_table + table_row];
                        }
                    }
                }
            }
        }
        Ok(n_keys)
    }
}
