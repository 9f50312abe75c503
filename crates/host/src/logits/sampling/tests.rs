//! Filters against plain ones that sort, and draws against the probabilities they are to have.

use proptest::prelude::*;

use super::*;

/// Logits of a model that knows roughly what comes next.
fn logits(n: usize) -> Vec<f32> {
    (0..n).map(|i| 6.0 - ((i * 7919 % n) as f32 + 1.0).ln() * 1.3).collect()
}

fn key(position: u64) -> DrawKey {
    DrawKey { seed: 77, choice: 0, position }
}

/// The probabilities of what `sampling` leaves, in double precision.
fn probabilities(sampling: &Sampling, logits: &[f32]) -> Vec<f64> {
    let mut scores = logits.to_vec();
    sampling.filter(&mut scores, &mut Scratch::default());
    let exps: Vec<f64> = scores.iter().map(|score| f64::from(*score).exp()).collect();
    let total: f64 = exps.iter().sum();
    exps.iter().map(|exp| exp / total).collect()
}

/// The filters one by one, each with its neighbours.
fn combinations() -> Vec<Sampling> {
    let plain = Sampling { min_kept: 1, ..Sampling::default() };
    vec![
        plain.clone(),
        Sampling { temperature: Some(0.7), ..plain.clone() },
        Sampling { temperature: Some(1.6), top_k: Some(50), ..plain.clone() },
        Sampling { top_p: Some(0.9), ..plain.clone() },
        Sampling { top_k: Some(20), top_p: Some(0.8), ..plain.clone() },
        Sampling { min_p: Some(0.05), ..plain.clone() },
        Sampling { top_p: Some(0.95), min_p: Some(0.02), ..plain.clone() },
        Sampling { typical_p: Some(0.8), ..plain.clone() },
        Sampling { epsilon_cutoff: Some(0.004), ..plain.clone() },
        Sampling { eta_cutoff: Some(0.01), ..plain.clone() },
        Sampling {
            temperature: Some(1.2),
            top_k: Some(100),
            top_p: Some(0.97),
            min_p: Some(0.001),
            typical_p: Some(0.95),
            epsilon_cutoff: Some(0.0005),
            eta_cutoff: Some(0.001),
            ..plain
        },
    ]
}

/// Pearson's statistic as a standard normal variable (Wilson and Hilferty 1931), which is good for 5
/// and more degrees of freedom. Cells that are expected less than 5 times are taken together.
fn deviation(counts: &[u32], probabilities: &[f64], n_draws: f64) -> f64 {
    let (mut statistic, mut n_cells) = (0.0, 0.0);
    let (mut rare, mut rare_expected) = (0.0, 0.0);
    for (&count, &probability) in counts.iter().zip(probabilities) {
        let expected = probability * n_draws;
        if expected < 5.0 {
            (rare, rare_expected) = (rare + f64::from(count), rare_expected + expected);
        } else {
            statistic += (f64::from(count) - expected).powi(2) / expected;
            n_cells += 1.0;
        }
    }
    if rare_expected > 0.0 {
        statistic += (rare - rare_expected).powi(2) / rare_expected;
        n_cells += 1.0;
    }
    let freedom: f64 = n_cells - 1.0;
    let spread = 2.0 / (9.0 * freedom);
    ((statistic / freedom).cbrt() - (1.0 - spread)) / spread.sqrt()
}

/// 20,000 draws with fixed seeds: none of the combinations is off by more than what happens once in
/// 30,000 times (4 standard deviations, one-sided).
#[test]
fn draws_have_the_probabilities_of_the_softmax() {
    const N_DRAWS: u32 = 20_000;
    let mut scratch = Scratch::default();
    for sampling in combinations() {
        // Without filters sums go by blocks, of which there are several.
        let logits = logits(if sampling.keeps_all() { 300 } else { 80 });
        let mut scores = logits.clone();
        let mut counts = vec![0_u32; logits.len()];
        for position in 0..N_DRAWS {
            scores.copy_from_slice(&logits);
            let id = sampling.draw(&mut scores, key(u64::from(position)), &mut scratch).unwrap();
            counts[id as usize] += 1;
        }
        let expected = probabilities(&sampling, &logits);
        for (count, probability) in counts.iter().zip(&expected) {
            assert!(*probability > 0.0 || *count == 0, "{sampling:?}");
        }
        let found = deviation(&counts, &expected, f64::from(N_DRAWS));
        assert!(found < 4.0, "{sampling:?}: {found} standard deviations");
    }
}

