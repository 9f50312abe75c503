//! `cargo xtask test`: every check a change has to pass, in the order that fails soonest.

use std::process::Command;

use anyhow::Result;

use crate::process::{cargo, run};

/// Runs everything, or with `filters` only the tests whose names contain one of them.
pub(crate) fn test(filters: &[String]) -> Result<()> {
    if filters.is_empty() {
        run(&mut cargo(["fmt", "--all", "--check"]))?;
    }
    // The tests load the engines and start the binary that this builds.
    run(&mut cargo(["build", "--workspace", "--all-targets", "--locked"]))?;
    if filters.is_empty() {
        run(&mut cargo(["test", "--workspace", "--locked"]))?;
        lints()?;
    } else {
        for filter in filters {
            run(&mut cargo(["test", "--workspace", "--locked", filter]))?;
        }
    }
    Ok(())
}

fn lints() -> Result<()> {
    let clippy = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    run(&mut cargo(clippy))?;
    run(cargo(["doc", "--workspace", "--no-deps", "--locked"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    let deny_there =
        Command::new("cargo-deny").arg("--version").output().is_ok_and(|out| out.status.success());
    if deny_there {
        // Advisories need a database from outside; bans, licences and sources are all local.
        run(&mut cargo(["deny", "check", "bans", "licenses", "sources"]))?;
    } else {
        eprintln!("skipped: cargo deny (cargo-deny is not installed)");
    }
    Ok(())
}
