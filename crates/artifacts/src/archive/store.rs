//! The directory of unpacked archives.
//!
//! Each archive has a directory named by a key of the source file, with the files in `files` and
//! their sizes in `manifest.json`. A copy is used again only if every file of its manifest is still
//! there, because what cleans up a directory for temporary files takes single files, too.

use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::sink::Written;
use crate::error::ArtifactError;
use crate::file::read_bounded;

const FILES: &str = "files";
const MANIFEST: &str = "manifest.json";
const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// A directory that holds unpacked archives, with one that is being unpacked.
pub(super) struct Store {
    root: PathBuf,
    fresh: TempDir,
    /// The user this process runs as.
    owner: u32,
}

impl Store {
    pub(super) fn open(root: &Path) -> Result<Self, ArtifactError> {
        let io = |action| move |source| ArtifactError::Io { path: root.to_owned(), action, source };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(io("make the directory"))?;
        let fresh = tempfile::Builder::new()
            .prefix(".unpack-")
            .tempdir_in(root)
            .map_err(io("make a directory in"))?;
        let owner = fs::metadata(fresh.path()).map_err(io("read"))?.uid();
        Ok(Self { root: root.to_owned(), fresh, owner })
    }

    /// The directory to unpack into.
    pub(super) fn files(&self) -> PathBuf {
        self.fresh.path().join(FILES)
    }

    /// The complete copy of this key. What is there but not complete is moved out of the way.
    pub(super) fn find(&self, key: &str) -> Result<Option<PathBuf>, ArtifactError> {
        let copy = self.root.join(key);
        let io = |action| {
            let path = copy.clone();
            move |source| ArtifactError::Io { path, action, source }
        };
        let metadata = match fs::symlink_metadata(&copy) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io("read")(error)),
        };
        // In a directory that everybody can write to, another user may have left it.
        if metadata.is_dir() && metadata.uid() == self.owner && is_complete(&copy) {
            return Ok(Some(copy.join(FILES)));
        }
        match fs::rename(&copy, self.fresh.path().join("stale")) {
            Ok(()) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io("replace the incomplete copy")(error)),
        }
    }

    /// Gives the files that were unpacked their final name; where another process was faster, its
    /// copy is taken.
    pub(super) fn publish(self, key: &str, manifest: &[Written]) -> Result<PathBuf, ArtifactError> {
        let copy = self.root.join(key);
        let io = |action, source| ArtifactError::Io { path: copy.clone(), action, source };
        // Names that are not UTF-8 are left out: they can't be in JSON, and are not checked later.
        let named: Vec<(&str, u64)> =
            manifest.iter().filter_map(|(path, bytes)| Some((path.to_str()?, *bytes))).collect();
        let text = serde_json::to_vec(&named).map_err(|e| io("describe", e.into()))?;
        let target = self.fresh.path().join(MANIFEST);
        fs::write(&target, text).map_err(|error| io("write the manifest of", error))?;
        if let Err(error) = fs::remove_dir_all(self.fresh.path().join("stale"))
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(io("remove the incomplete copy of", error));
        }
        match fs::rename(self.fresh.path(), &copy) {
            Ok(()) => {
                // The directory lives on under its new name.
                let _ = self.fresh.keep();
                Ok(copy.join(FILES))
            }
            Err(error) => self.find(key)?.ok_or_else(|| io("name the unpacked copy", error)),
        }
    }
}

/// Names a source file by path, size and time of change, so that a changed file is another one.
pub(super) fn key(path: &Path, metadata: &Metadata) -> String {
    let absolute = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut hash = Sha256::new();
    hash.update(absolute.as_os_str().as_bytes());
    for number in [metadata.len(), metadata.ino(), metadata.dev()] {
        hash.update([0]);
        hash.update(number.to_le_bytes());
    }
    hash.update(metadata.mtime().to_le_bytes());
    hash.update(metadata.mtime_nsec().to_le_bytes());
    hash.finalize().iter().take(20).map(|byte| format!("{byte:02x}")).collect()
}

fn is_complete(copy: &Path) -> bool {
    let Ok(text) = read_bounded(&copy.join(MANIFEST), MAX_MANIFEST_BYTES) else { return false };
    let Ok(manifest) = serde_json::from_slice::<Vec<(String, u64)>>(&text) else { return false };
    let files = copy.join(FILES);
    manifest.iter().all(|(name, bytes)| {
        fs::symlink_metadata(files.join(name)).is_ok_and(|m| m.is_file() && m.len() == *bytes)
    })
}
