//! Dependencies point one way: the workspace's own graph against the table of who may use whom.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};
use drivetrain_tests::root;

/// Who may use whom of ours, in ordinary and build dependencies, by folder name. A package that is
/// not here fails the test.
const MAY_USE: &[(&str, &[&str])] = &[
    ("engine", &[]),
    ("artifacts", &[]),
    ("config", &[]),
    ("kernels", &[]),
    ("device-map", &[]),
    ("sources", &[]),
    ("transformer", &["artifacts"]),
    ("conformance", &["engine"]),
    ("host", &["config", "artifacts", "engine", "sources"]),
    ("http", &["host", "config"]),
    ("sagemaker", &["config", "artifacts", "sources"]),
    (
        "drivetrain",
        &[
            "http",
            "host",
            "config",
            "artifacts",
            "engine",
            "conformance",
            "transformer",
            "device-map",
            "sagemaker",
        ],
    ),
    ("wrong-engines", &["engine"]),
    ("example", &["engine"]),
    ("python", &["engine"]),
    ("execution", &["engine", "artifacts", "transformer"]),
    ("accelerate", &["engine", "execution", "transformer", "device-map", "kernels"]),
    ("fused", &["engine", "execution", "artifacts", "transformer", "kernels"]),
    ("fastertransformer", &["engine", "fused"]),
    ("deepspeed", &["engine", "fused"]),
];

/// Packages that may use anything, and that nothing uses.
const FREE: &[&str] = &["tests", "benches", "fuzz", "xtask"];

/// Outside crates that only some of ours may name.
const ONLY: &[(&str, &[&str])] = &[
    ("abi_stable", &["engine"]),
    ("libloading", &["engine"]),
    ("memmap2", &["artifacts"]),
    ("tokenizers", &["artifacts"]),
    ("candle-core", &["accelerate"]),
    ("candle-nn", &["accelerate"]),
    ("axum", &["http"]),
    ("object_store", &["sources"]),
    ("reqwest", &["sources"]),
    ("mpi", &["deepspeed"]),
    ("anyhow", &["drivetrain", "tests", "benches", "xtask"]),
];

fn metadata() -> Metadata {
    MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec().unwrap()
}

/// `drivetrain-http` is `http`; the binary's package is `drivetrain` itself.
fn short(package: &str) -> &str {
    package.strip_prefix("drivetrain-").unwrap_or(package)
}

fn ordinary(kind: DependencyKind) -> bool {
    matches!(kind, DependencyKind::Normal | DependencyKind::Build)
}

#[test]
fn our_crates_use_only_what_the_map_allows() {
    let metadata = metadata();
    let ours: BTreeSet<String> = metadata.packages.iter().map(|p| p.name.to_string()).collect();
    let allowed: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let name = short(&package.name);
        if FREE.contains(&name) {
            continue;
        }
        let Some(allowed) = allowed.get(name) else {
            wrong.push(format!("{name} is not in the table of this test: say what it may use"));
            continue;
        };
        for dependency in &package.dependencies {
            let used = short(&dependency.name);
            if ours.contains(&dependency.name)
                && ordinary(dependency.kind)
                && !allowed.contains(&used)
            {
                wrong.push(format!("{name} uses {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "dependencies against the map:\n{}", wrong.join("\n"));
}

#[test]
fn some_outside_crates_have_one_user() {
    let only: BTreeMap<&str, &[&str]> = ONLY.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in &metadata().packages {
        let name = short(&package.name);
        for dependency in &package.dependencies {
            let users = only.get(dependency.name.as_str());
            if ordinary(dependency.kind) && users.is_some_and(|users| !users.contains(&name)) {
                wrong.push(format!("{name} uses {}", dependency.name));
            }
        }
    }
    assert!(wrong.is_empty(), "crates with one user have another:\n{}", wrong.join("\n"));
}

#[test]
fn every_version_stands_in_the_one_table() {
    let mut wrong = Vec::new();
    for package in &metadata().packages {
        let text = std::fs::read_to_string(&package.manifest_path).unwrap();
        let manifest: toml::Table = toml::from_str(&text).unwrap();
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(table) = manifest.get(section).and_then(toml::Value::as_table) else {
                continue;
            };
            for (name, value) in table {
                if value.get("workspace").and_then(toml::Value::as_bool) != Some(true) {
                    wrong.push(format!("{}: {section}.{name}", package.name));
                }
            }
        }
        if manifest.get("lints").and_then(|l| l.get("workspace")).is_none() {
            wrong.push(format!("{}: lacks `[lints] workspace = true`", package.name));
        }
    }
    assert!(wrong.is_empty(), "not taken from the workspace's tables:\n{}", wrong.join("\n"));
}

#[test]
fn every_profile_unwinds() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let manifest: toml::Table = toml::from_str(&manifest).unwrap();
    for (name, profile) in manifest["profile"].as_table().unwrap() {
        let panic = profile.get("panic").and_then(toml::Value::as_str);
        let inherits = profile.get("inherits").is_some();
        let fits = panic == Some("unwind") || (panic.is_none() && inherits);
        assert!(
            fits,
            "profile.{name}: a panic must unwind to the engine boundary, which turns it into an error"
        );
    }
}
