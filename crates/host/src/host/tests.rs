//! Whole models on a fake engine: life cycle, tasks, and every way a request can end.

mod adapters;
mod faults;
mod generation;
mod plan;
mod raw;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use drivetrain_engine::{EngineError, ModelKind, TokenModelInfo};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::*;
use crate::fake::{FakeEngine, hidden, info, next_token};
use crate::{Features, FinishReason, Generated, ModelStatus, Task};
use drivetrain_config::ServerOverrides;

/// A model directory whose tokens are the words `t1` to `t39`; `</s>` is 0.
fn model_dir(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let vocab: Map<String, Value> = std::iter::once(("</s>".to_owned(), json!(0)))
        .chain((1..40).map(|id| (format!("t{id}"), json!(id))))
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [{
            "id": 0, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }],
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t1"},
    });
    write(dir.path(), "tokenizer.json", &tokenizer.to_string());
    let tokenizer_config = json!({"eos_token": "</s>", "clean_up_tokenization_spaces": false});
    write(dir.path(), "tokenizer_config.json", &tokenizer_config.to_string());
    let generation = json!({"eos_token_id": 0, "decoder_start_token_id": 2});
    write(dir.path(), "generation_config.json", &generation.to_string());
    for (name, text) in files {
        write(dir.path(), name, text);
    }
    dir
}

fn write(dir: &Path, name: &str, text: &str) {
    fs::write(dir.join(name), text).unwrap();
}

fn config_json(class: &str) -> String {
    json!({"model_type": "gpt2", "architectures": [class], "decoder_start_token_id": 2}).to_string()
}

/// A directory for a model of `kind`, with these settings.
fn dir_of(kind: ModelKind, properties: &str) -> TempDir {
    let class = match kind {
        ModelKind::Decoder => "GPT2LMHeadModel",
        ModelKind::EncoderDecoder => "BartForConditionalGeneration",
        ModelKind::Encoder => "BertModel",
    };
    model_dir(&[("config.json", &config_json(class)), ("serving.properties", properties)])
}

fn host_of(engine: Arc<FakeEngine>) -> Host {
    host_with(EngineRegistry::with(engine))
}

fn host_with(engines: EngineRegistry) -> Host {
    let cli = ServerOverrides { sagemaker_root: "/nonexistent".into(), ..Default::default() };
    let env = Environment::from([("SERVING_OFFLINE", "true")]);
    let (server, _) = ServerConfig::resolve(&cli, &env).unwrap();
    Host::new(Arc::new(server), env, engines)
}

/// A host with a model of `kind`, its settings and its engine.
struct Served {
    _dir: TempDir,
    host: Host,
    model: ModelHandle,
    engine: Arc<FakeEngine>,
}

fn serve(kind: ModelKind, properties: &str) -> Served {
    serve_with(info(kind), properties)
}

fn serve_with(info: TokenModelInfo, properties: &str) -> Served {
    serve_on(FakeEngine::new("fake", info), properties)
}

fn serve_on(engine: FakeEngine, properties: &str) -> Served {
    let engine = Arc::new(engine);
    let host = host_of(Arc::clone(&engine));
    let dir = dir_of(engine.info.kind, properties);
    let model = host.load(&ModelSpec::at(dir.path().to_str().unwrap())).unwrap();
    model.wait_ready_blocking().unwrap();
    Served { _dir: dir, host, model, engine }
}

/// Why a model in this directory does not load.
fn load_failure(engine: FakeEngine, dir: &TempDir) -> String {
    let host = host_of(Arc::new(engine));
    let model = host.load(&ModelSpec::at(dir.path().to_str().unwrap())).unwrap();
    model.wait_ready_blocking().unwrap_err();
    let ModelStatus::Failed { reason } = model.status() else { panic!("{model:?}") };
    reason
}

fn request(inputs: &[&str], parameters: Value) -> TaskRequest {
    TaskRequest {
        id: "r".to_owned(),
        inputs: inputs.iter().map(|text| (*text).into()).collect(),
        is_single: false,
        parameters: parameters.as_object().cloned().unwrap_or_default(),
        deadline: None,
    }
}

/// What the engine says to these tokens.
fn continuation(encoder: &[u32], tokens: &[u32], n_new: usize) -> Vec<u32> {
    let mut all = tokens.to_vec();
    while all.len() < tokens.len() + n_new {
        all.push(next_token(encoder, &all));
        if all.last() == Some(&0) {
            break;
        }
    }
    all.split_off(tokens.len())
}

fn words(ids: &[u32]) -> String {
    let words: Vec<String> = ids.iter().filter(|id| **id > 0).map(|id| format!("t{id}")).collect();
    words.join(" ")
}

fn generated(reply: TaskReply) -> Vec<Generated> {
    let TaskReply::Generated(generated, _) = reply else { panic!("{reply:?}") };
    generated
}

