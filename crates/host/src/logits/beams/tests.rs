//! Against what transformers finds with the same model: `testdata/make_beams.py`.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::*;

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The model: logits that depend on the last two ids and the length.
fn logits(seed: u64, ids: &[TokenId], vocab: usize, out: &mut Vec<f32>) {
    let from_end = |n: usize| ids.len().checked_sub(n).map_or(0, |at| u64::from(ids[at]));
    let key = seed
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .wrapping_add(from_end(1).wrapping_mul(0x100_0000_01B3))
        .wrapping_add(from_end(2).wrapping_mul(0xC2B2_AE3D))
        .wrapping_add((ids.len() as u64).wrapping_mul(0x27D4_EB2F_1656_67C5));
    out.extend((0..vocab as u64).map(|token| {
        let hashed = mix(key.wrapping_add(token.wrapping_mul(0xD6E8_FEB8_6659_FD93)));
        let hashed = mix(hashed.wrapping_add(0x9E37_79B9_7F4A_7C15));
        (hashed >> 40) as f32 / (1 << 21) as f32 - 4.0
    }));
}

/// Runs a search to its end, or for `n_steps`.
fn run(
    search: &mut BeamSearch,
    seed: u64,
    prompt: &[TokenId],
    vocab: usize,
    n_steps: usize,
) -> usize {
    let mut rows = vec![prompt.to_vec()];
    let mut scratch = Scratch::default();
    for n_done in 0..n_steps {
        assert_eq!(search.n_rows(), rows.len());
        let mut scores = Vec::new();
        rows.iter().for_each(|ids| logits(seed, ids, vocab, &mut scores));
        search.step(&mut scores, &mut scratch).unwrap();
        if search.is_done() {
            return n_done + 1;
        }
        rows = search
            .next_rows()
            .iter()
            .map(|&(parent, token)| [rows[parent].as_slice(), &[token]].concat())
            .collect();
        let mut distinct = rows.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), rows.len(), "rows are copies");
        assert!(rows.len() <= search.max_rows());
    }
    n_steps
}

fn whole(value: &Value) -> usize {
    value.as_u64().unwrap_or(0) as usize
}

fn ids(value: &Value) -> Vec<TokenId> {
    match value {
        Value::Array(list) => list.iter().map(|id| whole(id) as TokenId).collect(),
        Value::Null => Vec::new(),
        one => vec![whole(one) as TokenId],
    }
}

fn search(case: &Value) -> BeamSearch {
    let settings = &case["settings"];
    let prompt = ids(&case["prompt"]);
    let n_prompt = prompt.len();
    let decay = &settings["exponential_decay_length_penalty"];
    let min_new_tokens = whole(&settings["min_new_tokens"]);
    let rules = Rules {
        n_prompt,
        max_length: n_prompt + whole(&settings["max_new_tokens"]),
        eos: ids(&case["eos"]).into(),
        repetition_penalty: settings["repetition_penalty"].as_f64().map(|p| p as f32),
        no_repeat_ngram: whole(&settings["no_repeat_ngram_size"]),
        min_length: match min_new_tokens {
            0 => whole(&settings["min_length"]),
            n => n_prompt + n,
        },
        min_new_tokens,
        forced_bos: ids(&settings["forced_bos_token_id"]).first().copied(),
        forced_eos: ids(&settings["forced_eos_token_id"]).into(),
        decay: decay[1].as_f64().map(|factor| (whole(&decay[0]), factor)),
        suppress: Arc::new([whole(&case["vocab"]) as TokenId - 1]),
        ..Rules::default()
    };
    BeamSearch::new(params(settings), rules, &prompt, None)
}

fn params(settings: &Value) -> BeamParams {
    BeamParams {
        n_beams: whole(&settings["num_beams"]),
        n_return: whole(&settings["num_return_sequences"]),
        length_penalty: settings["length_penalty"].as_f64().unwrap(),
        early_stopping: match &settings["early_stopping"] {
            Value::Bool(false) => EarlyStopping::Heuristic,
            Value::Bool(true) => EarlyStopping::Immediate,
            _ => EarlyStopping::Never,
        },
        n_groups: whole(&settings["num_beam_groups"]).max(1),
        diversity_penalty: settings["diversity_penalty"].as_f64().unwrap_or(0.0) as f32,
        sampling: None,
        seed: 0,
    }
}

