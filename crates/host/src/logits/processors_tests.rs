//! Rules and filters against transformers' own classes: `testdata/make_processors.py` wrote what
//! those make of random logits, with transformers 5.24.0 and torch 2.15.0.

use serde_json::{Value, json};

use super::{Defaults, GenerationParams, Params, Rules, Sampling, Scratch};
use crate::generate::Naming;
use crate::scheduler::Search;

const CASES: &str = include_str!("testdata/processors.json");

fn floats(values: &Value) -> Vec<f32> {
    let float = |value: &Value| value.as_f64().map_or(f32::NEG_INFINITY, |x| x as f32);
    values.as_array().unwrap().iter().map(float).collect()
}

fn ids(values: &Value) -> Vec<u32> {
    values.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap_or(0) as usize
}

/// What a case's parameters ask for, read as a request's are.
fn read(case: &Value, head: &Value) -> (Rules, Sampling) {
    let defaults = Defaults {
        n_logits: number(&head["vocab"]) as u32,
        max_positions: 1000,
        eos_token_id: ids(&head["eos"]).into(),
        top_k: Some(0),
        ..Defaults::default()
    };
    let mut params = case["params"].as_object().unwrap().clone();
    params.insert("do_sample".to_owned(), json!(true));
    params.insert("num_beams".to_owned(), case["beams"].clone());
    params.insert("max_length".to_owned(), case["max_length"].clone());
    // There `min_length` is not checked against the most.
    params.remove("min_length");
    let params = Params::new(&params, Naming::default());
    let params = GenerationParams::read(params, &defaults, false).unwrap();
    let generate = params.generate(number(&case["n_prompt"]), &ids(&case["encoder"])).unwrap();
    let min_length = number(&case["params"]["min_length"]);
    let sampling = match generate.search {
        Search::Sample { sampling, .. } => sampling,
        Search::Beams(beams) => beams.sampling.unwrap(),
        Search::Greedy => panic!("{case}"),
    };
    (Rules { min_length, ..generate.rules }, sampling)
}

fn has_equals(values: &[f32]) -> bool {
    let mut values = values.to_vec();
    values.sort_by(f32::total_cmp);
    values.windows(2).any(|pair| pair[0] == pair[1])
}

#[test]
fn scores_are_those_of_transformers() {
    let all: Value = serde_json::from_str(CASES).unwrap();
    let mut scratch = Scratch::default();
    let cases = all["cases"].as_array().unwrap();
    assert!(cases.len() > 200);
    for case in cases {
        let (rules, sampling) = read(case, &all);
        let mut scores = floats(&case["logits"]);
        rules.apply(&ids(&case["ids"]), &mut scores, &mut scratch);
        sampling.filter(&mut scores, &mut scratch);
        let mut expect = floats(&case["scores"]);
        if has_equals(&floats(&case["logits"])) && case["params"]["top_p"].is_number() {
            // Which of equals top-p keeps is up to torch's sort.
            scores.sort_by(f32::total_cmp);
            expect.sort_by(f32::total_cmp);
        }
        for (id, (found, expect)) in scores.iter().zip(expect).enumerate() {
            let is_same =
                *found == expect || (found - expect).abs() <= 1e-5 * expect.abs().max(1.0);
            assert!(is_same, "token {id}: {found}, not {expect}: {case}");
        }
        assert!(scratch.counts.iter().all(|count| *count == 0));
    }
}
