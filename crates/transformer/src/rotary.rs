//! Rotary positions: frequencies and angles, in every scaling that configs name.
//!
//! Su et al. 2021, arXiv:2104.09864. The numbers follow transformers 5.23,
//! `modeling_rope_utils.py`: frequencies and angles are f32.

use std::f64::consts::PI;

/// Rotation of q and k by position.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Values of a head that are rotated; even, at most `head_dim`. The rest passes through.
    pub dim: u32,
    /// Base of the frequencies.
    pub theta: f64,
    /// Which values form a pair.
    pub pairs: RotaryPairs,
    /// Change of the frequencies for long sequences.
    pub scaling: RotaryScaling,
}

/// Which values of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotaryPairs {
    /// `(i, i + dim/2)`: LLaMA, GPT-NeoX.
    Halves,
    /// `(2i, 2i + 1)`: GPT-J.
    Interleaved,
}

/// How frequencies are changed for sequences longer than the model was first trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum RotaryScaling {
    /// Not at all.
    None,
    /// Divided by `factor`.
    Linear {
        /// How much longer.
        factor: f64,
    },
    /// A base that grows with the sequence past `max_positions`.
    Dynamic {
        /// How fast it grows.
        factor: f64,
        /// Up to here nothing changes.
        max_positions: u32,
    },
    /// Low frequencies divided, high ones kept, a ramp between (LLaMA 3.1).
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are low.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are high.
        high_freq_factor: f64,
        /// Positions of the first training.
        original_max_positions: u32,
    },
    /// Peng et al. 2023, arXiv:2309.00071.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Factor on cos and sin.
        attention_factor: f64,
        /// Rotations over the original length from which on nothing changes.
        beta_fast: f64,
        /// Rotations over the original length up to which `factor` applies in full.
        beta_slow: f64,
        /// Whether the ramp's ends are rounded to whole dimensions.
        truncate: bool,
        /// Positions of the first training.
        original_max_positions: u32,
    },
    /// A divisor for each frequency, one list up to the original length and one beyond.
    LongRope {
        /// `[dim / 2]`, for sequences up to `original_max_positions`.
        short_factors: Vec<f64>,
        /// `[dim / 2]`, for longer ones.
        long_factors: Vec<f64>,
        /// Factor on cos and sin.
        attention_factor: f64,
        /// Positions of the first training.
        original_max_positions: u32,
    },
}

impl Rotary {
    /// Whether the frequencies depend on the length of the sequence. They do in the `dynamic` and
    /// `longrope` scalings, whose cached keys keep the rotation of the length they were made at.
    pub fn depends_on_length(&self) -> bool {
        matches!(self.scaling, RotaryScaling::Dynamic { .. } | RotaryScaling::LongRope { .. })
    }

    /// The angle's growth from one position to the next, `[dim / 2]`, for a sequence of
    /// `sequence_len` tokens.
    pub fn inv_freq(&self, sequence_len: usize) -> Vec<f32> {
        let mut inv_freq = vec![0.0; self.dim as usize / 2];
        self.fill_inv_freq(sequence_len, &mut inv_freq);
        inv_freq
    }

