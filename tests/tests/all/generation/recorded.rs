//! What transformers' `generate` answers, whatever the settings and the company.

use std::path::Path;
use std::sync::atomic::Ordering;

use drivetrain_host::{GenerateRequest, HostError, Prompt};
use drivetrain_tests::fixture;
use serde_json::{Value, json};

use super::company::company;
use super::served::{Answer, Files, request};
use super::{Configuration, Served};

/// Tolerance on the scores of beams.
const SCORES: f32 = 1e-3;

/// Requests that run at once.
const N_TOGETHER: usize = 32;

/// How many of them are company.
const N_COMPANY: usize = 6;

/// Models whose rotation depends on the length of the text, so that a cached key keeps that of the
/// pass that made it. transformers makes the prompt's in one pass and each further one alone; cut
/// elsewhere, the same text gives other answers.
const LENGTH_BOUND: [&str; 3] =
    ["variants/llama_dynamic", "variants/llama_longrope", "variants/phi3_longrope"];

/// A request and what transformers answers to it.
pub(super) struct Case {
    prompt_idx: usize,
    prompt: Prompt,
    parameters: Value,
    choices: Vec<Value>,
}

impl Case {
    fn request(&self) -> GenerateRequest {
        request(self.prompt.clone(), self.parameters.clone())
    }

    /// What is wrong with an answer, if something is.
    fn fault(&self, answer: &Result<Answer, HostError>) -> Option<String> {
        let why =
            |what: String| Some(format!("prompt {} {}: {what}", self.prompt_idx, self.parameters));
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return why(error.to_string()),
        };
        if answer.completions.len() != self.choices.len() {
            return why(format!("{} choices", answer.completions.len()));
        }
        for (got, want) in answer.completions.iter().zip(&self.choices) {
            if json!(got.ids) != want["ids"] {
                return why(format!(
                    "choice {}: {:?}, {} wanted",
                    got.choice, got.ids, want["ids"]
                ));
            }
            if want.get("text").is_some_and(|text| *text != got.text) {
                return why(format!(
                    "choice {}: {:?}, {} wanted",
                    got.choice, got.text, want["text"]
                ));
            }
            let score = want.get("score").map(|score| score.as_f64().unwrap() as f32);
            let differs = |score: f32| got.score.is_none_or(|s| (s - score).abs() > SCORES);
            if score.is_some_and(differs) {
                return why(format!(
                    "choice {}: score {:?}, {score:?} wanted",
                    got.choice, got.score
                ));
            }
        }
        None
    }
}

/// A model and its cases.
pub(super) struct Recorded {
    pub(super) files: Files,
    pub(super) cases: Vec<Case>,
    n_words: u32,
}

impl Recorded {
    pub(super) fn read(dir: &Path) -> Self {
        let json = |name: &str| -> Value {
            serde_json::from_slice(&std::fs::read(dir.join(name)).unwrap()).unwrap()
        };
        let (reference, recorded) = (json("reference.json"), json("generations.json"));
        let cases = recorded["cases"].as_array().unwrap().iter();
        let cases = cases
            .map(|case| {
                let prompt_idx = case["prompt"].as_u64().unwrap() as usize;
                let prompt = &reference["prompts"][prompt_idx];
                let prompt = match prompt["text"].as_str() {
                    Some(text) => Prompt::Text(text.to_owned()),
                    None => Prompt::Tokens(ids(&prompt["ids"])),
                };
                let parameters = case["parameters"].clone();
                let choices = case["choices"].as_array().unwrap().clone();
                Case { prompt_idx, prompt, parameters, choices }
            })
            .collect();
        let n_words = json("config.json")["vocab_size"].as_u64().unwrap() as u32;
        Self { files: Files::copy(dir, recorded.get("generation_config")), cases, n_words }
    }

