//! `drivetrain plan` on the terminal: what it says where there is nothing to show.

use std::process::Command;

use drivetrain_tests::{binary, plugins, root};

/// What the command prints of the example's model, which fails with these arguments.
fn refusal(arguments: &[&str]) -> String {
    let output = Command::new(binary())
        .arg("plan")
        .arg(root().join("plugins/example/model"))
        .arg("--plugins")
        .arg(plugins())
        .args(arguments)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn an_engine_without_a_plan_is_named() {
    for more in [&["--json"][..], &["--max-memory", "cpu:1GiB"], &["--option", "smoothing=2"]] {
        let text = refusal(&[&["--engine", "example"], more].concat());
        assert!(text.contains("engine example: this engine states no plan"), "{text}");
    }
}

#[test]
fn what_would_not_load_is_refused_as_a_load_is() {
    let text = refusal(&["--engine", "nonesuch"]);
    assert!(text.contains("engine=nonesuch: there is no engine of this name"), "{text}");
    let text = refusal(&["--option", "smoothing"]);
    assert!(text.contains("--option smoothing: expected KEY=VALUE"), "{text}");
}
