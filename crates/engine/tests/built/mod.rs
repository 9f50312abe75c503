//! Where cargo puts the libraries of `tests/libraries`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

/// The library made from `tests/libraries/<name>.rs`.
pub(crate) fn library(name: &str) -> PathBuf {
    static BUILD: Once = Once::new();
    let exe = std::env::current_exe().expect("a test has a path");
    let profile = exe.parent().and_then(Path::parent).expect("target/<profile>/deps/<test>");
    BUILD.call_once(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--offline", "--package", "drivetrain-engine"]);
        build.arg("--examples").current_dir(env!("CARGO_MANIFEST_DIR"));
        build
            .args(["--profile", profile_name(profile)])
            .arg("--target-dir")
            .arg(profile.parent().expect("a profile's folder is in target"));
        assert!(build.status().expect("cargo runs").success(), "the libraries do not build");
    });
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    profile.join("examples").join(format!("{prefix}abi_{name}{suffix}"))
}

/// The profile whose folder is `folder`: they have the same name but for one.
fn profile_name(folder: &Path) -> &str {
    match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    }
}
