//! Tokenizers against what transformers makes of the same files (`data/make_tokenizers.py`).

use std::fs;
use std::path::{Path, PathBuf};

use drivetrain_artifacts::{DecodeSpecial, ModelDir, SpecialTokens, Tokenizer, UnpackOptions};
use serde_json::Value;
use tempfile::TempDir;

use crate::fixtures;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizers").join(name)
}

fn read(path: &Path) -> Result<Tokenizer, String> {
    let dir = ModelDir::open(path, &UnpackOptions::default()).unwrap();
    Tokenizer::read(&dir).map_err(|error| error.to_string())
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The pieces that a stream gives out for these tokens.
fn stream(tokenizer: &Tokenizer, ids: &[u32], special: DecodeSpecial) -> String {
    let mut stream = tokenizer.stream_with(special);
    let mut text: String = ids.iter().filter_map(|id| stream.push(*id)).collect();
    text.extend(stream.finish());
    text
}

fn check_decode(tokenizer: &Tokenizer, name: &str, ids: &[u32], skip: &Value, keep: &Value) {
    for (special, expect) in [(DecodeSpecial::Skip, skip), (DecodeSpecial::Keep, keep)] {
        let text = tokenizer.decode(ids, special).unwrap();
        assert_eq!(text, expect.as_str().unwrap(), "{name}: {ids:?}");
        assert_eq!(stream(tokenizer, ids, special), text, "{name}: {ids:?}");
    }
}

fn check_tokenizer(name: &str, expect: &Value, reference: &Value) {
    let tokenizer = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)).unwrap();
    let texts = reference["texts"].as_array().unwrap();
    for (text, case) in texts.iter().zip(expect["cases"].as_array().unwrap()) {
        let text = text.as_str().unwrap();
        let shown: String = text.chars().take(60).collect();
        let added = tokenizer.encode(text, SpecialTokens::Add).unwrap();
        assert_eq!(added.ids, ids(&case[0]), "{name}: {shown:?}");
        let plain = tokenizer.encode(text, SpecialTokens::None).unwrap();
        assert_eq!(plain.ids, ids(&case[1]), "{name}: {shown:?}");
        check_decode(&tokenizer, name, &added.ids, &case[2], &case[3]);
    }
    let pairs = reference["pairs"].as_array().unwrap();
    for (pair, case) in pairs.iter().zip(expect["pairs"].as_array().unwrap()) {
        let (first, second) = (pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
        let encoding = tokenizer.encode_pair(first, second, SpecialTokens::Add).unwrap();
        assert_eq!(encoding.ids, ids(&case[0]), "{name}: {pair}");
        assert_eq!(encoding.type_ids, ids(&case[1]), "{name}: {pair}");
    }
    for case in expect["decode"].as_array().unwrap() {
        check_decode(&tokenizer, name, &ids(&case[0]), &case[1], &case[2]);
    }
    assert_eq!(Value::from(tokenizer.vocab_size()), expect["vocab_size"], "{name}");
    let special = [
        ("bos", tokenizer.bos_token_id()),
        ("eos", tokenizer.eos_token_id()),
        ("pad", tokenizer.pad_token_id()),
        ("unk", tokenizer.unk_token_id()),
        ("sep", tokenizer.sep_token_id()),
        ("cls", tokenizer.cls_token_id()),
        ("mask", tokenizer.mask_token_id()),
    ];
    for (kind, id) in special {
        assert_eq!(Value::from(id), expect["special"][kind], "{name}: {kind}");
    }
    assert_eq!(Value::from(tokenizer.model_max_length()), expect["model_max_length"], "{name}");
    assert_eq!(Value::from(tokenizer.chat_template()), expect["chat_template"], "{name}");
}

#[test]
fn tokenizers_of_every_form_equal_transformers() {
    let reference: Value =
        serde_json::from_slice(&fs::read(data("reference.json")).unwrap()).unwrap();
    for (name, expect) in reference["tokenizers"].as_object().unwrap() {
        check_tokenizer(name, expect, &reference);
    }
}

#[test]
fn fixtures_encode_their_prompts() {
    for name in ["bart", "bert", "falcon", "gpt2", "llama3_rope", "llama_gqa", "opt", "phi"] {
        let tokenizer = Tokenizer::read(&fixtures::open(name)).unwrap();
        let text = fs::read(fixtures::path(name).join("reference.json")).unwrap();
        let reference: Value = serde_json::from_slice(&text).unwrap();
        for prompt in reference["prompts"].as_array().unwrap() {
            let encoding =
                tokenizer.encode(prompt["text"].as_str().unwrap(), SpecialTokens::Add).unwrap();
            assert_eq!(encoding.ids, ids(&prompt["input_ids"]), "{name}");
        }
    }
}

