//! `cargo xtask test`: every check a change has to pass, in the order that fails soonest.

use std::process::Command;

use anyhow::Result;

use crate::mpi;
use crate::process::{cargo, run};

/// Runs everything, or with `filters` only the tests whose names contain one of them.
pub(crate) fn test(filters: &[String]) -> Result<()> {
    if filters.is_empty() {
        run(&mut cargo(["fmt", "--all", "--check"]))?;
    }
    // The tests load the engines and start the binary that this builds.
    let features = mpi::features();
    run(cargo(["build", "--workspace", "--all-targets", "--locked"]).args(features))?;
    if filters.is_empty() {
        run(cargo(["test", "--workspace", "--locked"]).args(features))?;
        lints(features)?;
    } else {
        for filter in filters {
            run(cargo(["test", "--workspace", "--locked"]).args(features).arg(filter))?;
        }
    }
    Ok(())
}

fn lints(features: &[&str]) -> Result<()> {
    let mut clippy = cargo(["clippy", "--workspace", "--all-targets", "--locked"]);
    run(clippy.args(features).args(["--", "-D", "warnings"]))?;
    let mut doc = cargo(["doc", "--workspace", "--no-deps", "--locked"]);
    run(doc.args(features).env("RUSTDOCFLAGS", "-D warnings"))?;
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
