//! Weights of the fixtures and their damaged copies.

use std::fs;
use std::path::Path;

use drivetrain_artifacts::{DType, ModelConfig, ModelDir, UnpackOptions, Weights};
use tempfile::TempDir;

use crate::fixtures;

#[test]
fn every_safetensors_fixture_opens() {
    for (name, tensor, dtype) in [
        ("bart", "model.shared.weight", DType::F32),
        ("falcon", "transformer.word_embeddings.weight", DType::BF16),
        ("gpt2", "wte.weight", DType::F32),
        ("phi", "model.embed_tokens.weight", DType::F32),
        ("roberta", "embeddings.word_embeddings.weight", DType::F16),
    ] {
        let dir = fixtures::open(name);
        let config = ModelConfig::read(&dir).unwrap();
        assert_eq!(config.model_type, name);
        let weights = Weights::open(&dir).unwrap();
        let Some(embedding) = weights.get(tensor) else {
            panic!("{name}: {:?}", weights.names().collect::<Vec<_>>());
        };
        assert_eq!(embedding.dtype(), dtype, "{name}");
        assert_eq!(embedding.shape()[0] as u32, config.json.u32("vocab_size").unwrap(), "{name}");
        assert!(embedding.is_contiguous());
        let values = embedding.to_f32_vec().unwrap();
        assert!(values.iter().all(|value| value.abs() < 10.0));
    }
    assert_eq!(Weights::open(&fixtures::open("phi")).unwrap().files().len(), 2);
}

/// A safetensors file of a header and data.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn entry(name: &str, dtype: &str, shape: &str, begin: usize, end: usize) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

fn open(files: &[(&str, &[u8])]) -> Result<Weights, String> {
    let dir = TempDir::new().unwrap();
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    open_dir(dir.path())
}

fn open_dir(dir: &Path) -> Result<Weights, String> {
    let model = ModelDir::open(dir, &UnpackOptions::default()).unwrap();
    Weights::open(&model).map_err(|error| error.to_string())
}

fn refused(bytes: &[u8], expect: &str) {
    let message = open(&[("model.safetensors", bytes)]).map(|_| ()).unwrap_err();
    assert!(message.contains("model.safetensors: ") && message.contains(expect), "{message}");
}

#[test]
fn lying_headers_are_refused() {
    let a = entry("a", "F32", "[2]", 0, 8);
    refused(&file(&format!("{{{a}}}"), &[0; 8])[..40], "its header claims");
    refused(&u64::MAX.to_le_bytes(), "its header claims 18446744073709551615 bytes, 0 follow");
    refused(b"", "holds 0 bytes");
    refused(b"1234567", "holds 7 bytes");
    refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git-lfs pointer");
    refused(&file("{", b""), "is not valid JSON");
    refused(&file("[]", b""), "is not valid JSON");
    refused(&file(&"[".repeat(1000), b""), "is not valid JSON");
    refused(&file(&format!("{{{a},{a}}}"), &[0; 8]), "is not valid JSON");
    refused(&file(&format!("{{{a}}}"), &[0; 9]), "1 bytes follow the last tensor, \"a\"");
}

