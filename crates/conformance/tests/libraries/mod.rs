//! Libraries of other packages, which `cargo test` of this one does not build.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use drivetrain_conformance::{CheckOptions, Report, check};
use drivetrain_engine::EngineLibrary;

pub(crate) const MANIFEST: &str = env!("CARGO_MANIFEST_DIR");

/// The library of `package`, brought up to date.
pub(crate) fn library(package: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("a test has a path");
    let profile = exe.parent().and_then(Path::parent).expect("target/<profile>/deps/<test>");
    let mut build = Command::new(env!("CARGO"));
    build.current_dir(MANIFEST).args(["build", "--quiet", "--offline", "--package", package]);
    build
        .args(["--profile", profile_name(profile)])
        .arg("--target-dir")
        .arg(profile.parent().expect("a profile's folder is in target"));
    assert!(build.status().expect("cargo runs").success(), "{package} does not build");
    let name = package.replace('-', "_");
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    profile.join(format!("{prefix}{name}{suffix}"))
}

pub(crate) fn wrong() -> &'static EngineLibrary {
    static WRONG: OnceLock<EngineLibrary> = OnceLock::new();
    WRONG.get_or_init(|| {
        EngineLibrary::open(&library("drivetrain-wrong-engines")).expect("the library opens")
    })
}

/// Checks the wrong engine with a fault in a model of `kind`.
pub(crate) fn faulty(kind: &str, fault: &str, cycles: u32) -> Report {
    let option = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let options = CheckOptions {
        model_dir: Some(Path::new(MANIFEST).join("wrong/model")),
        options: vec![option("kind", kind), option("fault", fault)],
        cycles,
        load_budget: Duration::from_secs(30),
        ..CheckOptions::default()
    };
    check(wrong(), &options)
}

/// The profile whose folder is `folder`: they have the same name but for one.
fn profile_name(folder: &Path) -> &str {
    match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    }
}