    /// Writes what [`Self::inv_freq`] returns to `to`, `[dim / 2]`. Takes no memory where the frequencies
    /// depend on the length.
    pub fn fill_inv_freq(&self, sequence_len: usize, to: &mut [f32]) {
        fn fill(to: &mut [f32], from: impl IntoIterator<Item = f32>) {
            to.iter_mut().zip(from).for_each(|(to, f)| *to = f);
        }
        match &self.scaling {
            RotaryScaling::None => fill(to, self.frequencies(self.theta)),
            RotaryScaling::Linear { factor } => {
                fill(to, self.frequencies(self.theta).map(|f| f / *factor as f32));
            }
            RotaryScaling::Dynamic { factor, max_positions } => {
                let (dim, max) = (f64::from(self.dim), f64::from(*max_positions));
                let len = (sequence_len as f64).max(max);
                let growth = (factor * len / max - (factor - 1.0)).powf(dim / (dim - 2.0));
                fill(to, self.frequencies(self.theta * growth));
            }
            RotaryScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            } => {
                let (low, high) = (*low_freq_factor, *high_freq_factor);
                let original = f64::from(*original_max_positions);
                let scaled = |f: f32| {
                    let wavelength = 2.0 * PI / f64::from(f);
                    if wavelength > original / low {
                        f / *factor as f32
                    } else if wavelength < original / high {
                        f
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        ((1.0 - smooth) * f64::from(f) / factor + smooth * f64::from(f)) as f32
                    }
                };
                fill(to, self.frequencies(self.theta).map(scaled));
            }
            RotaryScaling::Yarn { .. } => fill(to, self.yarn()),
            RotaryScaling::LongRope {
                short_factors, long_factors, original_max_positions, ..
            } => {
                let long = sequence_len > *original_max_positions as usize;
                let factors = if long { long_factors } else { short_factors };
                let of = |(e, factor)| (1.0 / (factor * self.theta.powf(f64::from(e)))) as f32;
                fill(to, self.exponents().zip(factors).map(of));
            }
        }
    }

    /// Factor on cos and sin.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RotaryScaling::Yarn { attention_factor, .. }
            | RotaryScaling::LongRope { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        }
    }

    /// Appends cos and sin of `position`'s angles, `dim / 2` values each, for frequencies that
    /// [`Self::inv_freq`] made.
    pub fn push_cos_sin(
        &self,
        inv_freq: &[f32],
        position: u32,
        cos: &mut Vec<f32>,
        sin: &mut Vec<f32>,
    ) {
        let factor = self.attention_factor();
        for f in inv_freq {
            let angle = position as f32 * f;
            cos.push(angle.cos() * factor);
            sin.push(angle.sin() * factor);
        }
    }

    /// `2i / dim` in f32.
    fn exponents(&self) -> impl Iterator<Item = f32> + use<> {
        let dim = self.dim;
        (0..dim / 2).map(move |i| (2 * i) as f32 / dim as f32)
    }

    fn frequencies(&self, theta: f64) -> impl Iterator<Item = f32> + use<> {
        self.exponents().map(move |e| 1.0 / theta.powf(f64::from(e)) as f32)
    }

    /// A ramp over the dimensions mixes divided frequencies (from the dimension that turns
    /// `beta_slow` times over the original length on) with unchanged ones (up to the dimension
    /// that turns `beta_fast` times).
    fn yarn(&self) -> Vec<f32> {
        let RotaryScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            truncate,
            original_max_positions,
            ..
        } = self.scaling
        else {
            return Vec::new();
        };
        let dim = f64::from(self.dim);
        let dimension = |rotations: f64| {
            let turns = f64::from(original_max_positions) / (rotations * 2.0 * PI);
            dim * turns.ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        self.exponents()
            .enumerate()
            .map(|(i, e)| {
                let power = self.theta.powf(f64::from(e));
                let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                (ramp / (factor * power) + (1.0 - ramp) / power) as f32
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotary(dim: u32, theta: f64, scaling: RotaryScaling) -> Rotary {
        Rotary { dim, theta, pairs: RotaryPairs::Halves, scaling }
    }

    fn close(found: &[f32], expect: &[f64]) {
        assert_eq!(found.len(), expect.len());
        for (a, b) in found.iter().zip(expect) {
            assert!((f64::from(*a) - b).abs() <= 1e-6 * b.abs(), "{found:?} for {expect:?}");
        }
    }

    #[test]
    fn plain_and_linear_frequencies() {
        close(&rotary(8, 10_000.0, RotaryScaling::None).inv_freq(1), &[1.0, 0.1, 0.01, 0.001]);
        let scaling = RotaryScaling::Linear { factor: 4.0 };
        close(&rotary(8, 10_000.0, scaling).inv_freq(1), &[0.25, 0.025, 0.0025, 0.00025]);
    }

    #[test]
    fn dynamic_changes_past_the_trained_length_only() {
        let dynamic =
            rotary(8, 10_000.0, RotaryScaling::Dynamic { factor: 2.0, max_positions: 32 });
        assert_eq!(dynamic.inv_freq(32), dynamic.inv_freq(5));
        // theta * (2 * 64 / 32 - 1)^(8/6), transformers 5.23 `_compute_dynamic_ntk_parameters`.
        let theta: f64 = 10_000.0 * 3f64.powf(8.0 / 6.0);
        let expect: Vec<f64> = (0..4).map(|i| theta.powf(-f64::from(i) / 4.0)).collect();
        close(&dynamic.inv_freq(64), &expect);
    }

    #[test]
    fn cos_and_sin_carry_the_attention_factor() {
        let scaling = RotaryScaling::LongRope {
            short_factors: vec![1.0, 2.0],
            long_factors: vec![2.0, 4.0],
            attention_factor: 1.5,
            original_max_positions: 16,
        };
        let rotary = rotary(4, 100.0, scaling);
        close(&rotary.inv_freq(16), &[1.0, 0.05]);
        close(&rotary.inv_freq(17), &[0.5, 0.025]);
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        rotary.push_cos_sin(&[1.0, 0.05], 0, &mut cos, &mut sin);
        assert_eq!((cos, sin), (vec![1.5, 1.5], vec![0.0, 0.0]));
    }
}