#[test]
fn lying_tensors_are_refused_by_name() {
    let check = |entries: &[String], n_data: usize, expect: &str| {
        refused(&file(&format!("{{{}}}", entries.join(",")), &vec![0; n_data]), expect);
    };
    let one = |dtype, shape, begin, end| [entry("a", dtype, shape, begin, end)];
    check(&one("F32", "[2]", 0, 16), 8, "tensor \"a\": its data_offsets [0, 16] are not inside");
    check(&one("F32", "[2]", 8, 0), 8, "are not inside");
    check(&one("F32", "[3]", 0, 8), 8, "takes 12 bytes, its data_offsets [0, 8] give 8");
    check(&one("F32", "[4294967296,4294967296,16]", 0, 8), 8, "more elements than memory");
    check(&one("F32", "[0,18446744073709551615,18446744073709551615]", 0, 0), 0, "more elements");
    check(&one("F32", "[-1]", 0, 8), 8, "its shape is not a list of whole numbers");
    check(&one("F32", "2", 0, 8), 8, "its shape is not a list of whole numbers");
    check(&one("F4", "[2]", 0, 8), 8, "its dtype \"F4\" is not supported");
    check(&one("F32", &format!("[{}1]", "1,".repeat(100)), 0, 4), 4, "has 101 dimensions");
    let pair = |begin| [entry("a", "U8", "[8]", 0, 8), entry("b", "U8", "[8]", begin, begin + 8)];
    assert!(
        open(&[("model.safetensors", &file(&format!("{{{}}}", pair(8).join(",")), &[0; 16]))])
            .is_ok()
    );
    check(&pair(4), 12, "tensor \"b\": its data at [4, 12] overlap \"a\"");
    check(&pair(0), 8, "overlap");
    check(&pair(12), 20, "tensor \"b\": its data at [12, 20] leave a gap after \"a\"");
}

#[test]
fn what_is_no_file_is_refused() {
    let dir = TempDir::new().unwrap();
    assert!(
        open_dir(dir.path()).unwrap_err().contains("has no weights: expected model.safetensors")
    );
    fs::create_dir(dir.path().join("model.safetensors")).unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    assert!(open_dir(dir.path()).unwrap_err().contains("is a directory, expected a regular file"));
    fs::remove_dir(dir.path().join("model.safetensors")).unwrap();
    let pipe = dir.path().join("model.safetensors");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(open_dir(dir.path()).unwrap_err().contains("is a pipe, expected a regular file"));
}

#[test]
fn shards_follow_their_index() {
    let shard = |name: &str| file(&format!("{{{}}}", entry(name, "U8", "[1]", 0, 1)), &[7]);
    let (a, b) = (shard("a"), shard("b"));
    let check = |index: &str, expect: &str| {
        let files: [(&str, &[u8]); 3] = [
            ("x-1.safetensors", &a),
            ("x-2.safetensors", &b),
            ("model.safetensors.index.json", index.as_bytes()),
        ];
        match open(&files) {
            Ok(weights) => assert_eq!(weights.names().collect::<Vec<_>>().join(","), expect),
            Err(message) => assert!(message.contains(expect), "{message}"),
        }
    };
    check(r#"{"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}"#, "a,b");
    check(
        r#"{"weight_map": {"a": "x-3.safetensors"}}"#,
        "the shard \"x-3.safetensors\", which is not",
    );
    check(
        r#"{"weight_map": {"c": "x-1.safetensors"}}"#,
        "tensor \"c\": is not in \"x-1.safetensors\"",
    );
    check(r#"{"weight_map": {"a": "../x-1.safetensors"}}"#, "leads out of the model");
    check(r#"{"weight_map": {"a": "/etc/passwd"}}"#, "leads out of the model");
    check(r#"{"weight_map": {"a": 1}}"#, "tensor \"a\": its weight_map entry is not a file name");
    check(r#"{"weight_map": {}}"#, "weight_map = {}: expected");
    check("{}", "weight_map is missing");

    let two: [(&str, &[u8]); 2] = [("x-1.safetensors", &a), ("x-2.safetensors", &b)];
    let message = open(&two).map(|_| ()).unwrap_err();
    assert!(message.contains("model.safetensors.index.json that says"), "{message}");
    assert_eq!(open(&two[..1]).unwrap().get("a").unwrap().bytes(), [7]);
}

#[test]
fn files_of_a_plain_directory_may_be_links() {
    let dir = TempDir::new().unwrap();
    let blobs = TempDir::new().unwrap();
    let bytes = file(&format!("{{{}}}", entry("a", "U8", "[1]", 0, 1)), &[7]);
    fs::write(blobs.path().join("blob"), bytes).unwrap();
    let link = dir.path().join("model.safetensors");
    std::os::unix::fs::symlink(blobs.path().join("blob"), &link).unwrap();
    assert!(open_dir(dir.path()).is_ok());
}
