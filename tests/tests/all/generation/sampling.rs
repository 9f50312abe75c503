//! Draws with a seed: the same alone and in company, however the model is served.

use drivetrain_host::{Completion, GenerateRequest, Prompt};
use drivetrain_tests::{Reference, fixture};
use serde_json::{Value, json};

use super::company::company;
use super::served::{Files, request};
use super::{Configuration, Served};

/// How to draw, in ways that keep very different numbers of tokens.
fn ways() -> Vec<Value> {
    vec![
        json!({"seed": 1, "n": 2}),
        json!({"seed": 2, "n": 2, "temperature": 0.7, "top_k": 0}),
        json!({"seed": 3, "n": 2, "temperature": 1.5, "top_k": 7}),
        json!({"seed": 4, "n": 2, "top_p": 0.6}),
        json!({"seed": 5, "n": 2, "top_p": 0.9, "top_k": 20, "temperature": 0.8}),
        json!({"seed": 6, "n": 2, "min_p": 0.05, "temperature": 1.3}),
        json!({"seed": 7, "n": 2, "typical_p": 0.7}),
        json!({"seed": 8, "n": 2, "epsilon_cutoff": 0.01, "eta_cutoff": 0.02}),
        json!({"seed": 9, "n": 2, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2}),
        json!({"seed": 10, "n": 2, "frequency_penalty": 0.5, "presence_penalty": 0.4}),
        json!({"seed": 11, "n": 2, "temperature": 0.2, "min_p": 0.3, "logprobs": 3}),
        json!({"seed": 12, "n": 1, "best_of": 3, "temperature": 0.9}),
    ]
}

fn requests(reference: &Reference) -> Vec<GenerateRequest> {
    let ask = |idx: usize, way: Value| {
        let mut request = request(Prompt::Text(reference.prompt(idx).unwrap().to_owned()), way);
        request.parameters.insert("do_sample".to_owned(), json!(true));
        request.parameters.insert("max_new_tokens".to_owned(), json!(24));
        request
    };
    (0..2).flat_map(|idx| ways().into_iter().map(move |way| ask(idx, way))).collect()
}

/// Ids, texts and seeds, by choice.
fn said(completions: &[Completion]) -> Vec<(Vec<u32>, String, Option<u64>)> {
    completions.iter().map(|c| (c.ids.clone(), c.text.clone(), c.seed)).collect()
}

#[test]
fn a_seed_gives_the_same_draws_alone_and_in_company() {
    for name in ["bart", "gpt2", "llama_gqa"] {
        let reference = Reference::read(&fixture(name)).unwrap();
        let requests = requests(&reference);
        let files = Files::copy(&fixture(name), None);
        let plain = Served::load(&files, Configuration::PLAIN);
        let alone: Vec<_> = requests
            .iter()
            .map(|request| said(&plain.ask(request.clone()).unwrap().completions))
            .collect();
        drop(plain);
        let distinct: std::collections::HashSet<_> = alone.iter().flatten().collect();
        assert!(distinct.len() > alone.len(), "{name}: draws differ");
        for (salt, configuration) in Configuration::all().into_iter().enumerate() {
            let served = Served::load(&files, configuration);
            let mut all = requests.clone();
            all.extend(company(32 - all.len(), 300, salt as u32));
            let answers = served.ask_together(all);
            for ((request, want), got) in requests.iter().zip(&alone).zip(answers) {
                let got = said(&got.unwrap().completions);
                assert_eq!(got, *want, "{name}, {configuration}: {:?}", request.parameters);
            }
            for (request, want) in requests.iter().zip(&alone).skip(salt % 6).step_by(6) {
                let got = said(&served.ask(request.clone()).unwrap().completions);
                assert_eq!(got, *want, "{name}, {configuration}, alone: {:?}", request.parameters);
            }
        }
    }
}