    /// What is wrong with all cases, `N_TOGETHER` at a time, and with every `stride`-th alone;
    /// `salt` decides on the order and on who those are.
    fn faults(&self, configuration: Configuration, salt: usize, stride: usize) -> Vec<String> {
        let served = Served::load(&self.files, configuration);
        let mut faults = Vec::new();
        let mut add = |how: &str, fault: Option<String>| {
            faults.extend(fault.map(|fault| format!("{configuration}, {how}: {fault}")));
        };
        for case in self.cases.iter().skip(salt % stride).step_by(stride) {
            add("alone", case.fault(&served.ask(case.request())));
        }
        for (turn, cases) in self.shuffled(salt).chunks(N_TOGETHER - N_COMPANY).enumerate() {
            let mut all: Vec<(Option<&Case>, GenerateRequest)> =
                cases.iter().map(|case| (Some(*case), case.request())).collect();
            let guests = company(N_TOGETHER - cases.len(), self.n_words, (salt * 31 + turn) as u32);
            for (idx, guest) in guests.into_iter().enumerate() {
                all.insert((idx * 5).min(all.len()), (None, guest));
            }
            let (cases, requests): (Vec<_>, Vec<_>) = all.into_iter().unzip();
            for (case, answer) in cases.iter().zip(&served.ask_together(requests)) {
                match (case, answer) {
                    (Some(case), answer) => add("in company", case.fault(answer)),
                    (None, Err(error)) => add("company", Some(error.to_string())),
                    (None, Ok(_)) => {}
                }
            }
        }
        let most_segments = served.seen.most_segments.load(Ordering::SeqCst);
        let has_room = configuration.chunk >= N_TOGETHER;
        assert!(most_segments >= 12 || !has_room, "{configuration}: {most_segments} at once");
        let looks_up = configuration.n_lookup > 0;
        let n_checked = served.seen.n_checked.load(Ordering::SeqCst);
        assert_eq!(n_checked > 0, looks_up, "{configuration}: looked-up tokens");
        let n_left = if configuration.keeps_prefixes { 0 } else { served.n_left() };
        if n_left > 0 {
            faults.push(format!("{configuration}: the engine still holds {n_left} sequences"));
        }
        faults
    }

    fn shuffled(&self, salt: usize) -> Vec<&Case> {
        let mut order: Vec<usize> = (0..self.cases.len()).collect();
        order.sort_by_key(|idx| (idx + 1).wrapping_mul(2_654_435_761 + 2 * salt) % 100_003);
        order.into_iter().map(|idx| &self.cases[idx]).collect()
    }
}

/// Runs all cases of some models, each under every `nth` configuration: every one has its turn.
fn check(names: &[&str], stride: usize, nth: usize) {
    let mut faults = Vec::new();
    for (name_idx, name) in names.iter().enumerate() {
        let recorded = Recorded::read(&fixture(name));
        let is_bound = LENGTH_BOUND.contains(name);
        for (salt, configuration) in Configuration::all().into_iter().enumerate() {
            let is_apt = !is_bound || configuration.cuts_as_transformers();
            let has_turn = is_bound || (salt + name_idx).is_multiple_of(nth);
            if !is_apt || !has_turn {
                continue;
            }
            let new = recorded.faults(configuration, salt, stride);
            faults.extend(new.into_iter().map(|fault| format!("{name}, {fault}")));
        }
    }
    let n = faults.len();
    assert!(faults.is_empty(), "{n} differ:\n{}", faults[..n.min(20)].join("\n"));
}

#[test]
fn encoder_decoders_answer_as_recorded() {
    check(&["bart"], 4, 1);
}

#[test]
fn decoders_answer_as_recorded() {
    check(&["gpt2", "llama_mha", "llama_gqa", "llama3_rope"], 4, 1);
}

/// The fixtures with a shorter table of cases.
#[test]
fn other_families_answer_as_recorded() {
    let mut names: Vec<String> = std::fs::read_dir(fixture(""))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|dir| dir.join("generations.json").exists())
        .map(|dir| dir.file_name().unwrap().display().to_string())
        .filter(|name| name != "bart" && name != "gpt2" && !name.starts_with("llama"))
        .collect();
    names.sort();
    assert_eq!(names.len(), 20, "{names:?}");
    check(&names.iter().map(String::as_str).collect::<Vec<_>>(), 8, 1);
}

#[test]
fn variants_answer_as_recorded() {
    let names = std::fs::read_dir(fixture("variants")).unwrap();
    let mut names: Vec<String> = names
        .map(|entry| entry.unwrap().path())
        .filter(|dir| dir.join("generations.json").exists())
        .map(|dir| format!("variants/{}", dir.file_name().unwrap().display()))
        .collect();
    names.sort();
    assert_eq!(names.len(), 45, "{names:?}");
    check(&names.iter().map(String::as_str).collect::<Vec<_>>(), 4, 3);
}

/// The tokens of a JSON list.
fn ids(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}
