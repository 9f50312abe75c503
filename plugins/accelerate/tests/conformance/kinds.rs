//! A model of each kind. The engine is the one that the test names: other engines compile this file, too.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use drivetrain_conformance::{CheckOptions, check};
use drivetrain_engine::through_abi;

use crate::ENGINE;

/// Held by the one that runs.
static ALONE: Mutex<()> = Mutex::new(());

fn conforms(model: &str) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let options = CheckOptions {
        model_dir: Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(model)),
        cycles: 100,
        n_threads: 2.try_into().unwrap(),
        ..CheckOptions::default()
    };
    let engine = through_abi(Arc::new(ENGINE)).unwrap();
    let report = check(&*engine, &options);
    assert!(report.passed(), "{report}");
}

#[test]
fn decoder() {
    conforms("tests/fixtures/gpt2");
}

#[test]
fn decoder_with_grouped_heads() {
    conforms("tests/fixtures/llama_gqa");
}

#[test]
fn encoder_decoder() {
    conforms("tests/fixtures/bart");
}

#[test]
fn experts() {
    conforms("tests/fixtures/mixtral");
}

#[test]
fn windows_and_norms_of_heads() {
    conforms("tests/fixtures/gemma3");
}

#[test]
fn slopes() {
    conforms("tests/fixtures/bloom");
}

#[test]
fn relative_buckets() {
    conforms("tests/fixtures/t5");
}

#[test]
fn distances() {
    conforms("tests/fixtures/deberta_v2");
}

#[test]
fn encoder() {
    conforms("tests/fixtures/bert");
}

#[test]
fn labels_of_sequences() {
    conforms("tests/fixtures/heads/bert_labels");
    conforms("tests/fixtures/heads/bart_nli");
    conforms("tests/fixtures/heads/llama_labels");
}

#[test]
fn labels_of_tokens_and_masks() {
    conforms("tests/fixtures/heads/gpt2_tags");
    conforms("tests/fixtures/heads/bert_mask");
    conforms("tests/fixtures/heads/bart_spans");
}
