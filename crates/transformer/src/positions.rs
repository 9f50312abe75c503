//! What positions and distances do to scores and embeddings, beside rotation.

/// A bias on scores that grows with the key's position (Press et al. 2021, arXiv:2108.12409):
/// `slope[head] * k`, which softmax can't tell from `-slope[head] * (q - k)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alibi {
    /// Whether slopes, and their products with positions, are rounded to bf16 (Falcon).
    pub rounded: bool,
    /// Factor on the bias: Falcon scales it like the scores.
    pub scale: f32,
}

impl Alibi {
    /// The slope of each head: powers of `2^(-8 / n)` for the largest power of two `n` in
    /// `n_heads`, and every other power of the root of that for the heads beyond. Transformers
    /// 5.24, `models/bloom/modeling_bloom.py`, `build_alibi_tensor`.
    pub fn slopes(&self, n_heads: u32) -> Vec<f32> {
        let n = 1u32 << n_heads.max(1).ilog2();
        let base = |n: u32| 2f64.powf(-8.0 / f64::from(n)) as f32;
        let first = (1..=n).map(|i| base(n).powi(i as i32));
        let rest = (0..n_heads - n.min(n_heads)).map(|i| base(2 * n).powi((2 * i + 1) as i32));
        let slopes = first.take(n_heads as usize).chain(rest);
        slopes.map(|slope| if self.rounded { bf16(slope) } else { slope }).collect()
    }

    /// The bias on the score of the key at `position`.
    #[inline]
    pub fn bias(&self, slope: f32, position: u32) -> f32 {
        let bias = if self.rounded {
            bf16(slope * bf16(position as f32))
        } else {
            slope * position as f32
        };
        bias * self.scale
    }
}

/// The nearest bf16 number.
fn bf16(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}

/// A learned bias by distance bucket and head (Raffel et al. 2019, arXiv:1910.10683). Near
/// distances have buckets of their own, far ones share them by powers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelativeBuckets {
    /// Rows of the table `[n_buckets, n_heads]`.
    pub n_buckets: u32,
    /// Distances from here on share the last bucket.
    pub max_distance: u32,
    /// Whether keys after the query have buckets of their own.
    pub bidirectional: bool,
}

impl RelativeBuckets {
    /// The bucket of a key that stands `distance` after the query. Transformers 5.24,
    /// `models/t5/modeling_t5.py`, `_relative_position_bucket`.
    pub fn bucket(&self, distance: i64) -> u32 {
        let (n, first) = match (self.bidirectional, distance > 0) {
            (true, true) => (self.n_buckets / 2, self.n_buckets / 2),
            (true, false) => (self.n_buckets / 2, 0),
            (false, _) => (self.n_buckets, 0),
        };
        let away =
            if self.bidirectional { distance.unsigned_abs() } else { (-distance).max(0) as u64 };
        let exact = n / 2;
        if away < u64::from(exact) {
            return first + away as u32;
        }
        // In f32, as the reference has it: a distance on the border of two buckets stays in the same.
        let power = (away as f32 / exact as f32).ln();
        let span = (f64::from(self.max_distance) / f64::from(exact)).ln() as f32;
        let far = (power / span * (n - exact) as f32) as u32;
        first + exact.saturating_add(far).min(n.saturating_sub(1))
    }

    /// The distances beyond which nothing changes: from `-reach` to `reach`.
    pub fn reach(&self) -> u32 {
        self.max_distance.max(self.n_buckets)
    }
}

/// Scores of contents with embedded distances (He et al. 2020, arXiv:2006.03654):
/// `scale * (q · k + q · K_r[row(q - k)] + k · Q_r[row(q - k)])`, where `K_r` and `Q_r` are
/// projections of the stack's table of distances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disentangled {
    /// Half the rows of the table.
    pub span: u32,
    /// Distances are put into buckets by powers up to this one; else each has its own row.
    pub max_distance: Option<u32>,
    /// Whether queries meet distances: `c2p`.
    pub content_to_position: bool,
    /// Whether keys meet distances: `p2c`.
    pub position_to_content: bool,
    /// Whether the projections of contents serve for distances, too.
    pub shared_projections: bool,
}

