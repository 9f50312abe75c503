//! Drawing tokens.
//!
//! Source: the warpers of `generation/logits_process.py`, transformers 5.23.0. They sort the whole
//! vocabulary; here each filter finds its cut by sums over bins of like tokens, and looks only at tokens
//! that the filters before it and a cheap bound have left.

use std::cmp::Ordering;

use drivetrain_engine::TokenId;

use super::draw_key::DrawKey;
use super::exp;
use super::race::Race;
use super::scratch::{Bin, Kept, Ranked, Scratch};

/// Scores that are passed over together where none of them can be kept.
const BLOCK: usize = 64;

/// Bins that tokens are sorted into by rank, and how far they go: what is ranked lower than that
/// below the first has no weight that counts.
const N_BINS: usize = 1024;
const SPAN: f32 = 64.0;

/// What is done to the scores before a token is drawn, in `generate`'s order; neutral values are
/// `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sampling {
    /// What scores are divided by; above 0.
    pub(crate) temperature: Option<f32>,
    /// How many of the likeliest are kept, with those as likely as the last of them.
    pub(crate) top_k: Option<usize>,
    /// The likeliest that together have at least this probability are kept.
    pub(crate) top_p: Option<f32>,
    /// Least probability that is kept, as a part of the largest.
    pub(crate) min_p: Option<f32>,
    /// Those whose information is nearest to the entropy, up to this probability, are kept.
    pub(crate) typical_p: Option<f32>,
    /// Least probability that is kept.
    pub(crate) epsilon_cutoff: Option<f32>,
    /// Least probability that is kept, lowered where the entropy is high.
    pub(crate) eta_cutoff: Option<f32>,
    /// Least tokens that each filter keeps; 1, and more with beams.
    pub(crate) min_kept: usize,
}

impl Sampling {
    /// Filters `scores`, which [`super::Rules::apply`] has been through, and draws a token from what
    /// is left; `None` if no score is a number above minus infinity, or one is NaN.
    pub(crate) fn draw(
        &self,
        scores: &mut [f32],
        key: DrawKey,
        scratch: &mut Scratch,
    ) -> Option<TokenId> {
        let max = self.warm(scores)?;
        if max == f32::INFINITY {
            return super::arg_max(scores);
        }
        let mut race = Race::new(key);
        if self.keeps_all() {
            scratch.exps.resize(scores.len(), 0.0);
            exp::write(scores, max, &mut scratch.exps);
            race.enter_all(&scratch.exps);
        } else {
            self.keep(scores, max, scratch);
            scratch.kept.iter().for_each(|kept| race.enter(kept.id, kept.weight));
        }
        race.winner()
    }

    /// Divides `scores` by the temperature and sets those that the filters drop to minus infinity.
    /// Scores of which one is NaN, or none is above minus infinity, are left as they are.
    pub(crate) fn filter(&self, scores: &mut [f32], scratch: &mut Scratch) {
        let Some(max) = self.warm(scores) else { return };
        if self.keeps_all() || max == f32::INFINITY {
            return;
        }
        self.keep(scores, max, scratch);
        scores.fill(f32::NEG_INFINITY);
        for kept in &scratch.kept {
            if let Some(score) = scores.get_mut(kept.id as usize) {
                *score = kept.score;
            }
        }
    }

    /// Divides by the temperature, unless top-k does that to the few that it looks at; the highest
    /// score then, if it can be drawn from.
    fn warm(&self, scores: &mut [f32]) -> Option<f32> {
        let (max, has_nan) = exp::highest(scores);
        if has_nan || max == f32::NEG_INFINITY {
            return None;
        }
        let Some(temperature) = self.temperature else { return Some(max) };
        let max = max / temperature;
        if self.top_k.is_none() || max == f32::INFINITY {
            scores.iter_mut().for_each(|score| *score /= temperature);
        }
        Some(max)
    }

    fn keeps_all(&self) -> bool {
        self.top_k.is_none()
            && self.top_p.is_none()
            && self.min_p.is_none()
            && self.typical_p.is_none()
            && self.epsilon_cutoff.is_none()
            && self.eta_cutoff.is_none()
    }

