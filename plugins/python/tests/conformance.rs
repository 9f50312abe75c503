//! The conformance suite on a handler that sends bodies back. Alone in its process, whose memory it
//! watches.
#![allow(clippy::unwrap_used, reason = "clippy's exception for tests leaves out their helpers")]

use std::path::Path;
use std::time::Duration;

use drivetrain_conformance::{CheckOptions, check};
use drivetrain_python::Python;

#[test]
fn the_engine_conforms() {
    let options = CheckOptions {
        model_dir: Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/model")),
        options: vec![("minWorkers".to_owned(), "2".to_owned())],
        // Each load starts processes; leaks of the calls show in fewer of them, too.
        load_budget: Duration::from_secs(4),
        ..CheckOptions::default()
    };
    let report = check(&Python, &options);
    assert!(report.passed(), "{report}");
    eprintln!("{report}");
}
