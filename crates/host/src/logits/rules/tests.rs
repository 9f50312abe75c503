//! Against the processors of transformers 5.23.0 (torch 2.11.0) on one row of logits.

use super::*;

const LOGITS: [f32; 8] = [-0.294, 1.572, 1.894, -2.229, 3.382, -1.79, -0.711, 2.465];
const INF: f32 = f32::NEG_INFINITY;

fn check(rules: Rules, ids: &[TokenId], changed: &[(usize, f32)]) {
    let mut scores = LOGITS;
    rules.apply(ids, &mut scores, &mut Scratch::default());
    let mut expect = LOGITS;
    changed.iter().for_each(|&(idx, score)| expect[idx] = score);
    for (found, wanted) in scores.iter().zip(expect) {
        let is_same = *found == wanted || (found - wanted).abs() < 1e-6;
        assert!(is_same, "{rules:?}: {scores:?}, expected {expect:?}");
    }
    assert!(!rules.are_idle(ids) || changed.is_empty(), "{rules:?}");
}

#[test]
fn rules_that_do_nothing_are_idle() {
    let rules = Rules {
        n_prompt: 3,
        eos: [0].into(),
        max_length: 9,
        min_length: 4,
        min_new_tokens: 2,
        forced_bos: Some(1),
        forced_eos: [2].into(),
        begin_suppress: [5].into(),
        decay: Some((3, 1.5)),
        ..Rules::default()
    };
    for (n_ids, is_idle) in [(3, false), (4, false), (5, true), (6, true), (7, false), (8, false)] {
        assert_eq!(rules.are_idle(&[7; 8][..n_ids]), is_idle, "{n_ids}");
    }
    let idle = Rules { n_prompt: 1, eos: [0].into(), max_length: 9, ..Rules::default() };
    assert!(idle.are_idle(&[7]) && idle.are_idle(&[7; 8]));
    for rules in [
        Rules { logit_bias: [(1, 2.0)].into(), ..idle.clone() },
        Rules { sequence_bias: [(vec![1], 2.0)].into(), ..idle.clone() },
        Rules { encoder_repetition_penalty: Some(2.0), ..idle.clone() },
        Rules { repetition_penalty: Some(2.0), ..idle.clone() },
        Rules { frequency_penalty: -1.0, ..idle.clone() },
        Rules { presence_penalty: 1.0, ..idle.clone() },
        Rules { no_repeat_ngram: 2, ..idle.clone() },
        Rules { encoder_no_repeat_ngram: 2, ..idle.clone() },
        Rules { bad_words: words(&[&[2]]), ..idle.clone() },
        Rules { forced_bos: Some(1), ..idle.clone() },
        Rules { removes_invalid: true, ..idle.clone() },
        Rules { suppress: [3].into(), ..idle.clone() },
        Rules { begin_suppress: [3].into(), ..idle.clone() },
    ] {
        assert!(!rules.are_idle(&[7]), "{rules:?}");
    }
}

fn words(words: &[&[TokenId]]) -> Arc<[Vec<TokenId>]> {
    words.iter().map(|word| word.to_vec()).collect()
}

#[test]
fn repetition_counts_once_an_id() {
    let rules = Rules { repetition_penalty: Some(1.7), ..Rules::default() };
    check(rules.clone(), &[1, 2, 2, 5, 1], &[(1, 0.924_705_86), (2, 1.114_117_6), (5, -3.043)]);
    check(rules, &[900, 8, u32::MAX], &[]);
}

#[test]
fn ngrams_do_not_come_twice() {
    let rules = |n| Rules { no_repeat_ngram: n, ..Rules::default() };
    check(rules(2), &[3, 4, 5, 3, 6, 3], &[(4, INF), (6, INF)]);
    check(rules(1), &[3, 4], &[(3, INF), (4, INF)]);
    check(rules(5), &[3, 4], &[]);
    check(rules(usize::MAX), &[3, 4], &[]);
}

#[test]
fn bad_words_are_cut_off_before_their_last_token() {
    let bad_words = words(&[&[2], &[4, 5], &[7, 1], &[0], &[]]);
    let rules = Rules { bad_words, eos: [0].into(), ..Rules::default() };
    check(rules, &[3, 4], &[(2, INF), (5, INF)]);
}

#[test]
fn no_end_before_the_least_length() {
    let rules = |min_length| Rules { min_length, eos: [0, 3].into(), ..Rules::default() };
    check(rules(4), &[1, 2, 3], &[(0, INF), (3, INF)]);
    check(rules(3), &[1, 2, 3], &[]);
    let rules = Rules { min_new_tokens: 2, n_prompt: 2, eos: [0].into(), ..Rules::default() };
    check(rules.clone(), &[1, 2, 3], &[(0, INF)]);
    check(rules, &[1, 2, 3, 3], &[]);
}

