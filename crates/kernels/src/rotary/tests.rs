//! Turned heads against the formula.

use std::num::NonZeroUsize;

use crate::random::Random;
use drivetrain_kernels::{Cpu, Isa, Pool, Rotary, RotaryPairs, RotaryRows};

#[test]
fn heads_turn_and_the_rest_stays() {
    let mut random = Random::new(7);
    let pool = Pool::new(NonZeroUsize::new(2).unwrap()).unwrap();
    let (n_positions, stride, first_column) = (40, 3 * 24 + 11, 5);
    for (head_dim, n_rotated, n_heads) in [(24, 24, 3), (24, 6, 3), (10, 10, 1), (20, 0, 2)] {
        let half = n_rotated / 2;
        let angles: Vec<f32> = random.floats(n_positions * half);
        let cos: Vec<f32> = angles.iter().map(|x| x.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|x| x.sin()).collect();
        let positions: Vec<u32> = (0..300).map(|idx| idx * 11 % 40).collect();
        let rows = random.floats(positions.len() * stride);
        for pairs in [RotaryPairs::HalfSplit, RotaryPairs::Interleaved] {
            for isa in crate::available() {
                let rotary = Rotary { pairs, head_dim, n_rotated, cos: &cos, sin: &sin };
                let mut found = rows.clone();
                let positions = &positions[..];
                let heads =
                    RotaryRows { rows: &mut found, stride, first_column, n_heads, positions };
                rotary.apply(Cpu { isa, pool: &pool }, heads).unwrap();
                let mut wanted = rows.clone();
                for (row, position) in wanted.chunks_mut(stride).zip(positions) {
                    for head in 0..n_heads {
                        for i in 0..half {
                            let at = first_column + head * head_dim;
                            let (a, b) = match pairs {
                                RotaryPairs::HalfSplit => (at + i, at + i + half),
                                RotaryPairs::Interleaved => (at + 2 * i, at + 2 * i + 1),
                            };
                            let angle = *position as usize * half + i;
                            let (x, y, c, s) = (row[a], row[b], cos[angle], sin[angle]);
                            (row[a], row[b]) = (x * c - y * s, y * c + x * s);
                        }
                    }
                }
                let close = found.iter().zip(&wanted).all(|(x, y)| (x - y).abs() < 1e-6);
                assert!(close, "{isa} {pairs:?} {n_rotated} of {head_dim}");
            }
        }
    }
}

#[test]
fn a_position_beyond_the_tables_is_refused() {
    let pool = Pool::new(NonZeroUsize::MIN).unwrap();
    let cpu = Cpu { isa: Isa::detect(), pool: &pool };
    let table = [0.0; 6];
    let pairs = RotaryPairs::HalfSplit;
    let rotary = Rotary { pairs, head_dim: 4, n_rotated: 4, cos: &table, sin: &table };
    let rows = &mut [0.0; 4];
    let heads = RotaryRows { rows, stride: 4, first_column: 0, n_heads: 1, positions: &[3] };
    let error = rotary.apply(cpu, heads).unwrap_err().to_string();
    assert_eq!(error, "a position is 3, and should be a row of the tables");
}