impl Disentangled {
    /// The row of the table for a query that stands `distance` after the key. Transformers 5.24,
    /// `models/deberta_v2/modeling_deberta_v2.py`, `make_log_bucket_position`.
    pub fn row(&self, distance: i64) -> u32 {
        let span = i64::from(self.span);
        let bucket = match self.max_distance {
            Some(max) if distance.unsigned_abs() > u64::from(self.span / 2) => {
                let mid = (self.span / 2) as f32;
                let away = distance.unsigned_abs() as f32;
                let power = (away / mid).ln() / ((max as f32 - 1.0) / mid).ln();
                let bucket = (power * (mid - 1.0)).ceil() + mid;
                distance.signum() * bucket as i64
            }
            _ => distance,
        };
        (bucket + span).clamp(0, (2 * span - 1).max(0)) as u32
    }
}

/// Writes the fixed embedding of `position` to `out` `[dim]` (Vaswani et al. 2017,
/// arXiv:1706.03762): sines of falling frequencies in the first half of the columns, cosines in the
/// second. Transformers 5.24, `models/marian/modeling_marian.py`, `create_weight`.
pub fn sinusoidal(position: u32, out: &mut [f32]) {
    let dim = out.len();
    let half = dim.div_ceil(2);
    for (column, value) in out.iter_mut().enumerate() {
        let idx = if column < half { column } else { column - half };
        let exponent = (2 * idx) as f64 / dim as f64;
        let angle = f64::from(position) / 10_000f64.powf(exponent);
        *value = if column < half { angle.sin() } else { angle.cos() } as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_paper() {
        let plain = Alibi { rounded: false, scale: 1.0 };
        let close = |found: Vec<f32>, expect: &[f64]| {
            assert_eq!(found.len(), expect.len());
            for (a, b) in found.iter().zip(expect) {
                assert!((f64::from(*a) - b).abs() < 1e-6, "{found:?} for {expect:?}");
            }
        };
        close(plain.slopes(4), &[0.25, 0.0625, 0.015625, 0.00390625]);
        let root = 2f64.powf(-0.5);
        close(plain.slopes(6), &[0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]);
        close(plain.slopes(3), &[0.0625, 0.00390625, 0.25]);
        close(plain.slopes(1), &[0.00390625]);
        close(plain.slopes(16), &(1..=16).map(|i| root.powi(i)).collect::<Vec<_>>());
    }

    #[test]
    fn buckets_are_those_of_t5() {
        // transformers 5.24, T5Attention._relative_position_bucket, 32 buckets, distance 128.
        let encoder = RelativeBuckets { n_buckets: 32, max_distance: 128, bidirectional: true };
        let distances = [-200, -128, -127, -64, -20, -8, -7, 0, 1, 7, 8, 12, 63, 64, 127, 500];
        let found: Vec<u32> = distances.iter().map(|d| encoder.bucket(*d)).collect();
        assert_eq!(found, [15, 15, 15, 14, 10, 8, 7, 0, 17, 23, 24, 25, 29, 30, 31, 31]);
        let decoder = RelativeBuckets { n_buckets: 32, max_distance: 128, bidirectional: false };
        let found: Vec<u32> = distances.iter().map(|d| decoder.bucket(*d)).collect();
        assert_eq!(found, [31, 31, 31, 26, 17, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn rows_of_distances_are_those_of_deberta() {
        // transformers 5.24, make_log_bucket_position(d, 8, 80) + 8, clamped to 0..16.
        let table = Disentangled {
            span: 8,
            max_distance: Some(80),
            content_to_position: true,
            position_to_content: true,
            shared_projections: true,
        };
        let found: Vec<u32> = [-90, -30, -9, -4, 0, 3, 4, 5, 20, 79].map(|d| table.row(d)).to_vec();
        assert_eq!(found, [0, 1, 3, 4, 8, 11, 12, 13, 14, 15]);
        let plain = Disentangled { max_distance: None, ..table };
        assert_eq!([-9, -8, 0, 7, 8].map(|d| plain.row(d)), [0, 0, 8, 15, 15]);
    }

    #[test]
    fn sinusoids_come_in_halves() {
        let mut row = [0.0; 4];
        sinusoidal(3, &mut row);
        let expect = [3f64.sin(), 0.03f64.sin(), 3f64.cos(), 0.03f64.cos()];
        for (a, b) in row.iter().zip(expect) {
            assert!((f64::from(*a) - b).abs() < 1e-7, "{row:?}");
        }
    }
}