#[tokio::test]
async fn text_generation_continues_each_prompt() {
    let served = serve(ModelKind::Decoder, "");
    assert_eq!(served.model.task(), Some(Task::TextGeneration));
    assert_eq!(served.model.engine_name(), Some("fake"));
    let asked = request(&["t3 t4", "t9 t9"], json!({"max_new_tokens": 5}));
    let all = generated(served.model.submit(asked).await.unwrap());
    for (one, prompt) in all.iter().zip([[3, 4], [9, 9]]) {
        let ids = continuation(&[], &prompt, 5);
        assert_eq!((one.n_prompt_tokens, one.n_tokens), (2, ids.len()));
        assert_eq!((one.ids.as_slice(), one.text.clone()), (ids.as_slice(), words(&ids)));
        assert_eq!(one.reply_text(), format!("{} {}", words(&prompt), words(&ids)).trim_end());
    }
    let asked = request(&["t9 t9"], json!({"max_new_tokens": 5, "return_full_text": false}));
    let one = &generated(served.model.submit(asked).await.unwrap())[0];
    assert_eq!((one.full_text.as_ref(), one.reply_text()), (None, one.text.as_str()));
    assert_eq!(served.host.default_model().unwrap().name(), served.model.name());
}

#[tokio::test]
async fn text2text_generation_answers_each_input() {
    let served = serve(ModelKind::EncoderDecoder, "option.task=summarization\n");
    let asked = request(&["t3 t4", "t5"], json!({"max_length": 12}));
    let reply = served.model.submit(asked).await.unwrap();
    let TaskReply::Generated(all, Task::Summarization) = reply else { panic!("{reply:?}") };
    for (one, input) in all.iter().zip([&[3, 4][..], &[5]]) {
        let ids = continuation(input, &[2], 11);
        let finish = if ids.contains(&0) { FinishReason::EndToken } else { FinishReason::Length };
        assert_eq!((&one.ids, one.finish), (&ids, finish));
        assert_eq!((one.full_text.as_ref(), one.text.clone()), (None, words(&ids)));
    }
}

#[tokio::test]
async fn features_are_the_last_hidden_states() {
    let check = async |kind, encoder: &[u32], tokens: &[u32]| {
        let served = serve(kind, "option.task=feature-extraction\n");
        let reply = served.model.submit(request(&["t3 t4 t5"], json!({}))).await.unwrap();
        let rows = (1..=tokens.len()).flat_map(|n| hidden(encoder, &tokens[..n]));
        let values = rows.collect();
        assert_eq!(reply, TaskReply::Features(vec![Features { n_tokens: 3, dim: 2, values }]));
    };
    check(ModelKind::Decoder, &[], &[3, 4, 5]).await;
    check(ModelKind::Encoder, &[], &[3, 4, 5]).await;
    check(ModelKind::EncoderDecoder, &[3, 4, 5], &[2, 3, 4]).await;
}

#[tokio::test]
async fn long_prompts_are_refused_or_cut() {
    let served = serve(ModelKind::Decoder, "");
    let long = "t7 ".repeat(65);
    let error = served.model.submit(request(&["t1", &long], json!({}))).await.unwrap_err();
    let HostError::BadRequest { message } = error else { panic!("{error:?}") };
    assert!(message.starts_with("inputs[1] has 65 tokens") && message.contains("takes 64"));
    assert!(message.contains("parameters.truncation"), "{message}");
    let asked = request(&[&long], json!({"truncation": true, "max_new_tokens": 5}));
    let error = served.model.submit(asked).await.unwrap_err();
    let HostError::BadRequest { message } = error else { panic!("{error:?}") };
    assert!(message.starts_with("inputs[0] is cut to 64 tokens"), "{message}");
    // The new tokens give way to the prompt, as far as it is not cut on purpose.
    let cut = |max_length, n_new| {
        let kwargs = json!({"max_length": max_length, "truncation": true});
        request(&[&long], json!({"tokenize_kwargs": kwargs, "max_new_tokens": n_new}))
    };
    for (max_length, n_new, n_found) in [(60, 5, 5), (60, 500, 5), (10, 5, 5)] {
        let one = &generated(served.model.submit(cut(max_length, n_new)).await.unwrap())[0];
        assert_eq!(one.n_prompt_tokens, max_length);
        assert_eq!(one.ids, continuation(&[], &vec![7; max_length], n_found));
    }
}

#[tokio::test]
async fn empty_inputs_have_clear_ends() {
    let served = serve(ModelKind::Decoder, "");
    for (inputs, expect) in [(&[""][..], "bos_token_id"), (&[], "inputs is empty")] {
        let error = served.model.submit(request(inputs, json!({}))).await.unwrap_err();
        assert!(error.to_string().contains(expect), "{error}");
    }
    let properties = "option.task=feature-extraction";
    let served = serve(ModelKind::Encoder, properties);
    let error = served.model.submit(request(&["  "], json!({}))).await.unwrap_err();
    assert!(matches!(error, HostError::BadRequest { .. }), "{error}");
}

