//! `drivetrain inspect` against what the files say when they are counted by hand.

use std::path::Path;
use std::process::{Command, Output};

use drivetrain_tests::{archive, binary, copy_model, edit_json, fixture, skip};
use serde_json::{Value, json};

use crate::clients::cached_model;

fn inspect(model: &Path, options: &[&str]) -> Output {
    Command::new(binary()).arg("inspect").arg(model).args(options).output().unwrap()
}

fn facts(model: &Path) -> Value {
    let output = inspect(model, &["--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Elements of all tensors of a safetensors file, from its header alone.
fn n_parameters(file: &Path) -> u64 {
    let bytes = std::fs::read(file).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    let tensors = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
    let dims = |tensor: &Value| -> u64 {
        tensor["shape"].as_array().unwrap().iter().map(|dim| dim.as_u64().unwrap()).product()
    };
    tensors.map(|(_, tensor)| dims(tensor)).sum()
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|item| item.as_str().unwrap()).collect()
}

#[test]
fn figures_are_those_of_the_files() {
    // The caches: 2 layers of keys and values, of all heads in BART, of 2 heads of 8 in LLaMA.
    let check = |name: &str, kind: &str, cache: u64, cross: Option<u64>| {
        let facts = facts(&fixture(name));
        let n = n_parameters(&fixture(name).join("model.safetensors"));
        assert_eq!(facts["parameters"], n, "{name}");
        let memory = json!({"stored": 4 * n, "f32": 4 * n, "f16": 2 * n, "int8": n});
        assert_eq!(facts["memory"], memory, "{name}");
        assert_eq!(facts["weights"]["elements"], json!({"F32": n}), "{name}");
        assert_eq!(facts["kind"], kind, "{name}");
        let caches = [("KV_cache", (cache > 0).then_some(cache)), ("cross_cache", cross)];
        for (key, n_elements) in caches {
            let expect = n_elements.map(|n| json!({"f32": 4 * n, "f16": 2 * n}));
            assert_eq!(facts.get(key), expect.as_ref(), "{name}: {key}");
        }
        facts
    };
    let bart = check("bart", "encoder-decoder", 2 * 2 * 32, Some(2 * 2 * 32));
    assert_eq!(bart["head"], json!({"kind": "language model", "columns": 320, "tied": true}));
    assert_eq!(bart["task"], "text2text-generation");
    assert_eq!(bart["not_read"], json!([]));
    let superseded = ["bos_token_id", "decoder_start_token_id", "forced_eos_token_id"];
    assert!(superseded.iter().all(|key| {
        strings(&bart["superseded"]).contains(key) || strings(&bart["read"]).contains(key)
    }));
    assert!(strings(&bart["no_effect"]).contains(&"dropout"));
    let llama = check("llama_gqa", "decoder", 2 * 2 * 16, None);
    assert_eq!(llama["layers"]["decoder"]["kv_heads"], 2);
    assert_eq!(llama["chat_template"], json!(["default"]));
    let rotary = "rope_parameters.rope_type or rope_parameters.type";
    assert!(strings(&llama["default"]).contains(&rotary));
    let mbart = facts(&fixture("heads/mbart_tasks"));
    assert_eq!(strings(&mbart["languages"])[..2], ["ar_AR", "cs_CZ"]);
}

#[test]
fn heads_and_their_tasks_are_told() {
    let check = |name: &str, head: Value, default: &str, tasks: &[&str]| {
        let facts = facts(&fixture(name));
        let n = n_parameters(&fixture(name).join("model.safetensors"));
        assert_eq!(facts["parameters"], n, "{name}");
        assert_eq!(facts["head"], head, "{name}");
        assert_eq!(facts["task"], default, "{name}");
        assert_eq!(strings(&facts["tasks"]), tasks, "{name}");
        assert!(facts.get("KV_cache").is_none() && facts.get("wrong").is_none(), "{name}");
    };
    let config = std::fs::read(fixture("heads/bert_nli/config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let labels: Vec<Value> =
        (0..3).map(|idx: u32| config["id2label"][idx.to_string()].clone()).collect();
    let head = json!({"kind": "sequence classification", "columns": 3, "labels": labels});
    check(
        "heads/bert_nli",
        head,
        "text-classification",
        &[
            "feature-extraction",
            "sentence-embedding",
            "text-classification",
            "zero-shot-classification",
            "rerank",
        ],
    );
    check(
        "heads/bert_mask",
        json!({"kind": "masked tokens", "columns": config["vocab_size"], "tied": true}),
        "fill-mask",
        &["feature-extraction", "sentence-embedding", "fill-mask"],
    );
    check(
        "heads/bert_spans",
        json!({"kind": "question answering", "columns": 2}),
        "question-answering",
        &["feature-extraction", "sentence-embedding", "question-answering"],
    );
    assert_eq!(facts(&fixture("heads/sentences_mean"))["task"], "sentence-embedding");
}

#[test]
fn a_gguf_file_says_what_its_directory_says() {
    // What converts files leaves BERT's pooler out, a square matrix and its bias.
    for (name, n_left_out) in [("gemma", 0), ("bert", 48 * 48 + 48), ("flan_t5", 0)] {
        let gguf = facts(&fixture("gguf_families").join(format!("{name}.gguf")));
        let dir = facts(&fixture(name));
        let n = n_parameters(&fixture(name).join("model.safetensors"));
        assert_eq!(gguf["memory"]["f32"], 4 * (n - n_left_out), "{name}");
        for key in ["family", "kind", "layers", "vocabulary", "KV_cache", "cross_cache", "tasks"] {
            let (gguf, dir) = (gguf.get(key), dir.get(key));
            // T5's file says a length that its config leaves open.
            assert!(gguf == dir || (name == "flan_t5" && key == "layers"), "{name}: {key}");
        }
    }
    let quantised = facts(&fixture("gguf_llama/model-Q8_0.gguf"));
    let plain = facts(&fixture("gguf_llama/model-F16.gguf"));
    assert_eq!(quantised["parameters"], plain["parameters"]);
    assert_eq!(strings(&plain["gguf_not_read"]), ["llama.vocab_size"]);
    assert!(quantised["memory"]["stored"].as_u64() < plain["memory"]["stored"].as_u64());
}

#[test]
fn keys_that_nobody_knows_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = copy_model("llama3_rope", scratch.path());
    let config: Value =
        serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    let mut rope = config["rope_scaling"].clone();
    rope["fastor"] = json!(3.0);
    edit_json(
        &dir.join("config.json"),
        &json!({"num_key_value_heads": null, "num_key_value_haeds": 2, "clip_qkv": 8.0,
                "rope_scaling": rope, "some_dropout": 0.1}),
    );
    edit_json(&dir.join("generation_config.json"), &json!({"repetiton_penalty": 1.2}));
    let facts = facts(&dir);
    let unread = ["clip_qkv", "num_key_value_haeds (absent: num_key_value_heads)"];
    assert_eq!(strings(&facts["not_read"]), [unread[0], unread[1], "rope_scaling.fastor"]);
    assert!(strings(&facts["default"]).contains(&"num_key_value_heads"));
    assert!(strings(&facts["read"]).contains(&"rope_scaling.factor"));
    assert!(strings(&facts["no_effect"]).contains(&"some_dropout"));
    assert_eq!(
        strings(&facts["gen._not_read"]),
        ["repetiton_penalty (absent: repetition_penalty)"]
    );
    // Without that key there are as many as query heads, for which the file has too few rows.
    let wrong = strings(&facts["wrong"]);
    assert!(wrong[0].contains("k_proj.weight has shape"), "{wrong:?}");

    let text = inspect(&dir, &[]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("\nnot read      clip_qkv, num_key_value_haeds (absent: "), "{text}");
}

#[test]
fn what_can_be_read_is_shown_of_models_that_cannot_be_served() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = copy_model("bert", &scratch.path().join("model"));
    edit_json(&dir.join("config.json"), &json!({"model_type": "bertt"}));
    archive(&scratch.path().join("model"), ".", &scratch.path().join("model.tar.gz"));
    let facts = facts(&scratch.path().join("model.tar.gz"));
    let n = n_parameters(&fixture("bert").join("model.safetensors"));
    assert_eq!(facts["weights"]["elements"], json!({"F32": n}));
    assert_eq!(facts["family"], "bertt");
    let description = facts["description"].as_str().unwrap();
    assert!(description.contains("the nearest by name is bert"), "{description}");
    assert!(facts.get("not_read").is_none());

    // Without weights the rest is shown, and the command fails as it always has.
    edit_json(&dir.join("config.json"), &json!({"model_type": "bert"}));
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    let output = inspect(&dir, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("\nlayers        encoder 2, 4 heads"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("has no "));
}

#[test]
fn accuracy_is_measured_against_f32() {
    let plugins = drivetrain_tests::plugins().display().to_string();
    let run = |model: &str, setting: &str| {
        let options = ["--accuracy", "--json", "--plugins", plugins.as_str(), "--option", setting];
        inspect(&fixture(model), &options)
    };
    let accuracy = |model: &str, setting: &str| -> Value {
        let output = run(model, setting);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let facts: Value = serde_json::from_slice(&output.stdout).unwrap();
        facts["accuracy"].clone()
    };
    let number = |found: &Value, key: &str| found[key].as_f64().unwrap();
    let exact = accuracy("gpt2", "dtype=fp32");
    assert_eq!(number(&exact, "relative_distance"), 0.0);
    assert_eq!(number(&exact, "same_best_token"), 1.0);
    assert_eq!(exact["perplexity"], exact["perplexity_f32"]);
    // A mantissa of 8 bits, and 127 steps, at each matrix.
    for (setting, least, most) in [("dtype=bf16", 1e-4, 3e-2), ("option.quantize=int8", 1e-3, 1e-1)]
    {
        let found = accuracy("gpt2", setting);
        assert_eq!(found["perplexity_f32"], exact["perplexity"]);
        let apart = number(&found, "relative_distance");
        assert!(apart > least && apart < most, "{setting}: {apart}");
        let change = number(&found, "perplexity") / number(&found, "perplexity_f32");
        assert!((change - 1.0).abs() < 0.05, "{setting}: {change}");
    }
    // An encoder has no next token.
    let found = accuracy("bert", "dtype=bf16");
    assert!(found.get("perplexity").is_none(), "{found}");
    assert!(number(&found, "relative_distance") > 1e-4, "{found}");

    let refused = run("gpt2", "kv_cache_dtype=fp8");
    assert!(!refused.status.success());
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(error.contains("option.kv_cache_dtype=fp8: "), "{error}");
}

/// Of a real model, on a text of this repository, 8 bits cost less than 1 % of perplexity.
#[test]
fn quantised_smollm2_is_near_f32() {
    let model = match cached_model("smollm2") {
        Ok(model) => model,
        Err(why) => return skip("quantised_smollm2_is_near_f32", &why),
    };
    let plugins = drivetrain_tests::plugins().display().to_string();
    let options = ["--accuracy", "--json", "--plugins", &plugins, "--option", "quantize=int8"];
    let output = inspect(&model, &options);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let facts: Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |key: &str| facts["accuracy"][key].as_f64().unwrap();
    let exact = number("perplexity_f32");
    assert!(exact > 2.0 && exact < 100.0, "{exact}");
    let change = number("perplexity") / exact - 1.0;
    // It does change: the form is in use.
    assert!(change.abs() > 1e-5 && change < 0.01, "{:+.3} %", 100.0 * change);
}
