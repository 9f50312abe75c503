//! Rotary positions on q and k in place.

/// Rotates the first `n_heads` heads of `head_dim` values of a row by its angles: values `i` and
/// `i + n` form a pair, where `cos` and `sin` are `[n]`. The rest of each head passes through.
pub(crate) fn rotate_halves(row: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    let n = cos.len();
    for head in row.chunks_exact_mut(head_dim) {
        let Some((pairs, _)) = head.split_at_mut_checked(2 * n) else { return };
        let (a, b) = pairs.split_at_mut(n);
        for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// The same for values `2 i` and `2 i + 1` as a pair.
pub(crate) fn rotate_pairs(row: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    for head in row.chunks_exact_mut(head_dim) {
        for ((pair, cos), sin) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
            let (a, b) = (pair[0], pair[1]);
            pair[0] = a * cos - b * sin;
            pair[1] = b * cos + a * sin;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_turn_swaps_halves_and_leaves_the_rest() {
        let mut row = [1.0, 2.0, 9.0, 3.0, 4.0, 9.0];
        rotate_halves(&mut row, 3, &[0.0], &[1.0]);
        assert_eq!(row, [-2.0, 1.0, 9.0, -4.0, 3.0, 9.0]);
    }

    #[test]
    fn neighbours_turn_together() {
        let mut row = [1.0, 2.0, 3.0, 4.0, 9.0, 9.0];
        rotate_pairs(&mut row, 6, &[0.0, 1.0], &[1.0, 0.0]);
        assert_eq!(row, [-2.0, 1.0, 3.0, 4.0, 9.0, 9.0]);
    }
}
