//! Scores to probabilities: scale, cap, mask and softmax in one pass over each row.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::position_bias::PositionBias;
use super::{ARCH, LANES, PARALLEL_WORK, exp, sum};

/// What rows of scores mean: row `r` belongs to the query at position
/// `first_position + r % n_queries`, column `c` to the key at position `first_key + c`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scores<'a> {
    /// Columns.
    pub(crate) n_keys: usize,
    /// Position of column 0.
    pub(crate) first_key: usize,
    /// Queries of a head.
    pub(crate) n_queries: usize,
    /// Position of the first query.
    pub(crate) first_position: usize,
    /// Whether keys after the query are hidden.
    pub(crate) causal: bool,
    /// Keys `window` or more before the query are hidden.
    pub(crate) window: Option<usize>,
    /// Factor on a score.
    pub(crate) scale: f32,
    /// `cap * tanh(score / cap)` after the factor.
    pub(crate) soft_cap: Option<f32>,
    /// What positions add after that.
    pub(crate) bias: &'a PositionBias,
}

impl Scores<'_> {
    /// The columns that row `row` sees.
    pub(crate) fn visible(&self, row: usize) -> std::ops::Range<usize> {
        let position = self.first_position + row % self.n_queries.max(1);
        let end = if self.causal { position + 1 } else { usize::MAX };
        let start = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let column = |key: usize| key.saturating_sub(self.first_key).min(self.n_keys);
        column(start)..column(end).max(column(start))
    }
}

/// Turns each row of `scores` `[rows, n_keys]` into probabilities.
pub(crate) fn masked_softmax(scores: &mut [f32], meaning: &Scores<'_>) {
    let n = meaning.n_keys;
    if n == 0 {
        return;
    }
    let row = |(idx, row): (usize, &mut [f32])| {
        let visible = meaning.visible(idx);
        let Some(seen) = row.get_mut(visible.clone()) else { return };
        ARCH.dispatch(Row { x: seen, row: idx, meaning });
        row[..visible.start].fill(0.0);
        row[visible.end..].fill(0.0);
    };
    if scores.len() < PARALLEL_WORK {
        scores.chunks_exact_mut(n).enumerate().for_each(row);
    } else {
        scores.par_chunks_exact_mut(n).enumerate().for_each(row);
    }
}

/// One row's visible columns.
struct Row<'a> {
    x: &'a mut [f32],
    row: usize,
    meaning: &'a Scores<'a>,
}

impl WithSimd for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        softmax(self.x, self.meaning, self.row / self.meaning.n_queries.max(1), self.row);
    }
}

/// `softmax(cap(scale * x) + bias)` in place; `x` is what row `row` sees, of query head `head`.
#[inline(always)]
pub(super) fn softmax(x: &mut [f32], meaning: &Scores<'_>, head: usize, row: usize) {
    for x in x.iter_mut() {
        *x *= meaning.scale;
    }
    if let Some(cap) = meaning.soft_cap {
        for x in x.iter_mut() {
            *x = cap * (*x / cap).tanh();
        }
    }
    let first_key = meaning.first_key + meaning.visible(row).start;
    meaning.bias.add(x, head, meaning.first_position + row % meaning.n_queries.max(1), first_key);
    let max = max(x);
    for x in x.iter_mut() {
        *x = exp(*x - max);
    }
    let norm = 1.0 / sum(x);
    for x in x.iter_mut() {
        *x *= norm;
    }
}

#[inline(always)]
fn max(x: &[f32]) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    let mut max = f32::NEG_INFINITY;
    for x in lanes.iter().chain(tail) {
        max = if *x > max { *x } else { max };
    }
    max
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meaning(causal: bool, window: Option<usize>) -> Scores<'static> {
        Scores {
            n_keys: 4,
            first_key: 0,
            n_queries: 2,
            first_position: 2,
            causal,
            window,
            scale: 1.0,
            soft_cap: None,
            bias: &PositionBias::None,
        }
    }

    #[test]
    fn masks_follow_positions() {
        assert_eq!(meaning(true, None).visible(0), 0..3);
        assert_eq!(meaning(true, None).visible(3), 0..4);
        assert_eq!(meaning(false, None).visible(0), 0..4);
        assert_eq!(meaning(true, Some(2)).visible(0), 1..3);
        let later = Scores { first_key: 2, ..meaning(true, Some(2)) };
        assert_eq!(later.visible(0), 0..1);
    }

    #[test]
    fn rows_become_probabilities() {
        let mut scores = [0.0, 2f32.ln(), 0.0, 99.0, 1.0, 1.0, 1.0, 1.0];
        masked_softmax(&mut scores, &meaning(true, None));
        let expect = [0.25, 0.5, 0.25, 0.0, 0.25, 0.25, 0.25, 0.25];
        for (found, expect) in scores.iter().zip(expect) {
            assert!((found - expect).abs() < 1e-6, "{scores:?}");
        }
    }
}
