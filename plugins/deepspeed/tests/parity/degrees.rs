//! The degrees at which the suite runs.
//!
//! This process runs it at degree 2, and itself again at others: one build for all of them. With
//! `DRIVETRAIN_TEST_ALL` set, at more of them.

use std::process::Command;

/// What another process of this program finds its degree in.
const VARIABLE: &str = "DRIVETRAIN_TEST_DEGREE";

/// What another process of this program finds in it if its ranks are processes.
const MPI_VARIABLE: &str = "DRIVETRAIN_TEST_MPI";

/// Whether ranks are processes, too.
pub(crate) fn is_mpi() -> bool {
    std::env::var_os(MPI_VARIABLE).is_some()
}

/// The degree of this process.
pub(crate) fn own() -> u32 {
    std::env::var(VARIABLE).ok().map_or(2, |degree| degree.parse().unwrap())
}

/// Runs the other tests that have one of `filters` in their names, or all, in a process of their own.
pub(crate) fn run_with(variables: &[(&str, &str)], filters: &[&str]) {
    let mut suite = Command::new(std::env::current_exe().unwrap());
    suite.envs(variables.iter().copied()).args(["--skip", "degrees::", "--skip", "mpi::"]);
    let done = suite.args(filters).output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{variables:?}:\n{text}");
}

/// One after the other: each keeps all cores busy.
#[test]
fn others() {
    let more = std::env::var_os("DRIVETRAIN_TEST_ALL").is_some();
    let degrees: &[u32] = if more { &[1, 3, 4, 5, 7] } else { &[3, 5] };
    for degree in degrees {
        run_with(&[(VARIABLE, &degree.to_string())], &[]);
    }
}
