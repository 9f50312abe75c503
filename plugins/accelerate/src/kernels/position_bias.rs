//! What positions add to scores: ALiBi and relative biases.

use drivetrain_transformer::{Alibi, RelativeBuckets};

/// What the positions of a query and a key add to their score, by head.
#[derive(Clone, Debug, Default)]
pub(crate) enum PositionBias {
    /// Nothing.
    #[default]
    None,
    /// A slope for each head.
    Alibi(Alibi, Vec<f32>),
    /// A value for each head and distance: `[n_heads, 2 * reach + 1]`, the farthest key before the
    /// query first. Distances beyond the reach share its end.
    Distances {
        /// The values.
        table: Vec<f32>,
        /// The farthest distance that differs.
        reach: usize,
    },
}

impl PositionBias {
    /// That of `n_heads` heads with slopes.
    pub(crate) fn alibi(alibi: Alibi, n_heads: u32) -> Self {
        Self::Alibi(alibi, alibi.slopes(n_heads))
    }

    /// That of a learned table `[n_buckets, n_heads]`.
    pub(crate) fn buckets(buckets: &RelativeBuckets, table: &[f32], n_heads: usize) -> Self {
        let reach = i64::from(buckets.reach());
        let bias = |head: usize, distance: i64| {
            let at = buckets.bucket(distance) as usize * n_heads + head;
            table.get(at).copied().unwrap_or(0.0)
        };
        let table = (0..n_heads).flat_map(|head| (-reach..=reach).map(move |d| bias(head, d)));
        Self::Distances { table: table.collect(), reach: reach as usize }
    }

    /// Adds to the scores of the query at `position` with the keys from `first_key` on.
    #[inline(always)]
    pub(crate) fn add(&self, scores: &mut [f32], head: usize, position: usize, first_key: usize) {
        match self {
            Self::None => {}
            Self::Alibi(alibi, slopes) => {
                let slope = slopes.get(head).copied().unwrap_or(0.0);
                for (idx, score) in scores.iter_mut().enumerate() {
                    *score += alibi.bias(slope, (first_key + idx) as u32);
                }
            }
            Self::Distances { table, reach } => {
                let width = 2 * reach + 1;
                let Some(row) = table.get(head * width..(head + 1) * width) else { return };
                for (idx, score) in scores.iter_mut().enumerate() {
                    let column = (first_key + idx + reach).saturating_sub(position);
                    *score += row[column.min(width - 1)];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_follow_heads_and_distances() {
        let buckets = RelativeBuckets { n_buckets: 4, max_distance: 6, bidirectional: false };
        let table: Vec<f32> = (0..8).map(|i| i as f32).collect();
        let bias = PositionBias::buckets(&buckets, &table, 2);
        let mut scores = [100.0; 9];
        bias.add(&mut scores, 1, 9, 1);
        let expect = (1..10).map(|key| 101.0 + 2.0 * buckets.bucket(key - 9) as f32);
        assert!(scores.iter().copied().eq(expect), "{scores:?}");
        let mut scores = [0.0; 2];
        let alibi = Alibi { rounded: false, scale: 1.0 };
        PositionBias::alibi(alibi, 4).add(&mut scores, 1, 9, 4);
        assert_eq!(scores, [0.25, 0.3125]);
    }
}