#[test]
fn the_first_and_the_last_can_be_forced() {
    let only = |ids: &[usize]| -> Vec<(usize, f32)> {
        (0..8).map(|idx| (idx, if ids.contains(&idx) { 0.0 } else { INF })).collect()
    };
    let rules = Rules { forced_bos: Some(6), ..Rules::default() };
    check(rules.clone(), &[2], &only(&[6]));
    check(rules, &[2, 6], &[]);
    let rules = Rules { forced_eos: [5, 1].into(), max_length: 4, ..Rules::default() };
    check(rules.clone(), &[2, 3, 4], &only(&[5, 1]));
    check(rules, &[2, 3], &[]);
}

#[test]
fn ends_gain_with_length() {
    let rules =
        Rules { decay: Some((1, 1.3)), n_prompt: 2, eos: [0, 4].into(), ..Rules::default() };
    check(rules.clone(), &[1, 2, 3, 3, 3], &[(0, -0.091_14), (4, 5.715_58)]);
    check(rules, &[1, 2, 3], &[]);
}

#[test]
fn some_are_never_said_and_some_not_first() {
    let rules = Rules { suppress: [1, 6].into(), ..Rules::default() };
    check(rules, &[1], &[(1, INF), (6, INF)]);
    let rules = Rules { begin_suppress: [1, 6].into(), n_prompt: 2, ..Rules::default() };
    check(rules.clone(), &[1, 2], &[(1, INF), (6, INF)]);
    check(rules, &[1, 2, 3], &[]);
    let forced =
        Rules { begin_suppress: [1].into(), forced_bos: Some(6), n_prompt: 1, ..Rules::default() };
    check(forced, &[2, 6], &[(1, INF)]);
}

/// As vLLM 0.11, `model_executor/layers/utils.py`, `apply_penalties`: the prompt does not count.
#[test]
fn new_ids_lose_by_their_number_and_their_presence() {
    let rules =
        Rules { frequency_penalty: 0.5, presence_penalty: 0.25, n_prompt: 2, ..Rules::default() };
    check(rules.clone(), &[1, 2, 2, 5, 2, 900], &[(2, 0.644), (5, -2.54)]);
    check(rules.clone(), &[1, 2], &[]);
    check(Rules { frequency_penalty: 0.0, ..rules }, &[1, 2, 3, 3, 3], &[(3, -2.479)]);
}

#[test]
fn counts_are_left_clear() {
    let rules = Rules { frequency_penalty: 1.0, ..Rules::default() };
    let mut scratch = Scratch::default();
    for n_logits in [8, 3, 5] {
        let mut scores = vec![0.0; n_logits];
        rules.apply(&[1, 1, 7, 4], &mut scores, &mut scratch);
        let expect = [0.0, -2.0, 0.0, 0.0, -1.0, 0.0, 0.0, -1.0];
        assert_eq!(scores, expect[..n_logits]);
    }
}

#[test]
fn biases_are_added_before_penalties() {
    let rules = Rules {
        logit_bias: [(3, 5.0), (900, 1.0)].into(),
        sequence_bias: [(vec![1], -0.572), (vec![2, 0], 1.0), (vec![3, 0], 9.0)].into(),
        repetition_penalty: Some(2.0),
        ..Rules::default()
    };
    check(rules, &[1, 2], &[(0, 0.706), (1, 0.5), (2, 0.947), (3, 2.771)]);
}

#[test]
fn the_encoders_ids_are_favoured_and_its_runs_banned() {
    let encoder: Arc<[TokenId]> = [4, 5, 4, 7].into();
    let rules = Rules {
        encoder: encoder.clone(),
        encoder_repetition_penalty: Some(2.0),
        ..Rules::default()
    };
    check(rules, &[1], &[(4, 6.764), (5, -0.895), (7, 4.93)]);
    let rules = Rules { encoder, encoder_no_repeat_ngram: 2, ..Rules::default() };
    check(rules.clone(), &[1, 4], &[(5, INF), (7, INF)]);
    check(rules, &[4, 1], &[]);
}

#[test]
fn what_is_no_number_can_be_replaced() {
    let rules = Rules { removes_invalid: true, suppress: [0].into(), ..Rules::default() };
    let mut scores = [1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -2.0];
    rules.apply(&[0], &mut scores, &mut Scratch::default());
    assert_eq!(scores, [INF, 0.0, f32::MAX, f32::MIN, -2.0]);
}

#[test]
fn all_together_in_order() {
    let rules = Rules {
        repetition_penalty: Some(1.2),
        no_repeat_ngram: 2,
        bad_words: words(&[&[5]]),
        min_length: 9,
        eos: [0].into(),
        decay: Some((0, 1.5)),
        n_prompt: 1,
        suppress: [7].into(),
        ..Rules::default()
    };
    let changed = [(0, INF), (1, 1.31), (2, INF), (3, -2.674_8), (5, INF), (7, INF)];
    check(rules, &[1, 2, 3, 1], &changed);
}
