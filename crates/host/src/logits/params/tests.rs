//! Lengths, precedence, and what is refused.

use serde_json::json;

use super::*;

fn defaults() -> Defaults {
    Defaults { n_logits: 50, max_positions: 96, eos_token_id: [2].into(), ..Defaults::default() }
}

fn read(params: Value, defaults: &Defaults) -> Result<GenerationParams, HostError> {
    GenerationParams::read(Params(params.as_object().unwrap()), defaults)
}

fn rules(params: Value, defaults: &Defaults, n_prompt: usize) -> Result<Rules, HostError> {
    read(params, defaults)?.rules(n_prompt)
}

#[test]
fn lengths_follow_generate() {
    let with = |max_length, max_new_tokens| Defaults { max_length, max_new_tokens, ..defaults() };
    let check = |params: Value, defaults: Defaults, n_prompt, expect: Option<usize>| {
        let found = rules(params.clone(), &defaults, n_prompt).ok().map(|r| r.max_length);
        assert_eq!(found, expect, "{params} {n_prompt}");
    };
    check(json!({}), defaults(), 5, Some(25));
    check(json!({}), defaults(), 90, Some(96));
    check(json!({}), defaults(), 96, Some(97));
    check(json!({}), defaults(), 97, None);
    check(json!({}), with(Some(64), None), 1, Some(64));
    check(json!({}), with(Some(64), None), 64, None);
    check(json!({}), with(Some(64), Some(3)), 5, Some(8));
    check(json!({"max_new_tokens": 4}), with(Some(64), None), 5, Some(9));
    check(json!({"max_length": 30}), with(Some(64), None), 5, Some(30));
    check(json!({"max_length": 30, "max_new_tokens": 1}), defaults(), 5, Some(6));
    check(json!({"max_new_tokens": 4_000_000_000_u32}), defaults(), 5, Some(97));
    check(json!({"max_length": 5}), defaults(), 5, None);
}

#[test]
fn the_request_goes_before_the_model() {
    let defaults = Defaults {
        forced_bos_token_id: Some(1),
        min_length: Some(9),
        repetition_penalty: Some(1.5),
        no_repeat_ngram_size: Some(3),
        ..defaults()
    };
    let own = rules(json!({}), &defaults, 1).unwrap();
    assert_eq!((own.forced_bos, own.min_length, own.no_repeat_ngram), (Some(1), 9, 3));
    assert_eq!(own.repetition_penalty, Some(1.5));
    let params = json!({
        "forced_bos_token_id": 4, "min_length": 0, "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0, "eos_token_id": [7, 8], "min_new_tokens": 2,
    });
    let asked = rules(params, &defaults, 1).unwrap();
    assert_eq!((asked.forced_bos, asked.no_repeat_ngram), (Some(4), 0));
    assert_eq!((asked.min_length, asked.min_new_tokens), (3, 2));
    assert_eq!((asked.repetition_penalty, asked.eos), (None, [7, 8].into()));
}

#[test]
fn what_is_wrong_is_named() {
    let check = |params: Value| {
        let name = params.as_object().unwrap().keys().next().unwrap().clone();
        let error = rules(params.clone(), &defaults(), 3).expect_err(&params.to_string());
        let HostError::BadRequest { message } = error else { panic!("{error:?}") };
        assert!(message.starts_with(&format!("parameters.{name}")), "{message}");
    };
    check(json!({"max_new_tokens": 0}));
    check(json!({"max_new_tokens": -3}));
    check(json!({"max_new_tokens": "many"}));
    check(json!({"max_new_tokens": 2.5}));
    check(json!({"max_length": 99_999_999_999_u64}));
    check(json!({"repetition_penalty": 0}));
    check(json!({"repetition_penalty": "1"}));
    check(json!({"eos_token_id": 50}));
    check(json!({"suppress_tokens": [1, -1]}));
    check(json!({"bad_words_ids": [[]]}));
    check(json!({"bad_words_ids": [3]}));
    check(json!({"exponential_decay_length_penalty": [1]}));
    check(json!({"do_sample": true}));
    check(json!({"do_sample": 1}));
    check(json!({"num_beams": 4}));
    check(json!({"num_return_sequences": 2}));
    check(json!({"stop_sequence": "x"}));
    check(json!({"guidance_scale": 1.5}));
    check(json!({"return_tensors": true}));
}

#[test]
fn neutral_and_unknown_parameters_pass() {
    let params = json!({
        "do_sample": false, "num_beams": 1, "temperature": 0.7, "top_k": 5, "num_beam_groups": 1.0,
        "guidance_scale": 1, "length_penalty": 2.0, "nonesuch": {"a": 1}, "stop": [],
        "max_new_tokens": null, "return_tensors": false,
    });
    assert_eq!(rules(params, &defaults(), 3).unwrap().max_length, 23);
}
