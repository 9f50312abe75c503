//! Lengths, precedence, and what is refused.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::generate::Naming;
use crate::logits::{BeamParams, Sampling};

fn defaults() -> Defaults {
    Defaults { n_logits: 50, max_positions: 96, eos_token_id: [2].into(), ..Defaults::default() }
}

fn read(params: &Value, defaults: &Defaults) -> Result<GenerationParams, HostError> {
    let map = params.as_object().unwrap();
    GenerationParams::read(Params::new(map, Naming::default()), defaults, false)
}

fn rules(params: Value, defaults: &Defaults, n_prompt: usize) -> Result<Rules, HostError> {
    read(&params, defaults)?.rules(n_prompt, &[])
}

fn generate(params: &Value) -> Generate {
    read(params, &defaults()).unwrap().generate(3, &[5, 6]).unwrap()
}

fn sampling(params: &Value, defaults: &Defaults) -> Sampling {
    match read(params, defaults).unwrap().generate(3, &[]).unwrap().search {
        Search::Sample { sampling, .. } => sampling,
        search => panic!("{params}: {search:?}"),
    }
}

fn beams(params: &Value, defaults: &Defaults) -> BeamParams {
    match read(params, defaults).unwrap().generate(3, &[]).unwrap().search {
        Search::Beams(beams) => *beams,
        search => panic!("{params}: {search:?}"),
    }
}

fn message(result: Result<impl std::fmt::Debug, HostError>) -> String {
    match result.unwrap_err() {
        HostError::BadRequest { message } => message,
        error => panic!("{error:?}"),
    }
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
    check(json!({"max_tokens": 4}), with(Some(64), None), 5, Some(9));
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
        let message = message(rules(params.clone(), &defaults(), 3));
        assert!(message.starts_with(&format!("parameters.{name}")), "{message}");
    };
    for name in ["max_new_tokens", "max_tokens", "num_beams", "n", "best_of"] {
        [json!(0), json!(-3), json!("many"), json!(2.5), json!([1]), json!(true)]
            .into_iter()
            .for_each(|value| check(json!({ name: value })));
    }
    check(json!({"max_length": 99_999_999_999_u64}));
    for name in ["repetition_penalty", "encoder_repetition_penalty"] {
        [json!(0), json!("1"), json!(1e300)].into_iter().for_each(|v| check(json!({ name: v })));
    }
    for name in ["top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"] {
        [json!(-0.1), json!(1.1), json!("x")].into_iter().for_each(|v| check(json!({ name: v })));
    }
    for name in ["frequency_penalty", "presence_penalty"] {
        [json!(-2.1), json!(2.1)].into_iter().for_each(|value| check(json!({ name: value })));
    }
    for name in ["logprobs", "top_logprobs", "top_n_tokens", "prompt_logprobs"] {
        [json!(-1), json!(21), json!("x")].into_iter().for_each(|v| check(json!({ name: v })));
    }
    for name in ["stop", "stop_sequences", "stop_strings", "bad_words"] {
        let long = "x".repeat(1025);
        [json!(7), json!([""]), json!([1]), json!(long), json!(vec!["x"; 1025])]
            .into_iter()
            .for_each(|value| check(json!({ name: value })));
    }
    check(json!({"stop": vec!["x"; 65]}));
    check(json!({"eos_token_id": 50}));
    check(json!({"eos_token_id": vec![1; 65]}));
    check(json!({"suppress_tokens": [1, -1]}));
    check(json!({"suppress_tokens": vec![1; 4097]}));
    check(json!({"bad_words_ids": [[]]}));
    check(json!({"bad_words_ids": [3]}));
    check(json!({"bad_words_ids": [vec![3; 20_000]]}));
    check(json!({"sequence_bias": {"3": 1.0}}));
    check(json!({"sequence_bias": [[[3], 101.0]]}));
    check(json!({"sequence_bias": [[[], 1.0]]}));
    check(json!({"logit_bias": {"50": 1.0}}));
    check(json!({"logit_bias": {"x": 1.0}}));
    check(json!({"logit_bias": {"1": 100.5}}));
    check(json!({"logit_bias": [1]}));
    check(json!({"exponential_decay_length_penalty": [1]}));
    check(json!({"do_sample": 1}));
    check(json!({"temperature": -0.1}));
    check(json!({"temperature": 1e30}));
    check(json!({"top_k": -2}));
    check(json!({"typical_p": 0.0}));
    check(json!({"seed": -2}));
    check(json!({"seed": 0.5}));
    check(json!({"num_beams": 17}));
    check(json!({"n": 129}));
    check(json!({"early_stopping": "soon"}));
    check(json!({"length_penalty": 51}));
    check(json!({"prompt_lookup_num_tokens": 65}));
    check(json!({"max_matching_ngram_size": 0}));
    check(json!({"guidance_scale": 1.5}));
    check(json!({"penalty_alpha": 0.6}));
    check(json!({"constraints": [1]}));
    check(json!({"force_words_ids": [[1]]}));
    check(json!({"watermarking_config": {}}));
    check(json!({"return_tensors": true}));
}

