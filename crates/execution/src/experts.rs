//! Which experts the rows of a batch take.

/// A row that takes an expert, and the weight that it gives it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pick {
    /// The expert.
    pub expert: u32,
    /// The row.
    pub row: u32,
    /// Its share of the probabilities of those that the row takes.
    pub weight: f32,
}

/// Fills `picks` with the `n_active` most probable experts of each row of the router's `logits`
/// `[n_rows, n_experts]`, by expert and then by row. Of equal ones the first is taken. The softmax over
/// all experts, divided by the sum over those taken, is the softmax over those taken.
pub fn pick_experts(logits: &[f32], n_experts: usize, n_active: usize, picks: &mut Vec<Pick>) {
    picks.clear();
    for (row, logits) in logits.chunks_exact(n_experts.max(1)).enumerate() {
        let first = picks.len();
        for _ in 0..n_active.min(n_experts) {
            let taken = &picks[first..];
            let left = (0..n_experts).filter(|e| taken.iter().all(|p| p.expert as usize != *e));
            let best =
                left.reduce(
                    |best, e| {
                        if logits[e].total_cmp(&logits[best]).is_gt() { e } else { best }
                    },
                );
            let Some(best) = best else { break };
            picks.push(Pick { expert: best as u32, row: row as u32, weight: logits[best] });
        }
        let Some(max) = picks.get(first).map(|pick| pick.weight) else { continue };
        let taken = &mut picks[first..];
        let sum: f32 = taken.iter().map(|pick| (pick.weight - max).exp()).sum();
        taken.iter_mut().for_each(|pick| pick.weight = (pick.weight - max).exp() / sum);
    }
    picks.sort_unstable_by_key(|pick| (pick.expert, pick.row));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_take_their_most_probable() {
        let mut picks = Vec::new();
        pick_experts(&[0.0, 2.0, 1.0, 5.0, 5.0, 5.0], 3, 2, &mut picks);
        let found: Vec<(u32, u32)> = picks.iter().map(|pick| (pick.expert, pick.row)).collect();
        assert_eq!(found, [(0, 1), (1, 0), (1, 1), (2, 0)]);
        let share = 1.0 / (1.0 + (-1f32).exp());
        let expect = [0.5, share, 0.5, 1.0 - share];
        for (pick, expect) in picks.iter().zip(expect) {
            assert!((pick.weight - expect).abs() < 1e-6, "{picks:?}");
        }
    }
}