#[test]
fn a_draw_depends_on_its_key_and_nothing_else() {
    let rows: Vec<Vec<f32>> = [400, 50_257, 70, 1].map(logits).into();
    let mut shared = Scratch::default();
    for sampling in combinations() {
        let alone: Vec<_> = (0..20)
            .map(|position| {
                let mut scores = rows[0].clone();
                sampling.draw(&mut scores, key(position), &mut Scratch::default())
            })
            .collect();
        for position in (0..20).rev() {
            for other in &rows {
                let key = DrawKey { seed: position, choice: 3, position: 1 };
                sampling.draw(&mut other.clone(), key, &mut shared);
            }
            let drawn = sampling.draw(&mut rows[0].clone(), key(position), &mut shared);
            assert_eq!(drawn, alone[position as usize]);
        }
        assert!(alone.iter().any(|id| *id != alone[0]), "{sampling:?}");
    }
}

#[test]
fn what_cant_be_drawn_is_not() {
    let inf = f32::INFINITY;
    for sampling in combinations() {
        let draw =
            |scores: &[f32]| sampling.draw(&mut scores.to_vec(), key(0), &mut Scratch::default());
        assert_eq!(draw(&[]), None);
        assert_eq!(draw(&[-inf; 3]), None);
        assert_eq!(draw(&[0.0, f32::NAN]), None);
        assert_eq!(draw(&[-inf, -7.0, -inf]), Some(1));
        assert_eq!(draw(&[0.0, inf, 3.0]), Some(1));
        assert_eq!(draw(&[f32::MIN, f32::MIN, 5.0]), Some(2));
        assert_eq!(draw(&[f32::MIN, f32::MAX, 5.0]), Some(1));
    }
}

/// Top-k then top-p by a sort.
fn plainly(scores: &[f32], k: Option<usize>, p: f64, min_kept: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    let least =
        k.map_or(f32::NEG_INFINITY, |k| scores[order[k.max(min_kept).min(order.len()) - 1]]);
    let weight = |id: usize| {
        if scores[id] >= least { f64::from(scores[id] - scores[order[0]]).exp() } else { 0.0 }
    };
    let total: f64 = (0..scores.len()).map(weight).sum();
    let mut kept = vec![false; scores.len()];
    let mut before = 0.0;
    for (place, &id) in order.iter().enumerate() {
        kept[id] = scores[id] >= least && (place < min_kept || before < p * total);
        before += weight(id);
    }
    kept
}

proptest! {
    #[test]
    fn filters_keep_what_a_sort_keeps(
        scores in prop::collection::vec(-400_i32..200, 1..700),
        k in prop::option::of(1_usize..300),
        // No multiple of what equal weights sum to, which rounding would decide on.
        p in prop::sample::select(vec![0.0_f32, 0.123_457, 0.500_123, 0.912_345, 0.991_234]),
        min_kept in 1_usize..4,
        scale in prop::sample::select(vec![7.0_f32, 40.0, 300.0]),
    ) {
        let scores: Vec<f32> = scores.iter().map(|score| *score as f32 / scale).collect();
        let sampling = Sampling { top_k: k, top_p: Some(p), min_kept, ..Sampling::default() };
        let mut found = scores.clone();
        sampling.filter(&mut found, &mut Scratch::default());
        let expect = plainly(&scores, k, f64::from(p), min_kept);
        let mut n_kept = 0;
        for ((found, score), is_kept) in found.iter().zip(&scores).zip(expect) {
            prop_assert_eq!(*found == *score, is_kept);
            prop_assert!(is_kept || *found == f32::NEG_INFINITY);
            n_kept += usize::from(is_kept);
        }
        prop_assert!(n_kept >= min_kept.min(scores.len()));
    }

    #[test]
    fn something_is_always_drawn(
        scores in prop::collection::vec(prop_oneof![-1e30_f32..1e30, -50.0_f32..50.0], 1..200),
        temperature in 1e-5_f32..100.0,
        parts in prop::array::uniform4(prop::option::of(1e-6_f32..0.999_999)),
        seed in any::<u64>(),
    ) {
        let [top_p, min_p, typical_p, cutoff] = parts;
        let sampling = Sampling {
            temperature: Some(temperature),
            top_p,
            min_p,
            typical_p,
            epsilon_cutoff: cutoff,
            eta_cutoff: cutoff,
            top_k: (seed % 3 == 0).then_some(1 + (seed % 90) as usize),
            min_kept: 1,
        };
        let key = DrawKey { seed, choice: 1, position: 2 };
        let mut scratch = Scratch::default();
        let id = sampling.draw(&mut scores.clone(), key, &mut scratch).unwrap();
        let mut left = scores;
        sampling.filter(&mut left, &mut scratch);
        prop_assert!(left[id as usize] > f32::NEG_INFINITY);
    }
}
