//! Ranks that are processes under MPI: what becomes of requests, of the model and of the processes when one
//! of them goes.
//!
//! The tests need `drivetrain-rank` beside the binary, and `mpirun`. Where either is missing they say so and
//! are skipped, unless `DRIVETRAIN_TEST_ALL` is set.

mod hosts;
mod processes;

use std::path::Path;
use std::process::Command;

use drivetrain_tests::{Server, ServerOptions, binary, fixture, skip};
use tempfile::TempDir;

/// Whether the tests can run here.
pub(crate) fn can_run(test: &str) -> bool {
    let program = binary().with_file_name("drivetrain-rank");
    let has_mpirun = Command::new("mpirun").arg("--version").output().is_ok();
    if program.exists() && has_mpirun {
        return true;
    }
    skip(test, &format!("{} or mpirun is missing: see CONTRIBUTING.md", program.display()));
    false
}

/// A fixture's files with these properties, in a directory of their own.
pub(crate) fn model(name: &str, properties: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap().flatten() {
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    std::fs::write(dir.path().join("serving.properties"), properties).unwrap();
    dir
}

/// Serves a directory as `m`.
pub(crate) fn options(dir: &Path) -> ServerOptions {
    ServerOptions { models: vec![format!("m={}", dir.display())], ..ServerOptions::default() }
}

/// The processes of the ranks that were last loaded, in their order, as the log has them.
pub(crate) fn rank_pids(log: &str) -> Vec<u32> {
    let line = log.lines().rfind(|line| line.contains(" ranks under MPI ")).unwrap_or_default();
    let words = line.split("(process ").skip(1);
    words.filter_map(|text| text.split(' ').next()?.parse().ok()).collect()
}

/// Whether a process runs.
pub(crate) fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold anything; a zombie runs no more.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

pub(crate) fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(status.unwrap().success(), "kill -{name} {pid}");
}

/// The text that the model makes of a prompt.
pub(crate) const PROMPT: &str =
    r#"{"inputs": "hello world", "parameters": {"max_new_tokens": 12, "do_sample": false}}"#;

pub(crate) fn is_healthy(server: &Server) -> bool {
    server.get("/ping").is_ok_and(|reply| reply.status == 200)
}