    /// Leaves what the filters keep of `scores` in `scratch.kept`.
    fn keep(&self, scores: &[f32], max: f32, scratch: &mut Scratch) {
        let min_kept = self.min_kept.max(1);
        let mut total = None;
        match self.top_k {
            Some(k) => {
                let temperature = self.temperature.unwrap_or(1.0);
                keep_top_k(scores, temperature, k.max(min_kept), scratch);
            }
            None => {
                total = self.top_p.map(|_| exp::sum_exp(scores, max));
                keep_above(scores, self.bound(scores.len(), max, total), &mut scratch.kept);
                if scratch.kept.len() < min_kept {
                    keep_top_k(scores, 1.0, min_kept, scratch);
                }
            }
        }
        for kept in &mut scratch.kept {
            kept.weight = exp::exp(kept.score - max);
        }
        if let Some(p) = self.top_p {
            let total = total.unwrap_or_else(|| Moments::of(&scratch.kept, max).total);
            keep_top_p(f64::from(p) * total, min_kept, scratch);
        }
        if let Some(p) = self.min_p {
            keep_likely(f64::from(p), min_kept, scratch);
        }
        if let Some(mass) = self.typical_p {
            keep_typical(f64::from(mass), max, min_kept, scratch);
        }
        if let Some(least) = self.epsilon_cutoff {
            let total = Moments::of(&scratch.kept, max).total;
            keep_likely(f64::from(least) * total, min_kept, scratch);
        }
        if let Some(eta) = self.eta_cutoff {
            let moments = Moments::of(&scratch.kept, max);
            let eta = f64::from(eta);
            let least = eta.min(eta.sqrt() * (-moments.entropy()).exp());
            keep_likely(least * moments.total, min_kept, scratch);
        }
    }

    /// A score that only scores above need a closer look, where there is no top-k: of `n` tokens,
    /// those of less than the `n`th part of what top-p drops are dropped, all together.
    fn bound(&self, n: usize, max: f32, total: Option<f64>) -> f32 {
        // Room for the rounding of what is compared.
        const ROOM: f64 = 1e-3;
        let least = match (self.top_p, total, self.min_p) {
            (Some(p), Some(total), _) => (1.0 - f64::from(p)) * total / n.max(1) as f64,
            (_, _, Some(p)) => f64::from(p),
            _ => return f32::NEG_INFINITY,
        };
        (f64::from(max) + least.ln() - ROOM) as f32 - max.abs() * f32::EPSILON
    }
}

/// Sums over tokens in the draw.
struct Moments {
    /// Of the weights.
    total: f64,
    /// Of the weights times their logs.
    of_logs: f64,
}

impl Moments {
    fn of(kept: &[Kept], max: f32) -> Self {
        let (mut total, mut of_logs) = (0.0, 0.0);
        for token in kept {
            let weight = f64::from(token.weight);
            total += weight;
            of_logs += weight * (f64::from(token.score) - f64::from(max));
        }
        Self { total, of_logs }
    }

    fn entropy(&self) -> f64 {
        self.total.ln() - self.of_logs / self.total
    }
}

/// Leaves the tokens of a score above `bound`.
fn keep_above(scores: &[f32], bound: f32, kept: &mut Vec<Kept>) {
    kept.clear();
    for (block_idx, block) in scores.chunks(BLOCK).enumerate() {
        if exp::highest_number(block) > bound {
            push(kept, (block_idx, block), 1.0, |score| score > bound);
        }
    }
}

/// Leaves the `k` likeliest tokens of `scores` over `temperature` and those as likely as the last of
/// them, without those of no probability. A quotient is never above that of a higher score.
fn keep_top_k(scores: &[f32], temperature: f32, k: usize, scratch: &mut Scratch) {
    let (kept, floats) = (&mut scratch.kept, &mut scratch.exps);
    kept.clear();
    let mut least = f32::NEG_INFINITY;
    let mut full = k.saturating_mul(2).max(4 * BLOCK);
    for (block_idx, block) in scores.chunks(BLOCK).enumerate() {
        if exp::highest_number(block) / temperature < least {
            continue;
        }
        let is_kept = |score| score >= least && score > f32::NEG_INFINITY;
        push(kept, (block_idx, block), temperature, is_kept);
        if kept.len() >= full {
            least = cut_to(k, kept, floats);
            full = full.max(kept.len().saturating_mul(2));
        }
    }
    cut_to(k, kept, floats);
}

/// Appends what is kept of a block over `temperature`. Which scores are is as good as random, so they
/// are moved without a branch.
fn push(
    kept: &mut Vec<Kept>,
    (block_idx, block): (usize, &[f32]),
    temperature: f32,
    is_kept: impl Fn(f32) -> bool,
) {
    let mut found = [Kept { id: 0, score: 0.0, weight: 0.0 }; BLOCK];
    let first = block_idx * BLOCK;
    let mut n_found = 0;
    for (idx, &score) in block.iter().enumerate() {
        let score = score / temperature;
        found[n_found % BLOCK] = Kept { id: (first + idx) as TokenId, score, weight: 0.0 };
        n_found += usize::from(is_kept(score));
    }
    kept.extend_from_slice(found.get(..n_found).unwrap_or_default());
}

/// Drops tokens less likely than the `k`th; returns its score.
fn cut_to(k: usize, kept: &mut Vec<Kept>, floats: &mut Vec<f32>) -> f32 {
    let least = nth_score(k, kept, floats);
    kept.retain(|token| token.score >= least);
    least
}

