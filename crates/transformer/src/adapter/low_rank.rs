//! A matrix of low rank, as its two factors.

use std::sync::Arc;

/// `up * down`, added to a matrix `[n_out, n_in]`. The adapter's scale is in `up` already.
#[derive(Clone, Debug)]
pub struct LowRank {
    down: Arc<[f32]>,
    up: Vec<f32>,
    rank: usize,
}

impl LowRank {
    /// Of `down` `[rank, n_in]` and `up` `[n_out, rank]`.
    pub(super) fn new(down: Arc<[f32]>, up: Vec<f32>, rank: usize) -> Self {
        Self { down, up, rank }
    }

    /// `[rank, n_in]`, row-major. Parts of one fused matrix have the same one.
    pub fn down(&self) -> &Arc<[f32]> {
        &self.down
    }

    /// `[n_out, rank]`, row-major.
    pub fn up(&self) -> &[f32] {
        &self.up
    }

    /// Columns of one factor and rows of the other.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Columns of the matrix.
    pub fn n_in(&self) -> usize {
        self.down.len() / self.rank
    }

    /// Rows of the matrix.
    pub fn n_out(&self) -> usize {
        self.up.len() / self.rank
    }

    /// Bytes of both factors.
    pub fn bytes(&self) -> u64 {
        4 * (self.down.len() + self.up.len()) as u64
    }

    /// Adds the product to `data` `[n_out, n_in]`.
    pub(super) fn add_to(&self, data: &mut [f32]) {
        let n_in = self.n_in();
        for (row, factors) in data.chunks_exact_mut(n_in).zip(self.up.chunks_exact(self.rank)) {
            for (factor, down) in factors.iter().zip(self.down.chunks_exact(n_in)) {
                row.iter_mut().zip(down).for_each(|(x, d)| *x += factor * d);
            }
        }
    }
}

/// The transpose of `data` `[rows, cols]`.
pub(super) fn transposed(data: &[f32], (rows, cols): (usize, usize)) -> Vec<f32> {
    (0..cols).flat_map(|col| (0..rows).map(move |row| data[row * cols + col])).collect()
}