#[test]
fn what_does_not_load_says_why() {
    let check = |info: TokenModelInfo, dir: TempDir, expect: &[&str]| {
        let reason = load_failure(FakeEngine::new("fake", info), &dir);
        assert!(expect.iter().all(|part| reason.contains(part)), "{reason}");
    };
    let decoder = info(ModelKind::Decoder);
    let set = |properties| dir_of(ModelKind::Decoder, properties);
    check(decoder, set("engine=nonesuch"), &["engine=nonesuch", "found: fake"]);
    check(decoder, set("option.task=dancing"), &["option.task", "dancing", "feature-extraction"]);
    check(
        decoder,
        set("option.task=summarization"),
        &["summarization", "decoder-only", "text-generation"],
    );
    check(
        decoder,
        set("option.model_id=facebook/bart-base"),
        &["option.model_id=facebook/bart-base", "off limits"],
    );
    check(
        decoder,
        set("option.model_id=s3://bucket/x"),
        &["option.model_id=s3://bucket/x", "off limits"],
    );
    check(decoder, set("option.model_id=a/b/c"), &["option.model_id=a/b/c", "is no hub id"]);
    check(
        decoder,
        set("option.model_id=./none"),
        &["option.model_id=./none", "there is nothing at"],
    );
    check(decoder, set("option.model_id=djl://x/y"), &["option.model_id=djl://x/y", "not served"]);
    let narrow = TokenModelInfo { vocab: 30, ..decoder };
    check(narrow, set(""), &["ids go up to 39", "30 rows"]);
    let odd = TokenModelInfo { max_batch_tokens: 0, ..decoder };
    check(odd, set(""), &["max_batch_tokens"]);
    check(
        info(ModelKind::EncoderDecoder),
        dir_of(ModelKind::Encoder, ""),
        &["BertModel", "option.task"],
    );
    let dir = set("");
    write(dir.path(), "generation_config.json", r#"{"forced_bos_token_id": 40}"#);
    check(decoder, dir, &["forced_bos_token_id=40", "tokens 0 to 39"]);
    let mut engine = FakeEngine::new("fake", decoder);
    engine.refuses = Some(EngineError::bad_input("model.safetensors: cut short"));
    assert!(load_failure(engine, &set("")).contains("cut short"));
}

#[test]
fn weights_may_lie_elsewhere() {
    let weights = dir_of(ModelKind::Decoder, "");
    let settings = tempfile::tempdir().unwrap();
    let properties = format!("option.model_id={}\n", weights.path().display());
    write(settings.path(), "serving.properties", &properties);
    let engine = Arc::new(FakeEngine::new("fake", info(ModelKind::Decoder)));
    let host = host_of(engine);
    let model = host.load(&ModelSpec::at(settings.path().to_str().unwrap())).unwrap();
    model.wait_ready_blocking().unwrap();
    let nested = tempfile::tempdir().unwrap();
    fs::create_dir(nested.path().join("w")).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json", "config.json"] {
        fs::copy(weights.path().join(file), nested.path().join("w").join(file)).unwrap();
    }
    write(nested.path(), "serving.properties", "option.model_id=w\n");
    let spec = ModelSpec::at(nested.path().to_str().unwrap());
    let spec = ModelSpec { name: Some("second".to_owned()), ..spec };
    host.load(&spec).unwrap().wait_ready_blocking().unwrap();
    assert_eq!(host.models().len(), 2);
    assert!(matches!(host.default_model(), Err(HostError::NoDefaultModel { n_models: 2 })));
    assert!(matches!(host.load(&spec), Err(HostError::Duplicate { .. })));
}

#[test]
fn unloading_gives_everything_back() {
    let served = serve(ModelKind::Decoder, "");
    let name = served.model.name().to_owned();
    served.host.unload(&name, None).unwrap();
    assert!(matches!(served.host.model(&name, None), Err(HostError::ModelNotFound { .. })));
    assert_eq!(served.model.status(), ModelStatus::Unloading);
    wait_until(|| served.engine.n_alive.load(Ordering::SeqCst) == 0);
}

#[test]
fn a_dropped_host_lets_its_models_go() {
    let served = serve(ModelKind::Decoder, "");
    let engine = Arc::clone(&served.engine);
    assert_eq!(engine.n_alive.load(Ordering::SeqCst), 1);
    drop(served);
    wait_until(|| engine.n_alive.load(Ordering::SeqCst) == 0);
}

/// Waits for something that another thread does soon.
fn wait_until(is_true: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !is_true() {
        assert!(Instant::now() < limit, "it does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}
