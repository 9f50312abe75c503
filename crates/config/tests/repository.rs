//! What the repository ships: the generated reference is current, and every sample parses.

use std::fs;
use std::path::{Path, PathBuf};

use drivetrain_config::{
    Environment, ModelConfig, ModelInputs, Properties, ServerConfig, ServerOverrides,
    configuration_markdown,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// `DRIVETRAIN_WRITE_DOCS=1` writes the file instead of comparing it.
#[test]
fn the_reference_is_what_the_table_says() {
    let path = root().join("docs/configuration.md");
    let wanted = configuration_markdown();
    if std::env::var_os("DRIVETRAIN_WRITE_DOCS").is_some() {
        fs::create_dir_all(root().join("docs")).expect("created");
        fs::write(&path, &wanted).expect("written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "docs/configuration.md differs from the table of keys; write it anew with \
         DRIVETRAIN_WRITE_DOCS=1 cargo test -p drivetrain-config"
    );
}

/// Every `.properties` file under `dir`, hidden directories left out.
fn properties_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("listed").flatten() {
        let path = entry.path();
        if path.is_dir() {
            properties_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "properties") {
            found.push(path);
        }
    }
}

#[test]
fn every_file_under_config_resolves_without_a_warning() {
    let mut files = Vec::new();
    properties_files(&root().join("config"), &mut files);
    files.sort();
    assert!(files.len() >= 5, "{files:?}");
    let env = Environment::default();
    let cli = ServerOverrides { sagemaker_root: "/nonexistent".into(), ..Default::default() };
    let (server, _) = ServerConfig::resolve(&cli, &env).expect("the defaults resolve");
    let empty_store = tempfile::tempdir().expect("a temporary directory");
    for path in files {
        let properties = Properties::read(&path).expect("parses").expect("readable");
        assert!(properties.is_some_and(|file| !file.entries.is_empty()), "{}", path.display());
        let warnings = if path.ends_with("serving.properties") {
            let dir = path.parent().expect("a file has a directory");
            let input =
                ModelInputs { name: "sample", dir, server: &server, env: &env, registration: &[] };
            ModelConfig::resolve(input).expect("resolves").1
        } else {
            // The file names a container's directory, which this machine may not have.
            let model_store = Some(empty_store.path().to_owned());
            let cli =
                ServerOverrides { config_file: Some(path.clone()), model_store, ..cli.clone() };
            ServerConfig::resolve(&cli, &env).expect("resolves").1
        };
        assert!(warnings.is_empty(), "{}: {warnings:?}", path.display());
    }
}
