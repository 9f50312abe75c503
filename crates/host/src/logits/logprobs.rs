//! Log-probabilities.

use drivetrain_engine::TokenId;

use super::exp;
use crate::scheduler::Scored;

/// Logits that are looked at together: most blocks hold none of the likeliest.
const BLOCK: usize = 64;

/// The log-softmax of one row of logits, without its row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LogSoftmax {
    /// The highest logit.
    max: f32,
    /// The log of the sum of the exponentials of what the logits have below it.
    log_sum: f32,
}

impl LogSoftmax {
    /// Of a row of logits, none of them NaN.
    pub(crate) fn of(logits: &[f32]) -> Self {
        let (max, _) = exp::highest(logits);
        if !max.is_finite() {
            // One of infinite weight, or none with any: there is no sum to take.
            return Self { max: if max > 0.0 { max } else { 0.0 }, log_sum: 0.0 };
        }
        Self { max, log_sum: exp::sum_exp(logits, max).ln() as f32 }
    }

    /// The log-probability of the token whose logit is `logit`.
    pub(crate) fn at(self, logit: f32) -> f32 {
        if logit == self.max { -self.log_sum } else { (logit - self.max) - self.log_sum }
    }

    /// The `n` likeliest tokens, best first, the lower id first of equals; `top` is cleared first.
    pub(crate) fn top(self, logits: &[f32], n: usize, top: &mut Vec<Scored>) {
        top.clear();
        if n == 0 {
            return;
        }
        let mut least = f32::NEG_INFINITY;
        for (block_idx, block) in logits.chunks(BLOCK).enumerate() {
            if top.len() == n && exp::highest_number(block) <= least {
                continue;
            }
            for (idx, &logit) in block.iter().enumerate() {
                let is_full = top.len() == n;
                if is_full && logit <= least {
                    continue;
                }
                let place = top.partition_point(|better| better.logprob >= logit);
                if is_full {
                    top.pop();
                }
                let id = (block_idx * BLOCK + idx) as TokenId;
                top.insert(place, Scored { id, logprob: logit });
                least = top.last().map_or(least, |last| last.logprob);
            }
        }
        for scored in top {
            scored.logprob = self.at(scored.logprob);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random, with many equals among them.
    fn logits(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * i * 31 + i * 7) % 997) as f32 / 40.0 - 12.0).collect()
    }

    #[test]
    fn log_probabilities_are_those_of_double_precision() {
        for n in [1, 2, 63, 64, 1000, 50_257] {
            let row = logits(n);
            let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            let softmax = LogSoftmax::of(&row);
            for &x in &row {
                let expect = f64::from(x) - sum.ln();
                let found = f64::from(softmax.at(x));
                assert!((found - expect).abs() < 2e-6 * (1.0 + expect.abs()), "{found} {expect}");
            }
        }
    }

    #[test]
    fn infinities_have_their_place() {
        let with_out = LogSoftmax::of(&[1.0, f32::NEG_INFINITY, 1.0]);
        assert!((with_out.at(1.0) + std::f32::consts::LN_2).abs() < 1e-6);
        assert_eq!(with_out.at(f32::NEG_INFINITY), f32::NEG_INFINITY);
        assert_eq!(
            LogSoftmax::of(&[f32::NEG_INFINITY; 2]).at(f32::NEG_INFINITY),
            f32::NEG_INFINITY
        );
        let sure = LogSoftmax::of(&[f32::INFINITY, 1.0]);
        assert_eq!((sure.at(f32::INFINITY), sure.at(1.0)), (0.0, f32::NEG_INFINITY));
    }

    #[test]
    fn the_likeliest_are_those_of_a_sort() {
        let mut top = Vec::new();
        for n_logits in [1, 5, 64, 65, 200, 5000] {
            let row = logits(n_logits);
            let softmax = LogSoftmax::of(&row);
            let mut order: Vec<usize> = (0..n_logits).collect();
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
            for n in [0, 1, 5, 20, 70] {
                softmax.top(&row, n, &mut top);
                let found: Vec<usize> = top.iter().map(|scored| scored.id as usize).collect();
                assert_eq!(found, order[..n.min(n_logits)], "{n_logits} {n}");
                assert!(top.iter().all(|s| s.logprob == softmax.at(row[s.id as usize])));
            }
        }
    }
}
