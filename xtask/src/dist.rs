//! Lays out what runs from any place: the binary, the engines, and the shipped model.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::{mpi, process};

/// The engines that ship, by package.
const PLUGINS: &[&str] = &[
    "drivetrain-accelerate",
    "drivetrain-deepspeed",
    "drivetrain-fastertransformer",
    "drivetrain-python",
    "drivetrain-example",
];
/// The models that ship, by folder: what `drivetrain serve` falls back to, and what the example
/// engine is checked with. The name is the one they get.
const MODELS: &[(&str, &str)] =
    &[("config/models/bart-g2p", "bart-g2p"), ("plugins/example/model", "example")];

/// Builds in release mode and fills `out`; what was there of an earlier layout is replaced.
pub(crate) fn dist(out: &Path) -> Result<()> {
    let mut build = process::cargo(["build", "--release", "--locked", "--package", "drivetrain"]);
    for plugin in PLUGINS {
        build.args(["--package", plugin]);
    }
    let features = mpi::features();
    process::run(build.args(features))?;

    let built = process::target_dir().join("release");
    let plugins = out.join("lib/drivetrain/plugins");
    copy(&built.join("drivetrain"), &out.join("bin/drivetrain"))?;
    if !features.is_empty() {
        copy(&built.join("drivetrain-rank"), &out.join("bin/drivetrain-rank"))?;
    }
    for plugin in PLUGINS {
        let library = library_name(plugin);
        copy(&built.join(&library), &plugins.join(&library))?;
    }
    for (folder, name) in MODELS {
        let model = process::root().join(folder);
        let model_out = out.join("share/drivetrain/models").join(name);
        for entry in fs::read_dir(&model).with_context(|| format!("reading {}", model.display()))? {
            let entry = entry?;
            copy(&entry.path(), &model_out.join(entry.file_name()))?;
        }
    }
    eprintln!("laid out {}", out.display());
    Ok(())
}

/// The file cargo makes of a package's cdylib.
fn library_name(package: &str) -> String {
    format!(
        "{}{}{}",
        std::env::consts::DLL_PREFIX,
        package.replace('-', "_"),
        std::env::consts::DLL_SUFFIX
    )
}

/// Copies a file and makes its folder. The old file is unlinked, not written over: a process may
/// have it mapped.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    if to.exists() {
        fs::remove_file(to).with_context(|| format!("replacing {}", to.display()))?;
    }
    fs::copy(from, to)
        .with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}
