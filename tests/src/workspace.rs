//! Where the workspace's files lie.

use std::path::{Path, PathBuf};

/// The workspace's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the root").to_path_buf()
}

/// A fixture model's directory.
pub fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

/// A shipped model's directory.
pub fn model(name: &str) -> PathBuf {
    root().join("config/models").join(name)
}

/// The profile's folder in the target directory, where this test binary's build put everything.
fn built() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let deps = test.parent().expect("a test lies in a folder");
    deps.parent().expect("deps/ lies in the profile's folder").to_path_buf()
}

/// The `drivetrain` binary of this build.
///
/// # Panics
/// If it was not built.
pub fn binary() -> PathBuf {
    let path = built().join("drivetrain");
    assert!(path.exists(), "{} is missing: run `cargo build --workspace` first", path.display());
    path
}

/// The folder that holds this build's engines.
///
/// # Panics
/// If they were not built.
pub fn plugins() -> PathBuf {
    library("drivetrain-accelerate");
    library("drivetrain-deepspeed");
    library("drivetrain-fastertransformer");
    library("drivetrain-python");
    library("drivetrain-example");
    built()
}

/// The library that this build made of a package.
///
/// # Panics
/// If it was not built.
pub fn library(package: &str) -> PathBuf {
    let path = built().join(format!("lib{}.so", package.replace('-', "_")));
    assert!(path.exists(), "{} is missing: run `cargo build --workspace`", path.display());
    path
}

/// Every Rust file of the workspace, relative to its root.
pub fn source_files() -> Vec<PathBuf> {
    let root = root();
    let mut files = Vec::new();
    for folder in ["crates", "plugins", "tests", "benches", "xtask"] {
        visit(&root.join(folder), &mut files);
    }
    files.sort();
    files.iter().map(|file| file.strip_prefix(&root).expect("under root").to_path_buf()).collect()
}

fn visit(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                visit(&path, files);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}