/// The `k`th highest score, `k` at least 1; minus infinity if there are fewer.
fn nth_score(k: usize, kept: &[Kept], floats: &mut Vec<f32>) -> f32 {
    if kept.len() < k {
        return f32::NEG_INFINITY;
    }
    floats.clear();
    floats.extend(kept.iter().map(|token| token.score));
    let (_, nth, _) = floats.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    *nth
}

/// Leaves the likeliest up to a weight of `target`. Of equals the lower ids come first, as with the
/// arg-max; transformers leaves that to its sort.
fn keep_top_p(target: f64, min_kept: usize, scratch: &mut Scratch) {
    let ranked = |token: &Kept| Ranked { rank: -token.score, tie: token.id, weight: token.weight };
    if let Some(last) = last_kept(scratch, ranked, target, min_kept) {
        scratch.kept.retain(|token| compare(&ranked(token), &last).is_le());
    }
}

/// Leaves the most typical up to a part `mass` of the weight, with those as typical as the last.
fn keep_typical(mass: f64, max: f32, min_kept: usize, scratch: &mut Scratch) {
    let moments = Moments::of(&scratch.kept, max);
    let usual = moments.total.ln() - moments.entropy();
    let ranked = |token: &Kept| {
        let rank = (usual - (f64::from(token.score) - f64::from(max))).abs() as f32;
        Ranked { rank, tie: token.id, weight: token.weight }
    };
    let Some(last) = last_kept(scratch, ranked, mass * moments.total, 1) else { return };
    let least = if min_kept > 1 { last_kept(scratch, ranked, 0.0, min_kept) } else { None };
    let least = least.unwrap_or(last);
    scratch.kept.retain(|token| {
        let token = ranked(token);
        token.rank <= last.rank || compare(&token, &least).is_le()
    });
}

/// Drops tokens of a weight below `least`, but none as likely as the `min_kept`th.
fn keep_likely(least: f64, min_kept: usize, scratch: &mut Scratch) {
    let nth = nth_score(min_kept, &scratch.kept, &mut scratch.exps);
    scratch.kept.retain(|token| f64::from(token.weight) >= least || token.score >= nth);
}

fn compare(a: &Ranked, b: &Ranked) -> Ordering {
    a.rank.total_cmp(&b.rank).then(a.tie.cmp(&b.tie))
}

/// The first in order up to which the weights sum to `target`, but none of the `min_kept - 1` first;
/// the last one if there is none.
///
/// Ranks are sorted into bins, and only the bin that it is in is looked at closely.
fn last_kept(
    scratch: &mut Scratch,
    ranked: impl Fn(&Kept) -> Ranked,
    target: f64,
    min_kept: usize,
) -> Option<Ranked> {
    let Scratch { kept, order, bins, .. } = scratch;
    let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
    for token in kept.iter() {
        let rank = ranked(token).rank;
        (low, high) = (low.min(rank), high.max(rank));
    }
    let span = (high - low).min(SPAN);
    let scale = if span > 0.0 { (N_BINS - 1) as f32 / span } else { 0.0 };
    let bin_of = |rank: f32| (((rank - low) * scale) as usize).min(N_BINS - 1);
    bins.clear();
    bins.resize(N_BINS, Bin::default());
    for token in kept.iter() {
        let token = ranked(token);
        if let Some(bin) = bins.get_mut(bin_of(token.rank)) {
            bin.weight += f64::from(token.weight);
            bin.n_tokens += 1;
        }
    }
    let (mut before, mut n_before) = (0.0, 0);
    let mut found = (0, before, n_before);
    for (bin_idx, bin) in bins.iter().enumerate().filter(|(_, bin)| bin.n_tokens > 0) {
        found = (bin_idx, before, n_before);
        before += bin.weight;
        n_before += bin.n_tokens;
        if before >= target && n_before >= min_kept {
            break;
        }
    }
    let (bin_idx, before, n_before) = found;
    order.clear();
    order.extend(kept.iter().map(ranked).filter(|token| bin_of(token.rank) == bin_idx));
    last_of(order, target - before, min_kept.saturating_sub(n_before))
}

/// The same of a few. Each turn puts the lower half before the upper one and goes on with the half
/// that it is in.
fn last_of(order: &mut [Ranked], target: f64, min_kept: usize) -> Option<Ranked> {
    let (mut start, mut end, mut before) = (0, order.len(), 0.0);
    while end - start > 1 {
        let half = (end - start) / 2;
        let part = order.get_mut(start..end)?;
        let (lower, _, _) = part.select_nth_unstable_by(half, compare);
        let weight: f64 = lower.iter().map(|token| f64::from(token.weight)).sum();
        if before + weight >= target && start + half >= min_kept {
            end = start + half;
        } else {
            before += weight;
            start += half;
        }
    }
    order.get(start).copied()
}

#[cfg(test)]
mod tests;
