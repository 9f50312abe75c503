//! The conformance suite, on a model of each kind, across the ABI.

use std::sync::Arc;

use drivetrain_accelerate::Accelerate;
use drivetrain_conformance::{CheckOptions, check};
use drivetrain_engine::through_abi;

use crate::support::workspace;

fn conforms(model: &str) {
    let options = CheckOptions {
        model_dir: Some(workspace(model)),
        cycles: 100,
        n_threads: 2.try_into().unwrap(),
        ..CheckOptions::default()
    };
    let engine = through_abi(Arc::new(Accelerate)).unwrap();
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
fn encoder() {
    conforms("tests/fixtures/bert");
}
