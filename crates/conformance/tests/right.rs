//! The suite passes the engines that are right. Alone in its process, whose memory it watches.

mod libraries;

use std::path::Path;

use drivetrain_conformance::{CheckOptions, Outcome, check};
use drivetrain_engine::EngineLibrary;
use libraries::{MANIFEST, faulty, library, wrong};

#[test]
fn an_engine_without_a_fault_passes() {
    for kind in ["decoder", "encoder", "encoder-decoder", "request"] {
        let report = faulty(kind, "none", 1000);
        assert!(report.passed(), "{kind}:\n{report}");
    }
}

#[test]
fn the_example_engine_passes() {
    let engine = EngineLibrary::open(&library("drivetrain-example")).unwrap();
    let model_dir = Some(Path::new(MANIFEST).join("../../plugins/example/model"));
    let report = check(&engine, &CheckOptions { model_dir, ..CheckOptions::default() });
    assert!(report.passed(), "{report}");
}

#[test]
fn without_a_model_the_engine_alone_is_checked() {
    let report = check(wrong(), &CheckOptions::default());
    assert!(report.passed(), "{report}");
    let last = report.cases.last().expect("the suite has cases");
    assert!(matches!(&last.outcome, Outcome::Skipped(why) if why.contains("no model directory")));
}
