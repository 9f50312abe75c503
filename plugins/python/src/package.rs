//! The Python files, which are a part of this library, unpacked for the interpreter.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::error::PythonError;

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../python/", $name)))),*]
    };
}

/// Every file, by its place under the package's root.
const FILES: [(&str, &str); 13] = files![
    "start.py",
    "djl_python/__init__.py",
    "djl_python/decorators.py",
    "djl_python/encode_decode.py",
    "djl_python/inputs.py",
    "djl_python/np_util.py",
    "djl_python/outputs.py",
    "djl_python/pair_list.py",
    "djl_python/prepare.py",
    "djl_python/service.py",
    "djl_python/torchserve.py",
    "djl_python/wire.py",
    "djl_python/worker.py",
];

/// What the names of such folders begin with.
const PREFIX: &str = "drivetrain-python-";

/// The file in a folder whose lock its process holds.
const LOCK: &str = "lock";

/// A private folder with the package, removed when it is dropped, or by the next process if this one ends
/// before.
#[derive(Debug)]
pub(crate) struct Package {
    folder: TempDir,
    _lock: File,
}

impl Package {
    /// Unpacks the package.
    pub(crate) fn unpack() -> Result<Self, PythonError> {
        let unpack = || {
            remove_left(&std::env::temp_dir());
            let folder = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
            // Under its name the file is never seen without its lock.
            let unnamed = folder.path().join("unlocked");
            let lock = File::create_new(&unnamed)?;
            lock.lock()?;
            fs::rename(unnamed, folder.path().join(LOCK))?;
            fs::create_dir(folder.path().join("djl_python"))?;
            for (name, text) in FILES {
                fs::write(folder.path().join(name), text)?;
            }
            Ok(Self { folder, _lock: lock })
        };
        unpack().map_err(PythonError::Unpack)
    }

    /// The folder.
    pub(crate) fn root(&self) -> &Path {
        self.folder.path()
    }

    /// The script that an interpreter is given.
    pub(crate) fn script(&self) -> PathBuf {
        self.root().join("start.py")
    }
}

/// Removes the folders of processes that are gone: of one that was killed nothing is dropped.
fn remove_left(place: &Path) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_folder || !is_ours(&entry.file_name()) {
            continue;
        }
        let Ok(lock) = File::open(entry.path().join(LOCK)) else { continue };
        if lock.try_lock().is_ok() {
            // What can't be removed is for the next one to try, or for its owner.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn is_ours(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(PREFIX.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_process_left_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let folder = |name: &str| {
            let folder = place.path().join(name);
            fs::create_dir_all(folder.join("djl_python")).unwrap();
            (File::create_new(folder.join(LOCK)).unwrap(), folder)
        };
        let (lock, used) = folder("drivetrain-python-a");
        lock.lock().unwrap();
        let (_, left) = folder("drivetrain-python-b");
        let (_, other) = folder("somebody-else");
        let begun = place.path().join("drivetrain-python-c");
        fs::create_dir(&begun).unwrap();
        remove_left(place.path());
        assert!(used.is_dir() && other.is_dir() && begun.is_dir());
        assert!(!left.exists());
        drop(lock);
        remove_left(place.path());
        assert!(!used.exists());
    }

    #[test]
    fn every_file_is_embedded() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("python");
        let names = |folder: &str| -> Vec<String> {
            let entries = fs::read_dir(sources.join(folder)).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let is_source = |name: &String| name.ends_with(".py");
            names.filter(is_source).map(|name| format!("{folder}{name}")).collect()
        };
        let mut there = [names(""), names("djl_python/")].concat();
        there.sort_unstable();
        let mut embedded: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
        embedded.sort_unstable();
        assert_eq!(embedded, there);
    }

    #[test]
    fn the_folder_goes_with_the_package() {
        let package = Package::unpack().unwrap();
        let root = package.root().to_owned();
        assert!(package.script().is_file());
        drop(package);
        assert!(!root.exists());
    }
}
