//! A Python with the packages of `tests/python/requirements.txt`.
//!
//! It is made once, in a cache folder: `DRIVETRAIN_TEST_CACHE`, else `~/.cache/drivetrain-tests`.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::process::Command;

use crate::{root, write};

/// The folder of Python scripts.
pub fn scripts() -> PathBuf {
    root().join("tests/python")
}

/// The cache folder.
///
/// # Errors
/// Why there is none.
pub fn cache() -> Result<PathBuf, String> {
    if let Some(folder) = std::env::var_os("DRIVETRAIN_TEST_CACHE") {
        return Ok(folder.into());
    }
    let home = std::env::var_os("HOME").ok_or("there is no home folder for a cache")?;
    Ok(PathBuf::from(home).join(".cache/drivetrain-tests"))
}

/// The interpreter of a virtual environment that is made for the requirements.
///
/// # Errors
/// Why it can't be had: there is no Python, or no network.
///
/// # Panics
/// If the requirements can't be read.
pub fn python() -> Result<PathBuf, String> {
    let cache = cache()?;
    let requirements = scripts().join("requirements.txt");
    let mut hash = DefaultHasher::new();
    std::fs::read(&requirements).expect("the requirements are there").hash(&mut hash);
    let folder = cache.join(format!("python-{:016x}", hash.finish()));
    let python = folder.join("bin/python");
    std::fs::create_dir_all(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
    // Tests run side by side, and one of them makes it.
    let lock = File::create(cache.join("python.lock"));
    lock.and_then(|lock| lock.lock().map(|()| lock)).map_err(|error| error.to_string()).and_then(
        |_lock| {
            if folder.join("complete").exists() {
                return Ok(python);
            }
            let made = Command::new("python3").args(["-m", "venv"]).arg(&folder).status();
            if !made.is_ok_and(|status| status.success()) {
                return Err("python3 makes no virtual environment".to_owned());
            }
            let quietly = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
            let installed = Command::new(&python).args(quietly).arg(&requirements).status();
            if !installed.is_ok_and(|status| status.success()) {
                return Err(format!("{} can't be installed", requirements.display()));
            }
            write(&folder, "complete", "");
            Ok(python)
        },
    )
}

/// Says that a test is skipped; on a machine that has to run everything (`DRIVETRAIN_TEST_ALL` is
/// set) that is a failure.
///
/// # Panics
/// On such a machine.
pub fn skip(test: &str, why: &str) {
    let must_run = std::env::var_os("DRIVETRAIN_TEST_ALL").is_some();
    assert!(!must_run, "{test} can't be run: {why}");
    eprintln!("skipped: {test}: {why}");
}
