//! The degrees at which the suite runs.
//!
//! This process runs it at degree 2, and itself again at others: one build for all of them. With
//! `DRIVETRAIN_TEST_ALL` set, at more of them.

use std::process::Command;

/// What another process of this program finds its degree in.
const VARIABLE: &str = "DRIVETRAIN_TEST_DEGREE";

/// The degree of this process.
pub(crate) fn own() -> u32 {
    std::env::var(VARIABLE).ok().map_or(2, |degree| degree.parse().unwrap())
}

/// Runs all other tests in a process of its own.
fn run_at(degree: u32) {
    let mut suite = Command::new(std::env::current_exe().unwrap());
    let suite = suite.env(VARIABLE, degree.to_string()).args(["--skip", "degrees::"]);
    let done = suite.output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "degree {degree}:\n{text}");
}

/// One after the other: each keeps all cores busy.
#[test]
fn others() {
    let more = std::env::var_os("DRIVETRAIN_TEST_ALL").is_some();
    let degrees: &[u32] = if more { &[1, 3, 4, 5, 7] } else { &[3, 5] };
    degrees.iter().for_each(|degree| run_at(*degree));
}