fn check_file(name: &str) -> usize {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/logits/testdata").join(name);
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut wrong = Vec::new();
    for case in &cases {
        let mut search = search(case);
        let prompt = ids(&case["prompt"]);
        let vocab = whole(&case["vocab"]);
        run(&mut search, whole(&case["seed"]) as u64, &prompt, vocab, 100);
        assert!(search.is_done());
        let choices = search.choices(false);
        let wanted = case["found"].as_array().unwrap();
        let is_same = choices.len() == wanted.len()
            && choices.iter().zip(wanted).all(|(choice, wanted)| is_same(choice, wanted, case));
        if !is_same {
            wrong.push(format!("{case}\n    {choices:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}: {}", wrong.len(), cases.len(), wrong.join("\n"));
    cases.len()
}

fn is_same(choice: &Choice, wanted: &Value, case: &Value) -> bool {
    let score = wanted["score"].as_f64().unwrap();
    let found = f64::from(choice.score.unwrap());
    // What was never filled has the score -1e9, and what transformers has in its place is chance.
    if score < -9e8 {
        return found < -9e8;
    }
    let eos = ids(&case["eos"]);
    let mut wanted_ids = ids(&wanted["ids"]);
    let has_groups = case["settings"]["num_beam_groups"].as_u64().is_some();
    if let Some(last) = wanted_ids.last_mut().filter(|_| has_groups)
        && choice.finish == FinishReason::EndToken
        && Some(&*last) == eos.first()
        && let Some(said) = choice.ids.last()
        && eos.contains(said)
    {
        // The group search of transformers shows the first end token for any.
        *last = *said;
    }
    let ends = choice.ids.last().is_some_and(|id| eos.contains(id));
    (found - score).abs() <= 1e-4 * score.abs().max(1.0)
        && choice.ids == wanted_ids
        && ends == (choice.finish == FinishReason::EndToken)
}

#[test]
fn beams_are_those_of_transformers() {
    assert!(check_file("beams.json") >= 200);
}

#[test]
fn groups_are_those_of_transformers() {
    assert!(check_file("beam_groups.json") >= 50);
}

fn plain(n_beams: usize, n_new: usize, eos: &[TokenId]) -> (BeamParams, Rules) {
    let params = BeamParams {
        n_beams,
        n_return: n_beams,
        length_penalty: 1.0,
        early_stopping: EarlyStopping::Heuristic,
        n_groups: 1,
        diversity_penalty: 0.0,
        sampling: None,
        seed: 5,
    };
    let rules = Rules { n_prompt: 1, max_length: 1 + n_new, eos: eos.into(), ..Rules::default() };
    (params, rules)
}

#[test]
fn one_beam_is_greedy() {
    let (params, rules) = plain(1, 9, &[]);
    let mut search = BeamSearch::new(params, rules, &[3], None);
    assert_eq!(run(&mut search, 11, &[3], 50, 100), 9);
    let mut greedy = vec![3];
    for _ in 0..9 {
        let mut scores = Vec::new();
        logits(11, &greedy, 50, &mut scores);
        greedy.extend(crate::logits::arg_max(&scores));
    }
    let choices = search.choices(false);
    assert_eq!(choices[0].ids, greedy[1..]);
    assert_eq!(choices[0].finish, FinishReason::Length);
}

#[test]
fn a_cut_off_search_gives_the_best_there_is() {
    for n_groups in [1, 2] {
        for n_steps in 0..6 {
            let (params, rules) = plain(4, 20, &[7, 8]);
            let mut search = BeamSearch::new(BeamParams { n_groups, ..params }, rules, &[3], None);
            run(&mut search, 4, &[3], 12, n_steps);
            if search.is_done() {
                continue;
            }
            let choices = search.choices(true);
            assert!(!choices.is_empty() && choices.len() <= 4, "{n_steps}: {choices:?}");
            assert!(choices.is_sorted_by(|a, b| a.score >= b.score));
            for choice in &choices {
                assert!(choice.score.unwrap() > -1e3);
                assert!(choice.ids.len() <= n_steps);
                let ends = choice.ids.last().is_some_and(|id| [7, 8].contains(id));
                assert_eq!(ends, choice.finish == FinishReason::EndToken);
                assert!(ends || choice.finish == FinishReason::Shutdown);
            }
            assert!(choices.iter().any(|choice| choice.finish == FinishReason::Shutdown));
        }
    }
}

#[test]
fn drawn_beams_follow_the_seed() {
    let (params, rules) = plain(4, 8, &[7]);
    let found = |seed, sampling| {
        let params = BeamParams { seed, sampling, ..params.clone() };
        let mut search = BeamSearch::new(params, rules.clone(), &[3], None);
        run(&mut search, 4, &[3], 40, 100);
        search.choices(false)
    };
    let sampling = || Some(Sampling { min_kept: 2, ..Sampling::default() });
    assert_eq!(found(1, sampling()), found(1, sampling()));
    let different =
        (0..10).filter(|seed| found(*seed, sampling()) != found(99, sampling())).count();
    assert!(different > 5, "{different}");
    // So cold that what is drawn is nearly always the best.
    let cold = Some(Sampling { temperature: Some(1e-3), min_kept: 2, ..Sampling::default() });
    let best = |seed| found(seed, cold.clone())[0].ids.clone();
    assert!((2..8).all(|seed| best(seed) == best(1)));
}

#[test]
fn damaged_logits_are_an_error() {
    for bad in [f32::NAN, f32::INFINITY] {
        let (params, rules) = plain(2, 5, &[]);
        let mut search = BeamSearch::new(params, rules, &[3], None);
        let mut scores = vec![0.0, bad, 1.0, 2.0];
        assert!(search.step(&mut scores, &mut Scratch::default()).is_err());
    }
    let (params, rules) = plain(2, 5, &[]);
    let mut search = BeamSearch::new(params, rules, &[3], None);
    assert!(search.step(&mut [], &mut Scratch::default()).is_err());
}

#[test]
fn more_beams_than_tokens_do_not_run_out() {
    for (n_beams, vocab, n_groups) in [(16, 2, 1), (16, 1, 1), (8, 3, 4), (5, 2, 1)] {
        let (params, rules) = plain(n_beams, 6, &[1]);
        let mut search = BeamSearch::new(BeamParams { n_groups, ..params }, rules, &[0], None);
        run(&mut search, 2, &[0], vocab, 100);
        assert!(search.is_done());
        assert_eq!(search.choices(false).len(), n_beams);
    }
}
