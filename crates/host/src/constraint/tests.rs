//! Random walks with the tokenizers of the fixtures.

use std::path::Path;

use drivetrain_artifacts::{ModelDir, Tokenizer, UnpackOptions};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::json;

use super::*;
use crate::HostError;

struct Model {
    grammars: Grammars,
    tokenizer: Tokenizer,
    eos: TokenId,
}

fn model(name: &str) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
    let tokenizer =
        Tokenizer::read(&ModelDir::open(&folder, &UnpackOptions::default()).unwrap()).unwrap();
    let eos = tokenizer.eos_token_id().unwrap();
    Model { grammars: Grammars::new(tokenizer.clone(), [eos].into()), tokenizer, eos }
}

/// A text that random tokens under the mask make, if it comes to its end within `n_max` tokens.
/// Tokens are drawn with a leaning to the end, so that most texts have one.
fn walk(model: &Model, start: &Constraint, seed: u64, n_max: usize) -> Option<String> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut constraint = start.clone();
    let n_logits = model.tokenizer.vocab_size() as usize + 40;
    let mut ids = Vec::new();
    let mut is_over = false;
    while !is_over {
        if ids.len() >= n_max {
            return None;
        }
        if seed.is_multiple_of(2) {
            constraint.begin();
        }
        let mut scores = vec![0.0; n_logits];
        constraint.apply(&mut scores).unwrap();
        let allowed: Vec<_> =
            (0..n_logits).filter(|id| scores[*id] == 0.0).map(|id| id as TokenId).collect();
        assert!(!allowed.is_empty());
        assert!(allowed.iter().all(|id| *id < model.tokenizer.vocab_size()));
        // The mask is what can be gone past.
        for _ in 0..2 {
            let id = rng.next_u32() % model.tokenizer.vocab_size();
            let can = constraint.clone().advance(id).is_ok();
            assert_eq!(can, allowed.contains(&id), "{:?}", model.tokenizer.id_to_token(id));
        }
        let leans_to_end = rng.next_u32().is_multiple_of(3);
        let id = match leans_to_end && allowed.contains(&model.eos) {
            true => model.eos,
            false => allowed[rng.next_u32() as usize % allowed.len()],
        };
        is_over = constraint.advance(id).unwrap();
        if id == model.eos {
            assert!(is_over);
        } else {
            ids.push(id);
        }
    }
    Some(model.tokenizer.decode(&ids, drivetrain_artifacts::DecodeSpecial::Keep).unwrap())
}

/// Walks `n` times; `is_right` judges the texts that have an end.
fn check(name: &str, grammar: &Grammar, n: u64, is_right: impl Fn(&str) -> bool) {
    let model = model(name);
    let start = model.grammars.constraint(grammar, "grammar").unwrap();
    let texts: Vec<_> = (0..n).filter_map(|seed| walk(&model, &start, seed, 120)).collect();
    assert!(texts.len() as u64 >= n / 4, "{name}: {} texts end: {grammar:?}", texts.len());
    for text in &texts {
        assert!(is_right(text), "{name}: {text:?} does not follow {grammar:?}");
    }
}

#[test]
fn texts_match_their_expression() {
    for expression in ["[a-c]{2,5}(-[0-9]+)?", "(yes|no|maybe), (it|he) (is|was)", "a?"] {
        let wanted = regex::Regex::new(&format!("^(?:{expression})$")).unwrap();
        for name in ["gpt2", "bart"] {
            let grammar = Grammar::Regex(expression.to_owned());
            check(name, &grammar, 40, |text| wanted.is_match(text));
        }
    }
}

#[test]
fn texts_are_one_of_the_choices() {
    let choices = ["red", "green", "blue-green", "r", "say \"x\"\n/.*/", "grün"];
    let choices: Vec<String> = choices.iter().map(|choice| (*choice).to_owned()).collect();
    for name in ["gpt2", "llama_mha"] {
        check(name, &Grammar::Choice(choices.clone()), 60, |text| {
            choices.iter().any(|choice| choice == text)
        });
    }
}

