//! Models and options that can't be served, and what the error says.

use std::fs;
use std::path::Path;

use drivetrain_engine::{EngineError, ErrorKind};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{try_load, workspace};

/// A copy of a fixture whose config has some keys changed; `null` removes one.
fn changed(name: &str, changes: &Value) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let from = workspace("tests/fixtures").join(name);
    fs::copy(from.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let text = fs::read(from.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

fn load_error(dir: &Path) -> (EngineError, String) {
    let Err(error) = try_load(dir, &[]) else { panic!("the model was loaded") };
    let text = format!("{error}: {}", error.causes().join(": "));
    (error, text)
}

#[track_caller]
fn refused(name: &str, changes: Value, kind: ErrorKind, says: &[&str]) {
    let dir = changed(name, &changes);
    let (error, text) = load_error(dir.path());
    assert_eq!(error.kind(), kind, "{changes}: {text}");
    for part in says {
        assert!(text.contains(part), "{changes}: {text:?} does not say {part:?}");
    }
}

#[test]
fn impossible_values_name_file_and_key() {
    use ErrorKind::BadInput;
    let config = "config.json: ";
    for (name, key, value) in [
        ("bart", "encoder_attention_heads", json!(0)),
        ("bart", "decoder_attention_heads", json!(5)),
        ("bart", "d_model", json!(-32)),
        ("bart", "encoder_layers", json!(4_000_000_000u32)),
        ("bart", "vocab_size", json!("320")),
        ("gpt2", "n_embd", json!(99_999_999_999u64)),
        ("gpt2", "n_head", json!(3)),
        ("gpt2", "layer_norm_epsilon", json!(-1.0)),
        ("llama_gqa", "num_key_value_heads", json!(3)),
        ("llama_gqa", "head_dim", json!(7)),
        ("llama_gqa", "rope_theta", json!(0)),
        ("bert", "num_hidden_layers", json!(0)),
        ("bert", "model_type", json!(null)),
    ] {
        refused(name, json!({ key: value }), BadInput, &[config, key]);
    }
}

#[test]
fn sizes_that_disagree_with_the_weights_name_the_tensor() {
    use ErrorKind::BadInput;
    let says = |tensor, key| [tensor, key, "model.safetensors", "shape"];
    refused("bart", json!({"vocab_size": 400}), BadInput, &says("shared.weight", "vocab_size"));
    refused("bart", json!({"encoder_ffn_dim": 1 << 24}), BadInput, &says("fc1", "encoder_ffn_dim"));
    refused("gpt2", json!({"n_positions": 64}), BadInput, &says("wpe.weight", "n_positions"));
    refused("gpt2", json!({"n_layer": 3}), BadInput, &["h.2.", "missing", "n_embd"]);
    refused("llama_gqa", json!({"head_dim": 16}), BadInput, &says("q_proj", "heads"));
    refused("bert", json!({"type_vocab_size": 3}), BadInput, &says("token_type", "type_vocab"));
    refused("bert", json!({"vocab_size": 1 << 29}), BadInput, &says("word_emb", "vocab_size"));
}

#[test]
fn what_cannot_be_described_names_its_key() {
    use ErrorKind::Unsupported;
    for (name, key, value) in [
        ("bert", "position_embedding_type", json!("relative_key")),
        ("bert", "is_decoder", json!(true)),
        ("bert", "model_type", json!("mamba")),
        ("gpt2", "add_cross_attention", json!(true)),
        ("gpt2", "activation_function", json!("prelu")),
        ("bart", "is_encoder_decoder", json!(false)),
        ("llama_gqa", "rope_scaling", json!({"type": "spiral", "factor": 2})),
        ("llama_gqa", "partial_rotary_factor", json!(0.5)),
    ] {
        refused(name, json!({ key: value }), Unsupported, &["config.json", key]);
    }
}

#[test]
fn scalings_without_their_numbers_name_the_key() {
    for (scaling, key) in [
        (json!({"type": "linear"}), "rope_scaling.factor"),
        (json!({"rope_type": "dynamic", "factor": 0}), "rope_scaling.factor"),
        (json!({"rope_type": "llama3", "factor": 8}), "rope_scaling.low_freq_factor"),
        (json!({"rope_type": "longrope", "factor": 8}), "rope_scaling.short_factor"),
        (json!("linear"), "rope_scaling"),
    ] {
        refused("llama_gqa", json!({"rope_scaling": scaling}), ErrorKind::BadInput, &[key]);
    }
}

#[test]
fn files_that_are_missing_or_cut_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(load_error(dir.path()).0.kind(), ErrorKind::BadInput);
    let dir = changed("gpt2", &json!({}));
    let weights = dir.path().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let (error, text) = load_error(dir.path());
    assert_eq!(error.kind(), ErrorKind::BadInput);
    assert!(text.contains("model.safetensors"), "{text}");
    fs::remove_file(&weights).unwrap();
    assert_eq!(load_error(dir.path()).0.kind(), ErrorKind::BadInput);
}

#[test]
fn other_devices_are_refused_by_option() {
    let dir = workspace("tests/fixtures/gpt2");
    for map in ["cuda", "{\"\": \"cuda:1\"}", "mps"] {
        let Err(error) = try_load(&dir, &[("device_map", map)]) else { panic!("{map}") };
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().starts_with("option.device_map"), "{error}");
    }
}
