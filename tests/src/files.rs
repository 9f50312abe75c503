//! Making model directories and archives for a test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::workspace;

/// Copies fixture `name` to `to`, its recorded outputs left out, and returns `to`.
///
/// # Panics
/// If a file can't be copied.
pub fn copy_model(name: &str, to: &Path) -> PathBuf {
    copy_dir(&workspace::fixture(name), to)
}

/// Copies the files of a model's directory to `to`, recorded outputs left out, and returns `to`.
///
/// # Panics
/// If a file can't be copied.
pub fn copy_dir(from: &Path, to: &Path) -> PathBuf {
    fs::create_dir_all(to).expect("a folder can be made");
    for entry in fs::read_dir(from).expect("the model is there") {
        let path = entry.expect("the model can be listed").path();
        let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
        let is_recorded = name.starts_with("reference") || name == "generations.json";
        if path.is_file() && !is_recorded {
            fs::copy(&path, to.join(&name)).expect("a file can be copied");
        }
    }
    to.to_path_buf()
}

/// Writes a file of a model's directory.
///
/// # Panics
/// If it can't be written.
pub fn write(dir: &Path, name: &str, text: &str) {
    fs::write(dir.join(name), text).expect("a file can be written");
}

/// Changes keys of a JSON file; `null` removes a key.
///
/// # Panics
/// If the file is no JSON object.
pub fn edit_json(path: &Path, changes: &serde_json::Value) {
    let text = fs::read(path).expect("the file is there");
    let mut value: serde_json::Value = serde_json::from_slice(&text).expect("it is JSON");
    let object = value.as_object_mut().expect("it is an object");
    for (key, change) in changes.as_object().expect("changes are an object") {
        if change.is_null() {
            object.remove(key);
        } else {
            object.insert(key.clone(), change.clone());
        }
    }
    fs::write(path, value.to_string()).expect("a file can be written");
}

/// Packs `what` of `dir` into a gzipped tarball with the system's `tar`.
///
/// # Panics
/// If `tar` fails.
pub fn archive(dir: &Path, what: &str, to: &Path) {
    let status = Command::new("tar")
        .arg("-C")
        .arg(dir)
        .arg("-czf")
        .arg(to)
        .arg(what)
        .status()
        .expect("tar can be run");
    assert!(status.success(), "tar: {status}");
}
