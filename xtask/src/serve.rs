//! `cargo xtask serve`: the server as it would run in a container, from a fresh layout.

use std::process::Command;

use anyhow::Result;

use crate::{dist, process};

/// Lays out `target/dist` and becomes `drivetrain serve` with `args`.
pub(crate) fn serve(args: &[String]) -> Result<()> {
    let out = process::target_dir().join("dist");
    dist::dist(&out)?;
    let mut server = Command::new(out.join("bin/drivetrain"));
    server.arg("serve").args(args);
    replace(&mut server)
}

/// Replaces this process, so that signals reach the server and its exit code is ours.
#[cfg(unix)]
fn replace(server: &mut Command) -> Result<()> {
    use std::os::unix::process::CommandExt;
    Err(anyhow::Error::new(server.exec()).context("starting the server"))
}

#[cfg(not(unix))]
fn replace(server: &mut Command) -> Result<()> {
    process::run(server)
}
