//! What attention means: plain loops in f64 over keys and values in a row.

use drivetrain_kernels::{Attention, Mask, PositionBias};

/// The keys and values of one sequence, `[n_keys, n_kv_heads, head_dim]`.
pub(super) struct Sequence<'a> {
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
    pub(super) n_keys: usize,
    pub(super) n_kv_heads: usize,
}

/// One head of one query.
pub(super) fn attend(
    attention: &Attention<'_>,
    sequence: &Sequence<'_>,
    query: &[f32],
    (batch_row, head, position): (usize, usize, usize),
) -> Vec<f64> {
    let head_dim = query.len();
    let kv_head = head / (attention.n_heads / sequence.n_kv_heads);
    let at = |key: usize| (key * sequence.n_kv_heads + kv_head) * head_dim;
    let sees = |key: &usize| match attention.mask {
        Mask::Full => true,
        Mask::Causal => *key <= position,
        Mask::Window(n) => *key <= position && key + n > position,
    };
    let score = |key: usize| {
        let products = query.iter().zip(&sequence.keys[at(key)..]);
        let dot: f64 = products.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
        let mut score = dot * f64::from(attention.scale);
        if let Some(cap) = attention.soft_cap.map(f64::from) {
            score = cap * (score / cap).tanh();
        }
        score + bias(attention, (batch_row, head, position), key)
    };
    let keys: Vec<usize> = (0..sequence.n_keys).filter(sees).collect();
    let scores: Vec<f64> = keys.iter().map(|key| score(*key)).collect();
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|score| (score - most).exp()).sum();
    let mut output = vec![0.0; head_dim];
    for (key, score) in keys.iter().zip(&scores) {
        let share = (score - most).exp() / total;
        for (y, value) in output.iter_mut().zip(&sequence.values[at(*key)..]) {
            *y += share * f64::from(*value);
        }
    }
    output
}

fn bias(
    attention: &Attention<'_>,
    (batch_row, head, position): (usize, usize, usize),
    key: usize,
) -> f64 {
    let distance = key as f64 - position as f64;
    f64::from(match attention.bias {
        PositionBias::None => 0.0,
        PositionBias::Alibi(slopes) => return f64::from(slopes[head]) * distance,
        PositionBias::Key { table } => table[head * (table.len() / attention.n_heads) + key],
        PositionBias::Distance { table, zero } => {
            let n = table.len() / attention.n_heads;
            let column = (distance + zero as f64).clamp(0.0, n as f64 - 1.0);
            table[head * n + column as usize]
        }
        PositionBias::Rows { rows, n_keys } => {
            rows[(batch_row * attention.n_heads + head) * n_keys + key]
        }
        other => panic!("{other:?} has no reference"),
    })
}
