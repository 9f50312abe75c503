//! Choosing among all continuations of all beams: the best, or some drawn.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use drivetrain_engine::TokenId;

use crate::logits::{DrawKey, exp};

/// Scores that are looked at together: none of them is taken up if the highest isn't.
const CHUNK: usize = 64;

/// Weights that have a sum of their own.
const BLOCK: usize = 256;

/// A beam's continuation with a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    /// The beam's score and the token's together.
    pub(super) score: f32,
    /// The beam's place among those of its group.
    pub(super) beam: usize,
    pub(super) token: TokenId,
}

impl Eq for Candidate {}

/// The better one is less: the higher score, then the lower beam, then the lower token. Scores are
/// numbers.
impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_score = other.score.partial_cmp(&self.score).unwrap_or(Ordering::Equal);
        by_score.then(self.beam.cmp(&other.beam)).then(self.token.cmp(&other.token))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The best `n` candidates of those offered, the worst of them on top.
#[derive(Clone, Debug, Default)]
pub(super) struct Best {
    heap: BinaryHeap<Candidate>,
    n: usize,
}

impl Best {
    /// Begins anew.
    pub(super) fn begin(&mut self, n: usize) {
        self.heap.clear();
        self.n = n;
    }

    /// Offers all continuations of a beam of score `base`.
    pub(super) fn offer_row(&mut self, beam: usize, base: f32, scores: &[f32]) {
        let mut first: TokenId = 0;
        for chunk in scores.chunks(CHUNK) {
            if self.may_take(exp::highest_number(chunk) + base) {
                for (token, &score) in (first..).zip(chunk) {
                    self.offer(Candidate { score: score + base, beam, token });
                }
            }
            first += CHUNK as TokenId;
        }
    }

    fn may_take(&self, score: f32) -> bool {
        self.heap.len() < self.n || self.heap.peek().is_some_and(|worst| score >= worst.score)
    }

    fn offer(&mut self, candidate: Candidate) {
        if candidate.score.is_nan() {
            return;
        }
        if self.heap.len() < self.n {
            self.heap.push(candidate);
        } else if let Some(mut worst) = self.heap.peek_mut()
            && candidate < *worst
        {
            *worst = candidate;
        }
    }

    /// Puts the best into `found`, best first, and forgets them.
    pub(super) fn take(&mut self, found: &mut Vec<Candidate>) {
        found.clear();
        found.extend(self.heap.drain());
        found.sort_unstable();
    }

    /// Adds the best that are not in `found` until it has `n`, and forgets them.
    pub(super) fn top_up(&mut self, n: usize, found: &mut Vec<Candidate>) {
        let n_found = found.len();
        for candidate in self.heap.drain() {
            if !found.iter().take(n_found).any(|known| *known == candidate) {
                found.push(candidate);
            }
        }
        if let Some(added) = found.get_mut(n_found..) {
            added.sort_unstable();
        }
        found.truncate(n);
    }
}

/// Draws candidates without replacement, each with the probability of its score's exponential among
/// those that are left.
///
/// A draw is a number below the sum of the weights that are left; the weights' blocks have sums of
/// their own, so that finding its place takes few steps. A drawn weight becomes 0.
#[derive(Clone, Debug, Default)]
pub(super) struct Urn {
    candidates: Vec<Candidate>,
    weights: Vec<f32>,
    sums: Vec<f64>,
}

impl Urn {
    /// Begins anew.
    pub(super) fn begin(&mut self) {
        self.candidates.clear();
    }

    /// Puts in all continuations of a beam of score `base` that are possible at all.
    pub(super) fn put_row(&mut self, beam: usize, base: f32, scores: &[f32]) {
        let possible = (0..).zip(scores).filter(|(_, score)| **score > f32::NEG_INFINITY);
        self.candidates.extend(possible.map(|(token, &score)| Candidate {
            score: score + base,
            beam,
            token,
        }));
    }

    /// Draws `n` into `found`, in the order they were drawn; fewer if no more have a weight.
    pub(super) fn draw(&mut self, n: usize, key: DrawKey, found: &mut Vec<Candidate>) {
        found.clear();
        let scores = self.candidates.iter().map(|candidate| candidate.score);
        let max = scores.fold(f32::NEG_INFINITY, f32::max);
        self.weights.clear();
        self.weights.extend(self.candidates.iter().map(|candidate| (candidate.score - max).exp()));
        self.sums.clear();
        self.sums.extend(self.weights.chunks(BLOCK).map(sum));
        let mut numbers = key.numbers();
        while found.len() < n {
            let total: f64 = self.sums.iter().sum();
            if !(total > 0.0 && total.is_finite()) {
                return;
            }
            let Some(idx) = self.find(numbers.next() * total) else { return };
            if let (Some(candidate), Some(weight)) =
                (self.candidates.get(idx), self.weights.get_mut(idx))
            {
                found.push(*candidate);
                *weight = 0.0;
            }
            let block = self.weights.chunks(BLOCK).nth(idx / BLOCK);
            if let (Some(block), Some(block_sum)) = (block, self.sums.get_mut(idx / BLOCK)) {
                *block_sum = sum(block);
            }
        }
    }

