//! Requests for text: how they become work, and how tokens become events.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use drivetrain_artifacts::{ModelDir, UnpackOptions};
use drivetrain_engine::ModelKind;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::*;
use crate::fake::info;
use crate::scheduler::{Choice, Goal, Limits, Outcome, Scored};
use crate::tasks::{ModelText, PreparedGeneration, TaskContext};
use crate::{FinishReason, HostError};

/// Byte-level tokens: 0 is `</s>`, 1 to 26 the letters `a` to `z`, 27 a space, 28 `the` with a
/// space before it, 29 and 30 the two bytes of `é`, 31 `<s>`, 32 a full stop.
fn vocabulary() -> Map<String, Value> {
    let letters = ('a'..='z').map(String::from);
    let others = ["Ġ", "Ġthe", "Ã", "©", "<s>", "."].map(str::to_owned);
    let tokens = std::iter::once("</s>".to_owned()).chain(letters).chain(others);
    tokens.enumerate().map(|(id, token)| (token, json!(id))).collect()
}

fn model_dir() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let added = |id: u32, text: &str| {
        json!({
            "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [added(0, "</s>"), added(31, "<s>")],
        "pre_tokenizer": byte_level, "decoder": byte_level, "post_processor": {
            "type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [31], "tokens": ["<s>"]}},
        },
        "model": {"type": "BPE", "vocab": vocabulary(), "merges": []},
    });
    let write = |name: &str, value: Value| {
        std::fs::write(dir.path().join(name), value.to_string()).unwrap();
    };
    write("tokenizer.json", tokenizer);
    write(
        "tokenizer_config.json",
        json!({
            "bos_token": "<s>", "eos_token": "</s>",
            "chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}.{% endfor %}",
        }),
    );
    write(
        "generation_config.json",
        json!({"eos_token_id": 0, "bos_token_id": 31, "decoder_start_token_id": 31}),
    );
    dir
}

fn context_at(dir: &Path, kind: ModelKind, task: Option<&str>) -> Arc<TaskContext> {
    let class = match kind {
        ModelKind::Decoder => "GPT2LMHeadModel",
        ModelKind::EncoderDecoder => "BartForConditionalGeneration",
        ModelKind::Encoder => "BertModel",
    };
    let config = json!({"model_type": "gpt2", "architectures": [class]});
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let files = ModelDir::open(dir, &UnpackOptions::default()).unwrap();
    let text = ModelText::read(&files, task).unwrap();
    let limits = Limits::new(info(kind), 8, None);
    Arc::new(TaskContext::new("m", task, text, limits).unwrap())
}

fn context(kind: ModelKind) -> Arc<TaskContext> {
    let task = (kind == ModelKind::Encoder).then_some("feature-extraction");
    context_at(model_dir().path(), kind, task)
}

fn request(prompts: &[Prompt], parameters: Value) -> GenerateRequest {
    GenerateRequest {
        prompts: prompts.to_vec(),
        parameters: parameters.as_object().cloned().unwrap_or_default(),
        ..GenerateRequest::default()
    }
}

fn text(text: &str) -> Prompt {
    Prompt::Text(text.to_owned())
}

fn chat(content: &str) -> Prompt {
    let messages = vec![json!({"role": "user", "content": content})];
    Prompt::Chat(Box::new(Chat { messages, ..Chat::default() }))
}

fn prepare(tasks: &TaskContext, prompts: &[Prompt], parameters: Value) -> PreparedGeneration {
    tasks.prepare_generation(&request(prompts, parameters)).unwrap()
}