#[test]
fn what_contradicts_itself_is_named() {
    let check = |params: Value, names: [&str; 2]| {
        let message = message(rules(params, &defaults(), 3));
        for name in names {
            assert!(message.contains(&format!("parameters.{name}")), "{name}: {message}");
        }
    };
    check(json!({"max_new_tokens": 3, "max_tokens": 4}), ["max_new_tokens", "max_tokens"]);
    check(json!({"min_tokens": 5, "max_tokens": 4}), ["min_tokens", "max_tokens"]);
    check(json!({"min_length": 9, "max_length": 8}), ["min_length", "max_length"]);
    check(json!({"n": 2}), ["n=2", "do_sample"]);
    check(json!({"num_return_sequences": 2}), ["num_return_sequences", "do_sample"]);
    check(json!({"best_of": 2}), ["best_of", "do_sample"]);
    check(json!({"n": 2, "do_sample": true, "temperature": 0}), ["n=2", "temperature"]);
    check(json!({"n": 3, "best_of": 2, "do_sample": true}), ["n=3", "best_of"]);
    check(json!({"n": 3, "num_return_sequences": 2}), ["n=3", "num_return_sequences"]);
    check(json!({"n": 2, "num_beams": 4}), ["n=2", "num_beams"]);
    check(json!({"best_of": 2, "num_beams": 4}), ["best_of", "num_beams"]);
    check(
        json!({"num_return_sequences": 5, "num_beams": 4}),
        ["num_return_sequences", "num_beams"],
    );
    let groups = json!({"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 1});
    check(groups, ["num_beam_groups", "num_beams"]);
    check(json!({"num_beams": 4, "num_beam_groups": 2}), ["num_beam_groups", "diversity_penalty"]);
    let groups = json!({
        "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1, "do_sample": true,
    });
    check(groups, ["num_beam_groups", "do_sample"]);
    check(json!({"use_beam_search": true}), ["use_beam_search", "best_of"]);
    let widths = json!({"use_beam_search": true, "best_of": 3, "num_beams": 4});
    check(widths, ["best_of", "num_beams"]);
    check(json!({"top_logprobs": 2, "logprobs": false}), ["top_logprobs", "logprobs"]);
    check(json!({"guided_regex": "a", "guided_choice": ["a"]}), ["guided_regex", "guided_choice"]);
    check(json!({"guided_regex": "a", "num_beams": 2}), ["guided_regex", "num_beams"]);
}

#[test]
fn streams_take_no_beams_and_no_best() {
    let read = |params: Value, defaults: &Defaults| {
        let map = params.as_object().unwrap();
        GenerationParams::read(Params::new(map, Naming::default()), defaults, true).map(|_| ())
    };
    let wide = Defaults { num_beams: Some(4), ..defaults() };
    assert!(message(read(json!({"num_beams": 2}), &defaults())).contains("num_beams=2"));
    assert!(message(read(json!({}), &wide)).contains("num_beams=4"));
    assert!(read(json!({"num_beams": 1}), &wide).is_ok());
    assert!(
        message(read(json!({"best_of": 2, "do_sample": true}), &defaults())).contains("best_of")
    );
    assert!(read(json!({"n": 2, "do_sample": true}), &defaults()).is_ok());
}

#[test]
fn messages_use_the_clients_names() {
    let naming = Naming { prefix: "", renamed: &[("max_new_tokens", "max_completion_tokens")] };
    let params = json!({"max_new_tokens": 0});
    let params = Params::new(params.as_object().unwrap(), naming);
    let message = message(GenerationParams::read(params, &defaults(), false));
    assert!(message.starts_with("max_completion_tokens=0: expected"), "{message}");
}

#[test]
fn sampling_follows_generate() {
    let own = Defaults {
        do_sample: Some(true),
        temperature: Some(0.7),
        top_k: Some(0),
        top_p: Some(0.9),
        ..defaults()
    };
    let found = sampling(&json!({}), &own);
    assert_eq!((found.temperature, found.top_k, found.top_p), (Some(0.7), None, Some(0.9)));
    let found = sampling(&json!({"temperature": 1, "top_k": 7, "top_p": 1}), &own);
    assert_eq!((found.temperature, found.top_k, found.top_p), (None, Some(7), None));
    // Once sampling is on, 50 are kept unless something else is said.
    assert_eq!(sampling(&json!({"do_sample": true}), &defaults()).top_k, Some(50));
    assert_eq!(sampling(&json!({"do_sample": true, "top_k": -1}), &defaults()).top_k, None);
    let neutral = json!({
        "do_sample": true, "min_p": 0, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 1,
        "top_k": 0, "top_p": 1.0,
    });
    assert_eq!(sampling(&neutral, &defaults()), Sampling { min_kept: 1, ..Sampling::default() });
    for greedy in
        [json!({}), json!({"temperature": 0.7}), json!({"do_sample": true, "temperature": 0})]
    {
        assert!(matches!(generate(&greedy).search, Search::Greedy), "{greedy}");
    }
    assert!(matches!(
        read(&json!({"do_sample": false}), &own).unwrap().plan.search,
        Search::Greedy
    ));
}

#[test]
fn seeds_are_kept_or_fresh() {
    let seed = |params: &Value| match generate(params).search {
        Search::Sample { seed, .. } => seed,
        search => panic!("{search:?}"),
    };
    assert_eq!(seed(&json!({"do_sample": true, "seed": u64::MAX})), u64::MAX);
    assert_eq!(seed(&json!({"do_sample": true, "seed": 0})), 0);
    assert_eq!(seed(&json!({"do_sample": true, "manual_seed": 7})), 7);
    let random = json!({"do_sample": true, "seed": -1});
    assert_ne!(seed(&random), seed(&random));
    let params = read(&json!({"do_sample": true}), &defaults()).unwrap();
    let seeds = [0, 1].map(|_| match params.generate(1, &[]).unwrap().search {
        Search::Sample { seed, .. } => seed,
        search => panic!("{search:?}"),
    });
    assert_ne!(seeds[0], seeds[1]);
}

#[test]
fn choices_are_counted() {
    let check = |params: Value, expect: (usize, usize, bool)| {
        let params = read(&params, &defaults()).unwrap();
        let generate = params.generate(3, &[]).unwrap();
        let Search::Sample { n, .. } = generate.search else { panic!("{params:?}") };
        assert_eq!((n, params.n_kept(), generate.report.logprobs), expect);
    };
    check(json!({"do_sample": true}), (1, 1, false));
    check(json!({"do_sample": true, "n": 3}), (3, 3, false));
    check(json!({"do_sample": true, "num_return_sequences": 3}), (3, 3, false));
    check(json!({"do_sample": true, "n": 2, "best_of": 5}), (5, 2, true));
}

#[test]
fn beams_follow_generate() {
    let bart = Defaults {
        num_beams: Some(4),
        length_penalty: Some(2.0),
        early_stopping: EarlyStopping::Immediate,
        n_lookup: Some(4),
        ..defaults()
    };
    let found = beams(&json!({}), &bart);
    assert_eq!((found.n_beams, found.n_return, found.n_groups), (4, 1, 1));
    assert_eq!((found.length_penalty, found.early_stopping), (2.0, EarlyStopping::Immediate));
    assert_eq!(found.sampling, None);
    assert_eq!(read(&json!({}), &bart).unwrap().generate(1, &[]).unwrap().n_lookup, 0);
    assert_eq!(read(&json!({"num_beams": 1}), &bart).unwrap().n_lookup, 4);
    let params = json!({
        "num_beams": 6, "num_return_sequences": 3, "early_stopping": "never", "length_penalty": -1,
        "num_beam_groups": 2, "diversity_penalty": 0.5,
    });
    let found = beams(&params, &bart);
    assert_eq!((found.n_beams, found.n_return, found.n_groups), (6, 3, 2));
    assert_eq!((found.length_penalty, found.early_stopping), (-1.0, EarlyStopping::Never));
    assert_eq!(found.diversity_penalty, 0.5);
    // Each filter keeps a token beside the end tokens.
    let found = beams(&json!({"num_beams": 2, "do_sample": true, "seed": 9}), &defaults());
    assert_eq!((found.sampling.unwrap().min_kept, found.seed), (2, 9));
    let found = beams(&json!({"use_beam_search": true, "best_of": 4, "n": 2}), &defaults());
    assert_eq!((found.n_beams, found.n_return), (4, 2));
    let found = beams(&json!({"use_beam_search": true, "n": 3}), &defaults());
    assert_eq!((found.n_beams, found.n_return), (3, 3));
}

#[test]
fn a_models_own_figures_are_held_in_bounds() {
    let wild = Defaults {
        do_sample: Some(true),
        temperature: Some(1e300),
        repetition_penalty: Some(1e-300),
        num_beams: Some(1000),
        num_return_sequences: Some(1000),
        length_penalty: Some(1e300),
        n_lookup: Some(1000),
        ..defaults()
    };
    let found = beams(&json!({}), &wild);
    assert_eq!((found.n_beams, found.n_return, found.length_penalty), (16, 16, 50.0));
    assert_eq!(found.sampling.unwrap().temperature, Some(100.0));
    let generate = read(&json!({"num_beams": 1}), &wild).unwrap().generate(3, &[]).unwrap();
    assert!(matches!(generate.search, Search::Sample { n: 128, .. }), "{generate:?}");
    assert_eq!((generate.n_lookup, generate.rules.repetition_penalty), (64, Some(0.001)));
}

#[test]
fn ends_and_stops_are_read() {
    let check = |params: Value, ends: &[TokenId]| assert_eq!(*generate(&params).rules.eos, *ends);
    check(json!({}), &[2]);
    check(json!({"stop_token_ids": [7, 2]}), &[2, 7]);
    check(json!({"ignore_eos": true}), &[]);
    check(json!({"ignore_eos_token": true, "stop_token_ids": 7}), &[7]);
    check(json!({"eos_token_id": 3, "stop_token_ids": 7}), &[3, 7]);
    let params = json!({
        "stop": "a", "stop_sequences": ["b", "a"], "stop_strings": [], "stop_sequence": "",
        "include_stop_str_in_output": true, "bad_words": ["x y"],
    });
    let mut params = read(&params, &defaults()).unwrap();
    assert_eq!(*params.stop_strings(), ["a".to_owned(), "b".to_owned()]);
    assert!(params.keeps_stop());
    assert_eq!(params.bad_word_strings(), ["x y"]);
    params.ban([vec![4, 5], vec![]]);
    assert_eq!(*params.generate(1, &[]).unwrap().rules.bad_words, [vec![4, 5]]);
}

#[test]
fn the_encoders_ids_are_kept_where_a_rule_needs_them() {
    assert!(generate(&json!({})).rules.encoder.is_empty());
    let found = generate(&json!({"encoder_no_repeat_ngram_size": 2})).rules;
    assert_eq!(*found.encoder, [5, 6]);
    let found = generate(&json!({"encoder_repetition_penalty": 1.5})).rules;
    assert_eq!(*found.encoder, [5, 6]);
}

#[test]
fn biases_are_read() {
    let params = json!({
        "logit_bias": {"3": -100, "0": 1.5},
        "sequence_bias": [[[3, 4], 1.0], [[5], 2.0], [[3, 4], -2.0]],
    });
    let rules = generate(&params).rules;
    assert_eq!(*rules.logit_bias, [(3, -100.0), (0, 1.5)]);
    assert_eq!(*rules.sequence_bias, [(vec![3, 4], -2.0), (vec![5], 2.0)]);
}

#[test]
fn reports_are_read() {
    let check = |params: Value, logprobs, n_top, prompt| {
        let expect = Report { logprobs, n_top, prompt };
        assert_eq!(generate(&params).report, expect, "{params}");
    };
    check(json!({}), false, 0, None);
    check(json!({"logprobs": false, "prompt_logprobs": false}), false, 0, None);
    check(json!({"logprobs": true}), true, 0, None);
    check(json!({"logprobs": 0}), true, 0, None);
    check(json!({"logprobs": 5}), true, 5, None);
    check(json!({"logprobs": true, "top_logprobs": 20}), true, 20, None);
    check(json!({"top_n_tokens": 4}), true, 4, None);
    check(json!({"details": true}), true, 0, None);
    check(json!({"prompt_logprobs": 3}), false, 0, Some(3));
    check(json!({"decoder_input_details": true}), false, 0, Some(0));
    check(json!({"logprobs": 5, "num_beams": 2}), false, 0, None);
}

#[test]
fn grammars_are_read() {
    let schema = json!({"type": "object"});
    let check = |params: Value, expect: Option<(Grammar, &str)>| {
        let params = read(&params, &defaults()).unwrap();
        assert_eq!(params.grammar(), expect.as_ref().map(|(grammar, name)| (grammar, *name)));
    };
    let json_schema = || Grammar::JsonSchema(schema.clone());
    let regex = || Grammar::Regex("a+".to_owned());
    check(json!({}), None);
    check(json!({"guided_json": schema}), Some((json_schema(), "parameters.guided_json")));
    check(
        json!({"guided_json": "{\"type\":\"object\"}"}),
        Some((json_schema(), "parameters.guided_json")),
    );
    check(json!({"guided_regex": "a+"}), Some((regex(), "parameters.guided_regex")));
    let choice = Grammar::Choice(vec!["a".to_owned(), "b".to_owned()]);
    check(json!({"guided_choice": ["a", "b"]}), Some((choice, "parameters.guided_choice")));
    let lark = Grammar::Lark("start: \"a\"".to_owned());
    check(json!({"guided_grammar": "start: \"a\""}), Some((lark, "parameters.guided_grammar")));
    check(json!({"guided_json_object": false}), None);
    let object = || Some((Grammar::JsonObject, "parameters.response_format"));
    check(json!({"response_format": {"type": "text"}}), None);
    check(json!({"response_format": {"type": "json_object"}}), object());
    check(
        json!({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}),
        Some((json_schema(), "parameters.response_format")),
    );
    for tag in ["json", "json_object"] {
        let params = json!({"grammar": {"type": tag, "value": schema}});
        check(params, Some((json_schema(), "parameters.grammar")));
    }
    let params = json!({"grammar": {"type": "regex", "value": "a+"}});
    check(params, Some((regex(), "parameters.grammar")));
    let params = json!({"structured_outputs": {"regex": "a+", "json": null}});
    check(params, Some((regex(), "parameters.structured_outputs")));
    for wrong in [
        json!({"guided_json": 3}),
        json!({"guided_json": "{"}),
        json!({"guided_regex": ""}),
        json!({"guided_choice": []}),
        json!({"guided_choice": ["a", 1]}),
        json!({"guided_json_object": 1}),
        json!({"response_format": {"type": "xml"}}),
        json!({"response_format": {"type": "json_schema"}}),
        json!({"response_format": "json"}),
        json!({"grammar": "start: a"}),
        json!({"structured_outputs": {"regex": "a", "json": {}}}),
        json!({"structured_outputs": {"choice": "a"}}),
    ] {
        let name = wrong.as_object().unwrap().keys().next().unwrap();
        let message = message(read(&wrong, &defaults()));
        assert!(message.starts_with(&format!("parameters.{name}=")), "{message}");
    }
}

#[test]
fn neutral_and_unknown_parameters_pass() {
    let params = json!({
        "do_sample": false, "num_beams": 1, "temperature": 0.7, "top_k": 5, "num_beam_groups": 1.0,
        "guidance_scale": 1, "length_penalty": 2.0, "nonesuch": {"a": 1}, "stop": [],
        "max_new_tokens": null, "return_tensors": false, "watermark": false,
    });
    assert_eq!(rules(params.clone(), &defaults(), 3).unwrap().max_length, 23);
    let params = Params::new(params.as_object().unwrap(), Naming::default());
    assert_eq!(params.unknown(), "nonesuch");
    let many: serde_json::Map<_, _> =
        (0..99).map(|idx| (format!("{idx}{}", "ü".repeat(100)), json!(1))).collect();
    assert!(Params::new(&many, Naming::default()).unknown().chars().count() < 16 * 42);
}

/// Names that are read, with whatever values.
fn hostile() -> impl Strategy<Value = Value> {
    const NAMES: [&str; 24] = [
        "max_new_tokens",
        "min_tokens",
        "max_length",
        "n",
        "best_of",
        "num_beams",
        "num_beam_groups",
        "num_return_sequences",
        "use_beam_search",
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "seed",
        "logprobs",
        "top_logprobs",
        "stop",
        "logit_bias",
        "sequence_bias",
        "bad_words_ids",
        "eos_token_id",
        "diversity_penalty",
        "guided_json",
        "early_stopping",
    ];
    let value = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-3_i64..20).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0.0..2.0).prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        prop::collection::vec(0_i64..60, 0..4).prop_map(Value::from),
        Just(json!([[[1, 2], 0.5]])),
        Just(json!({"3": 2})),
    ];
    prop::collection::btree_map(prop::sample::select(NAMES.to_vec()), value, 0..6)
        .prop_map(|map| json!(map))
}

