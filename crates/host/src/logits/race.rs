//! Draws by a race of exponential times.
//!
//! Each token arrives at a time that is exponentially distributed with its weight as the rate; the
//! first to arrive is drawn, which each is in proportion to its weight (the Gumbel-max trick, on
//! another scale). A token's random number follows from the key and the token alone. So scores that
//! differ by rounding, as those of another batch may, change a draw only if the first two arrive as
//! near to each other as that. A draw by the sums of all weights would change with any of the sums,
//! of which there are as many as tokens.

use drivetrain_engine::TokenId;

use super::DrawKey;

/// Tokens that are looked at together.
const BLOCK: usize = 64;

/// A race under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Race {
    keys: [u32; 4],
    first: Option<(f64, TokenId)>,
}

impl Race {
    pub(super) fn new(key: DrawKey) -> Self {
        let mut numbers = key.numbers();
        Self { keys: [(); 4].map(|()| numbers.next_u32()), first: None }
    }

    /// Lets one token take part; of equals the one that came before it stays first.
    pub(super) fn enter(&mut self, id: TokenId, weight: f32) {
        let weight = f64::from(weight);
        let number = (f64::from(mix(id, self.keys)) + 0.5) / 4_294_967_296.0;
        // The time is never below the number, which spares most of the logarithms.
        if weight <= 0.0 || self.first.is_some_and(|(time, _)| number >= time * weight) {
            return;
        }
        let time = -(-number).ln_1p() / weight;
        if self.first.is_none_or(|(first, _)| time < first) {
            self.first = Some((time, id));
        }
    }

    /// Lets the tokens from 0 on take part, one a weight.
    pub(super) fn enter_all(&mut self, weights: &[f32]) {
        for (block_idx, block) in weights.chunks(BLOCK).enumerate() {
            let start = (block_idx * BLOCK) as TokenId;
            // Whether any number may be below the time to beat, by what is never above it.
            let bar = self.first.map_or(f64::INFINITY, |(time, _)| time * (1.0 + 1e-6)) as f32;
            let keys = self.keys;
            let may_win = (start..).zip(block).fold(false, |may_win, (id, weight)| {
                let number = (mix(id, keys) >> 8) as i32 as f32 / 16_777_216.0;
                may_win | (number <= bar * weight)
            });
            if may_win {
                (start..).zip(block).for_each(|(id, weight)| self.enter(id, *weight));
            }
        }
    }

    /// The first to arrive.
    pub(super) fn winner(self) -> Option<TokenId> {
        self.first.map(|(_, id)| id)
    }
}

/// 32 bits that follow from a token and the keys: two rounds of MurmurHash3's finaliser (Appleby), each
/// keyed before and after.
fn mix(id: TokenId, [a, b, c, d]: [u32; 4]) -> u32 {
    round(round(id.wrapping_mul(0x9e37_79b1) ^ a).wrapping_add(b) ^ c).wrapping_add(d)
}

fn round(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x85eb_ca6b);
    x ^= x >> 13;
    x = x.wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn race(position: u64, weights: &[f32]) -> Option<TokenId> {
        let mut race = Race::new(DrawKey { seed: 5, choice: 0, position });
        race.enter_all(weights);
        race.winner()
    }

    #[test]
    fn all_at_once_is_one_by_one() {
        let weights: Vec<f32> = (0..500).map(|n| 1.0 / (1.0 + n as f32)).collect();
        for position in 0..500 {
            let mut one_by_one = Race::new(DrawKey { seed: 5, choice: 0, position });
            (0..).zip(&weights).for_each(|(id, weight)| one_by_one.enter(id, *weight));
            assert_eq!(race(position, &weights), one_by_one.winner());
        }
        assert_eq!(race(0, &[0.0; 3]), None);
        assert_eq!(race(0, &[0.0, 1e-30, 0.0]), Some(1));
    }

    #[test]
    fn rounding_does_not_change_a_draw() {
        let weights: Vec<f32> = (0..4000).map(|n| ((n * 37 % 101) as f32 / 20.0).exp()).collect();
        let rounded: Vec<f32> = weights
            .iter()
            .enumerate()
            .map(|(n, weight)| weight * (1.0 + 1e-6 * ((n * 7 % 5) as f32 - 2.0)))
            .collect();
        let n_changed = (0..5000).filter(|&at| race(at, &weights) != race(at, &rounded)).count();
        // Some hundredths are to be expected; by the sums of weights it would be some tens.
        assert!(n_changed <= 1, "{n_changed}");
    }
}