fn refusal(tasks: &TaskContext, prompts: &[Prompt], parameters: Value) -> String {
    let error = tasks.prepare_generation(&request(prompts, parameters)).unwrap_err();
    assert!(matches!(error, HostError::BadRequest { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn every_form_of_prompt_becomes_tokens() {
    let tasks = context(ModelKind::Decoder);
    let check = |prompt: Prompt, parameters: Value, expect: (&str, &[u32])| {
        let prepared = prepare(&tasks, std::slice::from_ref(&prompt), parameters.clone());
        let plan = &prepared.plans[0].prompt;
        assert_eq!((plan.text.as_str(), plan.ids.as_slice()), expect, "{prompt:?} {parameters}");
        assert_eq!(prepared.works[0].tokens, expect.1);
    };
    check(text("ab"), json!({}), ("ab", &[31, 1, 2]));
    check(text("ab"), json!({"add_special_tokens": false}), ("ab", &[1, 2]));
    check(text(""), json!({"add_special_tokens": false}), ("", &[31]));
    check(text("abcd"), json!({"truncate": 3}), ("abcd", &[31, 3, 4]));
    check(
        text("abcd"),
        json!({"truncate_prompt_tokens": 2, "add_special_tokens": false}),
        ("abcd", &[3, 4]),
    );
    check(Prompt::Tokens(vec![1, 31, 2]), json!({}), ("a<s>b", &[1, 31, 2]));
    check(Prompt::Tokens(vec![1, 2, 3]), json!({"truncate": 2}), ("bc", &[2, 3]));
    check(chat("ab"), json!({}), ("<s>ab.", &[31, 1, 2, 32]));
    check(chat("ab"), json!({"add_special_tokens": true}), ("<s>ab.", &[31, 31, 1, 2, 32]));
    let long = "a".repeat(70);
    let kept: Vec<u32> = std::iter::once(31).chain(std::iter::repeat_n(1, 9)).collect();
    let cut = json!({"tokenize_kwargs": {"truncation": true, "max_length": 10}});
    check(text(&long), cut, (&long, &kept));

    let tasks = context(ModelKind::EncoderDecoder);
    let prepared = prepare(&tasks, &[text("ab"), Prompt::Tokens(vec![3])], json!({}));
    let inputs: Vec<_> =
        prepared.works.iter().map(|w| (w.encoder.clone(), w.tokens.clone())).collect();
    assert_eq!(inputs, [(vec![31, 1, 2], vec![31]), (vec![3], vec![31])]);
}

#[test]
fn prompts_that_can_not_be_served_are_named() {
    let decoder = context(ModelKind::Decoder);
    let check = |tasks: &TaskContext, prompts: &[Prompt], parameters: Value, expect: &str| {
        let found = refusal(tasks, prompts, parameters);
        assert!(found.contains(expect), "{found}");
    };
    check(&decoder, &[], json!({}), "there is no prompt");
    check(&decoder, &vec![text("a"); 1025], json!({}), "1025 prompts: expected at most 1024");
    check(&decoder, &[Prompt::Tokens(vec![])], json!({}), "the prompt is empty");
    check(
        &decoder,
        &[text("a"), Prompt::Tokens(vec![1, 40])],
        json!({}),
        "prompt 1 has token 40: expected ids below 40",
    );
    check(&decoder, &[Prompt::Tokens(vec![1; 65])], json!({}), "65 tokens and model m takes 64");
    check(&decoder, &[text(&"a".repeat(65))], json!({}), "set parameters.truncation to true");
    check(&decoder, &[text(&"a".repeat(300 << 10))], json!({}), "has 307200 bytes");
    check(&decoder, &[chat(&"a".repeat(65))], json!({}), "messages has 67 tokens");
    check(&decoder, &[text("a")], json!({"truncate": 0}), "truncate");
    let n = json!({"do_sample": true, "num_return_sequences": 8, "n": 8});
    check(&decoder, &vec![text("a"); 600], n, "expected 4096 choices at most");
    let sequences = context(ModelKind::EncoderDecoder);
    check(&sequences, &[text("a")], json!({"prompt_logprobs": 1}), "prompt_logprobs");
    check(&sequences, &[text("")], json!({"add_special_tokens": false}), "gives no tokens");
    let encoder = context(ModelKind::Encoder);
    check(&encoder, &[text("a")], json!({}), "generates no text: it has no language-model head");
    let features = context_at(model_dir().path(), ModelKind::Decoder, Some("feature-extraction"));
    check(&features, &[text("a")], json!({}), "set option.task to text-generation");
}

#[test]
fn bad_words_are_tokenised_alone_and_behind_a_space() {
    let tasks = context(ModelKind::Decoder);
    let prepared = prepare(&tasks, &[text("a")], json!({"bad_words": [" ab", "c"]}));
    let Goal::Generate(goal) = &prepared.works[0].goal else { panic!() };
    // Behind a space each has one token more here, which is no other spelling of the same word.
    assert_eq!(goal.rules.bad_words.as_ref(), [vec![1, 2], vec![3]]);
    assert!(goal.stops.is_none());
    let prepared = prepare(&tasks, &[text("a")], json!({"stop": ["x"]}));
    let Goal::Generate(goal) = &prepared.works[0].goal else { panic!() };
    assert!(goal.stops.is_some());
}

/// Answers to requests, whose tokens the test says itself.
struct Told {
    answers: Answers,
    ready: VecDeque<Event>,
}

fn told(prompts: &[Prompt], parameters: Value) -> Told {
    let tasks = context(ModelKind::Decoder);
    let PreparedGeneration { plans, how, .. } = prepare(&tasks, prompts, parameters);
    Told { answers: Answers::new(how, plans, tasks), ready: VecDeque::new() }
}

fn scored(id: u32, logprob: f32) -> Scored {
    Scored { id, logprob }
}

fn choice(ids: &[u32], finish: FinishReason) -> Choice {
    Choice { ids: ids.to_vec(), finish, stop: None, score: None, logprob: 0.0 }
}

impl Told {
    /// A token's text as it goes out; `None` if it is kept back for the end.
    fn token(&mut self, item: usize, choice: usize, id: u32) -> Option<String> {
        match self.answers.token(item, choice, scored(id, f32::NAN), &[])? {
            Event::Token { text, .. } => Some(text),
            other => panic!("{other:?}"),
        }
    }

    fn finished(&mut self, item: usize, choices: Vec<Choice>) -> Vec<(String, Completion)> {
        self.answers.finished(item, Outcome::Generated(choices), &mut self.ready).unwrap();
        let done = self.ready.drain(..).map(|event| match event {
            Event::Done { text, completion } => (text, completion),
            other => panic!("{other:?}"),
        });
        done.collect()
    }
}

#[test]
fn choices_of_several_prompts_keep_apart() {
    let sampled = json!({"do_sample": true, "n": 2, "seed": 5, "return_full_text": true});
    let mut told = told(&[text("a"), text("b")], sampled);
    assert_eq!(told.token(0, 0, 28).as_deref(), Some(" the"));
    assert_eq!(told.token(1, 1, 4).as_deref(), Some("d"));
    assert_eq!(told.token(0, 1, 29).as_deref(), Some(""));
    assert_eq!(told.token(0, 0, 0).as_deref(), Some(""));
    let event = told.answers.choice_finished(0, 0, FinishReason::EndToken, None).unwrap();
    let Some(Event::Done { text, completion }) = event else { panic!("{event:?}") };
    assert_eq!((text.as_str(), completion.text.as_str(), completion.choice), ("", " the", 0));
    assert_eq!((completion.ids.as_slice(), completion.n_prompt_tokens), (&[28, 0][..], 2));
    assert_eq!((completion.full_text.as_deref(), completion.seed), (Some("a the"), Some(5)));
    assert_eq!((completion.stop, completion.tokens.len()), (None, 0));
    assert_eq!(told.token(0, 1, 30).as_deref(), Some("é"));
    assert_eq!(told.token(0, 1, 29).as_deref(), Some(""));
    let both =
        vec![choice(&[28, 0], FinishReason::EndToken), choice(&[29, 30, 29], FinishReason::Length)];
    let done = told.finished(0, both);
    assert_eq!(done.len(), 1, "the first choice is done already");
    assert_eq!((done[0].0.as_str(), done[0].1.text.as_str()), ("\u{fffd}", "é\u{fffd}"));
    assert!(!told.answers.are_done());
    let both = vec![choice(&[], FinishReason::Shutdown), choice(&[4], FinishReason::Length)];
    let done = told.finished(1, both);
    let texts: Vec<_> = done.iter().map(|(_, c)| (c.prompt, c.choice, c.text.as_str())).collect();
    assert_eq!(texts, [(1, 0, ""), (1, 1, "d")]);
    assert!(told.answers.are_done());
    assert_eq!(told.answers.n_tokens(), 6);
}

#[test]
fn details_tell_of_each_token() {
    let asked = json!({"logprobs": 1, "prompt_logprobs": 1});
    let mut told = told(&[text("ab")], asked);
    let scores = vec![(scored(1, -0.5), vec![scored(28, -0.1)]), (scored(2, -1.0), vec![])];
    let Some(Event::Prompt { prompt: 0, tokens }) = told.answers.prompt(0, &scores) else {
        panic!()
    };
    let shown: Vec<_> =
        tokens.iter().map(|t| (t.id, t.text.as_str(), t.logprob, t.is_special)).collect();
    assert_eq!(
        shown,
        [(31, "<s>", None, true), (1, "a", Some(-0.5), false), (2, "b", Some(-1.0), false)]
    );
    assert_eq!(tokens[1].top[0].text, " the");
    let event = told.answers.token(0, 0, scored(29, -0.25), &[scored(29, -0.25)]);
    let Some(Event::Token { token, text, .. }) = event else { panic!("{event:?}") };
    assert_eq!(
        (token.text.as_str(), token.bytes.as_slice(), text.as_str()),
        ("\u{fffd}", &[0xc3][..], "")
    );
    assert_eq!((token.logprob, token.top.len()), (Some(-0.25), 1));
    told.answers.token(0, 0, scored(0, -0.5), &[]);
    let ended = Choice { logprob: -0.75, ..choice(&[29, 0], FinishReason::EndToken) };
    let done = told.finished(0, vec![ended]);
    let completion = &done[0].1;
    assert_eq!((completion.logprob, completion.tokens.len()), (Some(-0.75), 2));
    assert!(completion.tokens[1].is_special);
}

#[test]
fn text_ends_before_a_stop_string() {
    let check = |parameters: Value,
                 ids: &[u32],
                 finish,
                 stop: Option<usize>,
                 expect: (&str, Option<StopCause>)| {
        let mut told = told(&[text("a")], parameters.clone());
        let streamed: String = ids.iter().filter_map(|id| told.token(0, 0, *id)).collect();
        let done = told.finished(0, vec![Choice { stop, ..choice(ids, finish) }]);
        let (rest, completion) = &done[0];
        assert_eq!(&format!("{streamed}{rest}"), &completion.text);
        let full = completion.full_text.clone().unwrap();
        assert_eq!((completion.text.as_str(), completion.stop.clone()), expect, "{parameters}");
        assert_eq!(full, format!("a{}", expect.0));
    };
    let with = |mut parameters: Value| {
        parameters["return_full_text"] = json!(true);
        parameters
    };
    let stop = || Some(StopCause::Text("cd".to_owned()));
    check(
        with(json!({"stop": ["x", "cd"]})),
        &[2, 3, 4],
        FinishReason::Stop,
        Some(1),
        ("b", stop()),
    );
    check(
        with(json!({"stop": ["x", "cd"], "include_stop_str_in_output": true})),
        &[2, 3, 4],
        FinishReason::Stop,
        Some(1),
        ("bcd", stop()),
    );
    check(with(json!({"stop": ["cd"]})), &[2, 3], FinishReason::Length, None, ("bc", None));
    check(with(json!({})), &[2, 3, 0], FinishReason::EndToken, None, ("bc", None));
    check(
        with(json!({"stop_token_ids": [4]})),
        &[2, 4],
        FinishReason::EndToken,
        None,
        ("b", Some(StopCause::Token(4))),
    );
    check(
        with(json!({"eos_token_id": 4})),
        &[2, 4],
        FinishReason::EndToken,
        None,
        ("bd", Some(StopCause::Token(4))),
    );
}

#[test]
fn the_likeliest_of_many_is_given() {
    let mut told = told(&[text("a")], json!({"do_sample": true, "best_of": 3, "n": 2, "seed": 1}));
    for (choice, id) in [(0, 2), (1, 3), (2, 4)] {
        assert_eq!(told.token(0, choice, id), None, "nothing goes out before the end");
    }
    let event = told.answers.choice_finished(0, 0, FinishReason::Length, None).unwrap();
    assert_eq!(event, None);
    let of = |id: u32, logprob| Choice { logprob, ..choice(&[id], FinishReason::Length) };
    let done = told.finished(0, vec![of(2, -3.0), of(3, -1.0), of(4, -2.0)]);
    let texts: Vec<_> = done.iter().map(|(_, c)| (c.choice, c.text.as_str())).collect();
    assert_eq!(texts, [(0, "c"), (1, "d")]);
}

#[test]
fn beams_are_put_into_words_at_the_end() {
    let beams = json!({"num_beams": 2, "num_return_sequences": 2, "stop": ["d"], "logprobs": true});
    let mut told = told(&[text("a")], beams);
    let of =
        |ids: &[u32], score| Choice { score: Some(score), ..choice(ids, FinishReason::EndToken) };
    let done = told.finished(0, vec![of(&[2, 28, 0], -0.5), of(&[3, 4, 5, 0], -0.7)]);
    let texts: Vec<_> = done.iter().map(|(_, c)| (c.choice, c.text.as_str(), c.score)).collect();
    assert_eq!(texts, [(0, "b the", Some(-0.5)), (1, "c", Some(-0.7))]);
    assert_eq!(done[0].1.tokens.iter().map(|t| t.id).collect::<Vec<_>>(), [2, 28, 0]);
    assert_eq!(told.answers.n_tokens(), 7);
}

#[test]
fn an_outcome_without_tokens_is_an_error() {
    let mut told = told(&[text("a")], json!({}));
    let outcome = Outcome::Hidden { n_rows: 0, values: Vec::new() };
    assert!(told.answers.finished(0, outcome, &mut told.ready).is_err());
}