    /// The first place up to which the weights' sum is above `point`; the last one that has a weight
    /// if rounding leaves none.
    fn find(&self, mut point: f64) -> Option<usize> {
        let mut last = None;
        for (block_idx, (block, &block_sum)) in
            self.weights.chunks(BLOCK).zip(&self.sums).enumerate()
        {
            if block_sum <= 0.0 {
                continue;
            }
            if point < block_sum {
                let mut left = point;
                for (idx, &weight) in block.iter().enumerate().filter(|(_, weight)| **weight > 0.0)
                {
                    last = Some(block_idx * BLOCK + idx);
                    left -= f64::from(weight);
                    if left < 0.0 {
                        break;
                    }
                }
                return last;
            }
            let in_block = block.iter().rposition(|weight| *weight > 0.0);
            last = in_block.map(|idx| block_idx * BLOCK + idx).or(last);
            point -= block_sum;
        }
        last
    }
}

fn sum(weights: &[f32]) -> f64 {
    weights.iter().copied().map(f64::from).sum()
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{RngCore, SeedableRng};

    use super::*;

    fn scores(seed: u64, n: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| (rng.next_u32() % 97) as f32 / 8.0 - 9.0).collect()
    }

    #[test]
    fn the_best_are_those_that_sorting_finds() {
        for seed in 0..60 {
            let n_logits = 1 + (seed as usize * 37) % 700;
            let rows = [scores(seed, n_logits), scores(seed + 1000, n_logits)];
            let bases = [0.0, -1.5];
            let mut all: Vec<_> = (0..2)
                .flat_map(|beam| {
                    rows[beam].iter().enumerate().map(move |(token, score)| Candidate {
                        score: score + bases[beam],
                        beam,
                        token: token as TokenId,
                    })
                })
                .collect();
            all.sort();
            all.truncate(12);
            let (mut best, mut found) = (Best::default(), Vec::new());
            best.begin(12);
            // Whatever the order of the rows.
            best.offer_row(1, bases[1], &rows[1]);
            best.offer_row(0, bases[0], &rows[0]);
            best.take(&mut found);
            assert_eq!(found, all, "seed {seed}");
        }
    }

    #[test]
    fn what_is_impossible_is_taken_only_if_nothing_else_is_left() {
        let (mut best, mut found) = (Best::default(), Vec::new());
        best.begin(3);
        best.offer_row(0, 0.0, &[f32::NEG_INFINITY, 1.0, f32::NAN, f32::NEG_INFINITY]);
        best.take(&mut found);
        let tokens: Vec<_> = found.iter().map(|candidate| candidate.token).collect();
        assert_eq!(tokens, [1, 0, 3]);
    }

    fn draw(rows: &[Vec<f32>], n: usize, position: u64) -> Vec<Candidate> {
        let (mut urn, mut found) = (Urn::default(), Vec::new());
        urn.begin();
        rows.iter().enumerate().for_each(|(beam, row)| urn.put_row(beam, 0.0, row));
        urn.draw(n, DrawKey { seed: 7, choice: 0, position }, &mut found);
        found
    }

    #[test]
    fn nothing_is_drawn_twice_and_all_can_be_drawn() {
        let mut row = scores(3, 600);
        row[5] = f32::NEG_INFINITY;
        let rows = [row, scores(4, 600)];
        let mut found = draw(&rows, 5000, 1);
        assert_eq!(found.len(), 1199);
        found.sort();
        found.dedup();
        assert_eq!(found.len(), 1199);
        assert_eq!(draw(&rows, 5, 1), draw(&rows, 5, 1));
        assert_ne!(draw(&rows, 5, 1), draw(&rows, 5, 2));
        assert!(draw(&[vec![f32::NEG_INFINITY; 4]], 2, 0).is_empty());
    }

    #[test]
    fn draws_follow_their_weights() {
        // First draws of 1/2, 1/4, 1/4; then of what is left.
        let row = vec![0.5_f32.ln(), 0.25_f32.ln(), 0.25_f32.ln()];
        let n = 20_000;
        let (mut first, mut pairs) = ([0_u32; 3], [[0_u32; 3]; 3]);
        for position in 0..n {
            let found = draw(std::slice::from_ref(&row), 2, position);
            let [a, b] = [found[0].token as usize, found[1].token as usize];
            first[a] += 1;
            pairs[a][b] += 1;
        }
        let near = |count: u32, share: f64| {
            assert!((f64::from(count) / n as f64 - share).abs() < 0.015, "{count}, {share}");
        };
        near(first[0], 0.5);
        near(first[1], 0.25);
        near(pairs[0][1], 0.25);
        near(pairs[1][0], 0.25 * 2.0 / 3.0);
        near(pairs[1][2], 0.25 / 3.0);
    }
}
