//! Log-probabilities of what was said and of what was asked, against the recorded logits.

use drivetrain_host::{GenerateRequest, Prompt, TokenDetail};
use drivetrain_tests::{Reference, fixture};
use serde_json::{Value, json};

use super::company::company;
use super::served::{Answer, Files, request};
use super::{Configuration, Served};

/// Tolerance on log-probabilities.
const CLOSE: f32 = 1e-3;

fn is_close(got: Option<f32>, want: f64) -> bool {
    got.is_some_and(|got| (f64::from(got) - want).abs() <= f64::from(CLOSE))
}

/// The greedy steps of an answer against the recorded ones.
fn check_steps(what: &str, answer: &Answer, steps: &[Value]) {
    let tokens = &answer.completions[0].tokens;
    assert_eq!(tokens.len(), steps.len(), "{what}");
    let mut sum = 0.0;
    for (at, (token, step)) in tokens.iter().zip(steps).enumerate() {
        let want = step["logprob"].as_f64().unwrap();
        sum += want;
        assert_eq!(json!(token.id), step["id"], "{what}, step {at}");
        assert!(is_close(token.logprob, want), "{what}, step {at}: {token:?}, {want} wanted");
        let top = step["top5"].as_array().unwrap();
        assert_eq!(token.top.len(), top.len(), "{what}, step {at}");
        for (got, want) in token.top.iter().zip(top) {
            // Tokens as likely as each other to the digits recorded may change places.
            let fits = is_close(Some(got.logprob), want["logprob"].as_f64().unwrap());
            let is_there = top.iter().any(|want| want["id"] == got.id);
            assert!(fits && is_there, "{what}, step {at}: {got:?}, {want} wanted");
        }
    }
    let got = answer.completions[0].logprob.unwrap();
    assert!((got - sum).abs() <= 16.0 * f64::from(CLOSE), "{what}: sum {got}, {sum} wanted");
}

/// The log-softmax of a row.
fn log_softmax(row: &[f32]) -> Vec<f64> {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
    row.iter().map(|x| f64::from(x - most) - sum.ln()).collect()
}

/// A prompt's log-probabilities against the logits of the prompt alone.
fn check_prompt(what: &str, tokens: &[TokenDetail], logits: &[Vec<f32>]) {
    assert_eq!(tokens.len(), logits.len(), "{what}");
    assert_eq!(tokens[0].logprob, None, "{what}: nothing comes before the first token");
    for (at, (token, row)) in tokens[1..].iter().zip(logits).enumerate() {
        let row = log_softmax(row);
        let want = row[token.id as usize];
        assert!(is_close(token.logprob, want), "{what}, after {at}: {token:?}, {want} wanted");
        let mut best = row.clone();
        best.sort_by(|a, b| b.total_cmp(a));
        assert!(token.top.len() >= 5, "{what}, after {at}: {token:?}");
        for (top, want) in token.top.iter().zip(&best).take(5) {
            let fits = is_close(Some(top.logprob), *want)
                && is_close(Some(top.logprob), row[top.id as usize]);
            assert!(fits, "{what}, after {at}: {top:?}, {want} wanted");
        }
    }
}

#[test]
fn log_probabilities_are_the_models_own() {
    let parameters = json!({"max_new_tokens": 16, "logprobs": 5, "prompt_logprobs": 5});
    for name in [
        "bart",
        "gpt2",
        "llama_mha",
        "llama_gqa",
        "llama3_rope",
        "bloom",
        "gemma2",
        "gptj",
        "marian",
        "mistral",
        "t5",
    ] {
        let reference = Reference::read(&fixture(name)).unwrap();
        let files = Files::copy(&fixture(name), None);
        let is_decoder = !["bart", "marian", "t5"].contains(&name);
        let mut parameters = parameters.clone();
        if !is_decoder {
            parameters.as_object_mut().unwrap().remove("prompt_logprobs");
        }
        let ask = |idx: usize| -> GenerateRequest {
            let prompt = Prompt::Text(reference.prompt(idx).unwrap().to_owned());
            request(prompt, parameters.clone())
        };
        for (salt, configuration) in Configuration::all().into_iter().enumerate() {
            let served = Served::load(&files, configuration);
            let check = |how: &str, idx: usize, answer: &Answer| {
                let what = format!("{name}, prompt {idx}, {configuration}, {how}");
                let steps = reference.json["greedy"][idx]["steps"].as_array().unwrap();
                check_steps(&what, answer, steps);
                if is_decoder {
                    let logits = reference.rows(&format!("logits.{idx}")).unwrap();
                    check_prompt(&what, &answer.prompt, &logits);
                }
            };
            for idx in 0..2 {
                check("alone", idx, &served.ask(ask(idx)).unwrap());
            }
            let mut all = vec![ask(1), ask(0), ask(1)];
            all.extend(company(29, 300, salt as u32));
            let answers = served.ask_together(all);
            for (idx, answer) in [1, 0, 1].into_iter().zip(answers) {
                check("in company", idx, &answer.unwrap());
            }
        }
    }
}
