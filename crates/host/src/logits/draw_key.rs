//! Random numbers that follow from where they are used.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// What a random number follows from: nothing but these, so that what else runs changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DrawKey {
    /// The request's.
    pub(crate) seed: u64,
    /// The choice's number, or the beam search's.
    pub(crate) choice: u64,
    /// New tokens before this one.
    pub(crate) position: u64,
}

/// The random numbers of one key, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Numbers(ChaCha8Rng);

impl DrawKey {
    /// Words of the key stream that belong to one position: beam search draws many numbers there,
    /// which run into the next position's only after 32,768.
    const WORDS: u128 = 1 << 16;

    /// The key's numbers: ChaCha8 keyed by the seed, its stream the choice, its place the position.
    pub(crate) fn numbers(self) -> Numbers {
        let mut key = [0; 32];
        let (seed, _) = key.split_at_mut(8);
        seed.copy_from_slice(&self.seed.to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(self.choice);
        rng.set_word_pos(u128::from(self.position) * Self::WORDS);
        Numbers(rng)
    }
}

impl Numbers {
    /// The next 32 random bits.
    pub(crate) fn next_u32(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// The next number, 0 or more and less than 1, of 53 random bits.
    pub(crate) fn next(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_own_numbers() {
        let key = DrawKey { seed: 1, choice: 2, position: 3 };
        let first = |key: DrawKey| key.numbers().next().to_bits();
        assert_eq!(first(key), first(key));
        let others = [
            DrawKey { seed: 2, ..key },
            DrawKey { choice: 3, ..key },
            DrawKey { position: 4, ..key },
            DrawKey { seed: 1 << 63 | 1, ..key },
            DrawKey { choice: u64::MAX, ..key },
            DrawKey { position: u64::MAX, ..key },
        ];
        for other in others {
            assert_ne!(first(other), first(key), "{other:?}");
        }
        let mut numbers = key.numbers();
        let all: Vec<f64> = (0..1000).map(|_| numbers.next()).collect();
        assert!(all.iter().all(|x| (0.0..1.0).contains(x)));
        let mean = all.iter().sum::<f64>() / 1000.0;
        assert!((mean - 0.5).abs() < 0.05, "{mean}");
    }
}