proptest! {
    #[test]
    fn whatever_is_asked_stays_in_bounds(params in hostile(), n_prompt in 1_usize..120) {
        let Ok(params) = read(&params, &defaults()) else { return Ok(()) };
        let Ok(generate) = params.generate(n_prompt, &[1, 2]) else { return Ok(()) };
        prop_assert!(generate.rules.max_length > n_prompt);
        prop_assert!(generate.rules.max_length <= 97);
        prop_assert!(generate.report.n_top <= 20);
        prop_assert!(params.n_kept() >= 1);
        match generate.search {
            Search::Greedy => prop_assert_eq!(params.n_kept(), 1),
            Search::Sample { sampling, n, .. } => {
                prop_assert!((params.n_kept()..=128).contains(&n));
                prop_assert!(sampling.temperature.is_none_or(|t| t > 0.0 && t <= 100.0));
                prop_assert!(sampling.top_k.is_none_or(|k| k > 0));
                prop_assert!(sampling.top_p.is_none_or(|p| (0.0..1.0).contains(&p)));
            }
            Search::Beams(beams) => {
                prop_assert!((2..=16).contains(&beams.n_beams));
                prop_assert!((1..=beams.n_beams).contains(&beams.n_return));
                prop_assert_eq!(beams.n_beams % beams.n_groups, 0);
                prop_assert!(beams.n_groups == 1 || beams.diversity_penalty > 0.0);
            }
        }
    }
}
