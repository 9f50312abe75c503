//! The Python files, which are a part of this library, unpacked for the interpreter.

use std::fs;
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

/// A private folder with the package, removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Package {
    folder: TempDir,
}

impl Package {
    /// Unpacks the package.
    pub(crate) fn unpack() -> Result<Self, PythonError> {
        let unpack = || {
            let folder = tempfile::Builder::new().prefix("drivetrain-python-").tempdir()?;
            fs::create_dir(folder.path().join("djl_python"))?;
            for (name, text) in FILES {
                fs::write(folder.path().join(name), text)?;
            }
            Ok(Self { folder })
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

#[cfg(test)]
mod tests {
    use super::*;

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
