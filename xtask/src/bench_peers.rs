//! `cargo xtask bench-peers`: the engines against other libraries.

use std::process::Command;

use anyhow::Result;

use crate::process::{cargo, run, target_dir};

/// Builds the comparison and runs it with `args`.
pub(crate) fn bench_peers(args: &[String]) -> Result<()> {
    run(&mut cargo(["build", "--release", "--locked", "--package", "drivetrain-benches"]))?;
    let program = format!("bench-peers{}", std::env::consts::EXE_SUFFIX);
    run(Command::new(target_dir().join("release").join(program)).args(args))
}
