//! Scores of contents with embedded distances: DeBERTa's disentangled attention.

use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Result, Tensor};
use drivetrain_transformer::Disentangled;

use crate::rows::{contiguous, contiguous_mut, has_kernels};

/// The table of distances as the keys and queries of one attention.
#[derive(Clone, Debug)]
pub(crate) struct Distances {
    pub(crate) spec: Disentangled,
    /// `[n_heads, head_dim, n_rows]`, which queries meet.
    pub(crate) keys: Option<Tensor>,
    /// `[n_heads, head_dim, n_rows]`, which keys meet.
    pub(crate) queries: Option<Tensor>,
}

impl Distances {
    /// The same on `device`.
    pub(crate) fn on(&self, device: &Device) -> Result<Self> {
        let on = |table: &Option<Tensor>| table.as_ref().map(|t| t.to_device(device)).transpose();
        Ok(Self { spec: self.spec, keys: on(&self.keys)?, queries: on(&self.queries)? })
    }

    /// Adds to `scores` `[n_heads, n, n_keys]` what `q` `[n_heads, n, head_dim]`, the first of them
    /// at `position`, and `keys` `[n_heads, n_keys, head_dim]` score with their distances.
    pub(crate) fn add(
        &self,
        scores: Tensor,
        q: &Tensor,
        keys: &Tensor,
        position: usize,
    ) -> Result<Tensor> {
        let (n, n_keys) = (q.dim(1)?, keys.dim(1)?);
        // The row of the table for each distance that occurs, the first query and last key first.
        let distance = |idx: usize| position as i64 + idx as i64 - (n_keys as i64 - 1);
        let rows: Vec<u32> = (0..n + n_keys).map(|idx| self.spec.row(distance(idx))).collect();
        let mut scores = scores;
        if let Some(table) = &self.keys {
            let by_query = q.matmul(table)?;
            scores = add(scores, &by_query, AddRows { rows: &rows, by_key: false })?;
        }
        if let Some(table) = &self.queries {
            let by_key = keys.contiguous()?.matmul(table)?;
            scores = add(scores, &by_key, AddRows { rows: &rows, by_key: true })?;
        }
        Ok(scores)
    }
}

fn add(scores: Tensor, products: &Tensor, op: AddRows<'_>) -> Result<Tensor> {
    if has_kernels(&scores) {
        scores.inplace_op2(products, &op)?;
        return Ok(scores);
    }
    let (n_heads, n, n_keys) = scores.dims3()?;
    let row = |query: usize, key: usize| op.row(query, key, n_keys);
    let picked = if op.by_key {
        let rows = (0..n_keys).flat_map(|key| (0..n).map(move |query| row(query, key)));
        let rows = Tensor::from_iter(rows, scores.device())?.reshape((1, n_keys, n))?;
        let rows = rows.broadcast_as((n_heads, n_keys, n))?.contiguous()?;
        products.gather(&rows, 2)?.transpose(1, 2)?
    } else {
        let rows = (0..n).flat_map(|query| (0..n_keys).map(move |key| row(query, key)));
        let rows = Tensor::from_iter(rows, scores.device())?.reshape((1, n, n_keys))?;
        let rows = rows.broadcast_as((n_heads, n, n_keys))?.contiguous()?;
        products.gather(&rows, 2)?
    };
    scores + picked
}

/// Adds to each score the product of its query (or its key) with the row of their distance.
struct AddRows<'a> {
    /// By `query + n_keys - 1 - key`.
    rows: &'a [u32],
    by_key: bool,
}

impl AddRows<'_> {
    #[inline]
    fn row(&self, query: usize, key: usize, n_keys: usize) -> u32 {
        self.rows.get(query + n_keys - 1 - key).copied().unwrap_or(0)
    }
}

impl InplaceOp2 for AddRows<'_> {
    fn name(&self) -> &'static str {
        "add-distances"
    }

    fn cpu_fwd(
        &self,
        scores: &mut CpuStorage,
        scores_layout: &Layout,
        products: &CpuStorage,
        products_layout: &Layout,
    ) -> Result<()> {
        let (_, n, n_keys) = scores_layout.shape().dims3()?;
        let (_, n_products, width) = products_layout.shape().dims3()?;
        let products = contiguous(products, products_layout)?.chunks_exact(n_products * width);
        let heads = contiguous_mut(scores, scores_layout)?.chunks_exact_mut(n * n_keys);
        for (scores, products) in heads.zip(products) {
            for (query, row) in scores.chunks_exact_mut(n_keys).enumerate() {
                for (key, score) in row.iter_mut().enumerate() {
                    let of = if self.by_key { key } else { query };
                    *score += products[of * width + self.row(query, key, n_keys) as usize];
                }
            }
        }
        Ok(())
    }
}