#[test]
fn broken_definitions_name_their_file() {
    let check = |files: &[(&str, &str)], expect: &str| {
        let dir = TempDir::new().unwrap();
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        let message = read(dir.path()).unwrap_err();
        assert!(message.contains(expect), "{message}");
    };
    check(&[], "has no tokenizer: expected tokenizer.json");
    check(&[("spiece.model", "x")], "spiece.model: no tokenizer can be made");
    check(&[("tekken.json", "{}")], "its tekken.json alone does not make the tokenizer");
    let albert = ("config.json", "{\"model_type\": \"albert\"}");
    check(
        &[("spiece.model", "x"), albert],
        "has no tokenizer: expected tokenizer.json; its spiece",
    );
    let marian = ("config.json", "{\"model_type\": \"marian\"}");
    check(&[("source.spm", "x"), marian], "has no vocab.json, which belongs to its source.spm");
    check(
        &[("source.spm", "x"), ("target.spm", "x"), ("vocab.json", "{}"), marian],
        "target.spm: no tokenizer can be made",
    );
    let bert = ("config.json", "{\"model_type\": \"bert\"}");
    check(&[("spiece.model", "x"), bert], "expected tokenizer.json or vocab.txt; its spiece.model");
    check(&[("tokenizer.json", "{")], "tokenizer.json: is not valid JSON");
    check(&[("tokenizer.json", "[]")], "tokenizer.json: no tokenizer can be made");
    check(
        &[("tokenizer.json", "{\"model\": {\"type\": \"BPE\"}}")],
        "tokenizer.json: no tokenizer",
    );
    check(&[("tokenizer.json", &"[".repeat(100_000))], "tokenizer.json: is not valid JSON");
    check(&[("vocab.json", "{}")], "has no merges.txt");
    check(&[("vocab.json", "{\"a\": 0}"), ("merges.txt", "a b\n")], "vocab.json: no tokenizer");
    check(&[("vocab.json", "{\"a\": -1}"), ("merges.txt", "")], "vocab.json: no tokenizer");
    check(&[("vocab.json", "{\"a\": 0}"), ("merges.txt", "a b c\n")], "merges.txt: no tokenizer");
    let vocab = ("vocab.txt", "[UNK]\n[CLS]\n[SEP]\na\n");
    check(&[vocab, ("tokenizer_config.json", "{\"bos_token\": 3}")], "bos_token = 3: expected");
    check(
        &[vocab, ("tokenizer_config.json", "{\"added_tokens_decoder\": {\"x\": 1}}")],
        "added_tokens_decoder = {\"x\":1}: expected",
    );
}

#[test]
fn a_panic_of_the_library_is_an_error() {
    let dir = TempDir::new().unwrap();
    let text = fs::read_to_string(fixtures::path("bert").join("tokenizer.json")).unwrap();
    let mut definition: Value = serde_json::from_str(&text).unwrap();
    definition["normalizer"] =
        serde_json::json!({"type": "Precompiled", "precompiled_charsmap": "AQ=="});
    fs::write(dir.path().join("tokenizer.json"), definition.to_string()).unwrap();
    // Whether it is refused or panics is the library's affair; it must end here.
    let _ = read(dir.path()).map(|tokenizer| tokenizer.encode("text", SpecialTokens::Add));
}

/// Whether the tokenizer in `dir`, relative to the workspace, cleans spaces up.
fn cleans_up(dir: &str) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = fs::read(root.join(dir).join("tokenizer_config.json")).unwrap_or_default();
    let config: Value = serde_json::from_slice(&text).unwrap_or_default();
    config["clean_up_tokenization_spaces"] == true
}

#[test]
fn tokens_alone_make_the_text() {
    let reference: Value =
        serde_json::from_slice(&fs::read(data("reference.json")).unwrap()).unwrap();
    let mut n_checked = 0;
    for (name, expect) in reference["tokenizers"].as_object().unwrap() {
        let tokenizer =
            read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)).unwrap();
        if name.contains("bert") && !name.contains("roberta") {
            continue;
        }
        for case in expect["cases"].as_array().unwrap() {
            let ids = ids(&case[0]);
            let own = ids.iter().filter(|id| !tokenizer.is_special(**id));
            let bytes: Vec<u8> = own.flat_map(|id| tokenizer.token_bytes(*id)).collect();
            let text = case[2].as_str().unwrap();
            if text.contains('\u{fffd}') {
                continue;
            }
            let found = String::from_utf8(bytes).unwrap();
            if cleans_up(name) {
                // Decoding drops spaces before punctuation, which no token alone can tell.
                assert_eq!(found.replace(' ', ""), text.replace(' ', ""), "{name}");
            } else {
                // The first token's space is its own, and decoding takes it away.
                assert_eq!(found.trim_start_matches(' '), text.trim_start_matches(' '), "{name}");
            }
            n_checked += 1;
        }
    }
    assert!(n_checked > 20, "{n_checked}");
}
