//! The conformance suite across the ABI, with two ranks, on models whose ranks meet in different ways: in a
//! process of its own and one after the other, since it looks at how much the process grows. What is not
//! of the ranks it checks on more models in the fastertransformer engine.
#![allow(clippy::unwrap_used, reason = "clippy's exception for tests leaves out their helpers")]

use std::path::Path;
use std::sync::Arc;

use drivetrain_conformance::{CheckOptions, check};
use drivetrain_deepspeed::DeepSpeed;
use drivetrain_engine::through_abi;

#[test]
fn ranks_conform() {
    for model in ["llama_gqa", "bart", "heads/bert_labels"] {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
        let options = CheckOptions {
            model_dir: Some(fixtures.join(model)),
            options: vec![("tensor_parallel_degree".to_owned(), "2".to_owned())],
            cycles: 100,
            n_threads: 2.try_into().unwrap(),
            ..CheckOptions::default()
        };
        let engine = through_abi(Arc::new(DeepSpeed)).unwrap();
        let report = check(&*engine, &options);
        assert!(report.passed(), "{model}: {report}");
    }
}