#[test]
fn texts_keep_to_their_schema() {
    let schema = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 8 },
            "size": { "enum": ["small", "large", 3, null] },
            "count": { "type": "integer", "minimum": 3, "maximum": 50 },
            "tags": { "type": "array", "items": { "type": "boolean" }, "maxItems": 2 },
        },
        "required": ["name", "size", "count"],
        "additionalProperties": false,
    });
    let validator = jsonschema::validator_for(&schema).unwrap();
    for name in ["gpt2", "bart"] {
        check(name, &Grammar::JsonSchema(schema.clone()), 40, |text| {
            serde_json::from_str(text).is_ok_and(|value| validator.is_valid(&value))
        });
    }
}

#[test]
fn texts_follow_a_lark_grammar() {
    let lark = "start: \"(\" item (\",\" item)* \")\"\nitem: /[0-9]{1,3}/ | \"x\"".to_owned();
    let wanted = regex::Regex::new(r"^\(([0-9]{1,3}|x)(,([0-9]{1,3}|x))*\)$").unwrap();
    check("gpt2", &Grammar::Lark(lark), 40, |text| wanted.is_match(text));
}

#[test]
fn any_object_is_json() {
    let model = model("gpt2");
    let start = model.grammars.constraint(&Grammar::JsonObject, "response_format").unwrap();
    for text in ["{}", "{\"a\": [1, null]}"] {
        let ids = model.tokenizer.encode(text, drivetrain_artifacts::SpecialTokens::None);
        let mut constraint = start.clone();
        let last = ids.unwrap().ids.iter().map(|id| constraint.advance(*id).unwrap()).last();
        assert_eq!(last, Some(true), "{text}");
    }
    for seed in 0..20 {
        if let Some(text) = walk(&model, &start, seed, 40) {
            assert!(serde_json::from_str::<Value>(&text).unwrap().is_object(), "{text}");
        }
    }
}

#[test]
fn what_can_not_be_followed_is_refused_by_name() {
    let model = model("gpt2");
    let check = |grammar: Grammar| {
        let error = model.grammars.constraint(&grammar, "guided").unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, HostError::BadRequest { .. }));
        assert!(message.starts_with("guided: ") && message.len() < 400, "{message}");
        assert!(!message.contains('\n'), "{message}");
    };
    check(Grammar::Regex("(".to_owned()));
    check(Grammar::Regex("a".repeat(300 << 10)));
    check(Grammar::Lark("start: nowhere".to_owned()));
    check(Grammar::Choice(Vec::new()));
    check(Grammar::JsonSchema(json!({ "type": "nonsense" })));
    check(Grammar::JsonSchema(json!({ "$ref": "https://example.com/schema.json" })));
}

#[test]
fn a_costly_grammar_ends_in_an_error_at_worst() {
    let model = model("gpt2");
    let x = model.tokenizer.token_to_id("a").unwrap();
    for grammar in [
        Grammar::Regex("((a{1,1000}){1,1000}b){1,1000}c{1,100000}".to_owned()),
        Grammar::Regex("(a|aa|aaa)*(a?){500}a{500}".to_owned()),
        Grammar::Regex(format!("({})*", vec!["a.*b"; 60].join("|"))),
        Grammar::Lark("start: s\ns: s s s | \"a\" | \"\"".to_owned()),
        Grammar::Lark("start: start start | start \"a\" start | \"a\"".to_owned()),
    ] {
        let Ok(mut constraint) = model.grammars.constraint(&grammar, "guided") else { continue };
        for _ in 0..60 {
            constraint.begin();
            let mut scores = vec![0.0; model.tokenizer.vocab_size() as usize];
            let applied = constraint.apply(&mut scores);
            if let Err(error) = applied.and_then(|()| constraint.advance(x).map(|_| ())) {
                assert!(error.message().starts_with("the grammar can't be followed"), "{error}");
                assert!(error.message().len() < 400 && !error.message().contains('\n'), "{error}");
                break;
            }
        }
    }
}

#[test]
fn the_mask_keeps_what_it_has_bits_for() {
    for n in [0, 1, 31, 32, 33, 64, 100] {
        let mask = [0b1011_u32, u32::MAX];
        let mut scores = vec![1.0; n];
        keep_only(&mask, &mut scores);
        for (idx, score) in scores.iter().enumerate() {
            let is_kept = matches!(idx, 0 | 1 | 3 | 32..64);
            assert_eq!(*score == 1.0, is_kept, "{n}: {idx}");
        }
    }
}
