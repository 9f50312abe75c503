//! Where what is not the hub's goes: a directory for each address, laid out like the hub's cache.
//!
//! ```text
//! <download dir>/download/<first 20 bytes of the address's SHA-256>/
//!     blobs/<hash of name, version and size>     whole files, and those on their way
//!     snapshots/<hash of all of them>/           links by name: what a model is loaded from
//!     manifests/<the same>.json                  what the snapshot holds; written last
//!     latest                                     the snapshot that was used last
//!     locks/
//! ```
//!
//! A file that did not change between two versions of a prefix is downloaded once.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::SourceError;
use crate::snapshot;

const MAX_MANIFEST_BYTES: u64 = 256 << 20;

/// The directory of one address.
#[derive(Debug)]
pub(crate) struct Mirror {
    dir: PathBuf,
}

/// A file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) blob: String,
}

impl Entry {
    /// A file at a version.
    pub(crate) fn new(name: &str, etag: &str, size: u64) -> Self {
        let blob = hash([name.as_bytes(), etag.as_bytes(), &size.to_le_bytes()]);
        Self { name: name.to_owned(), size, blob }
    }
}

impl Mirror {
    pub(crate) fn new(download_dir: &Path, address: &str) -> Self {
        Self { dir: download_dir.join("download").join(hash([address.as_bytes()])) }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn blob(&self, entry: &Entry) -> PathBuf {
        self.dir.join("blobs").join(&entry.blob)
    }

    pub(crate) fn lock(&self, blob: &str) -> PathBuf {
        self.dir.join("locks").join(format!("{blob}.lock"))
    }

    /// Makes a snapshot of whole files, and remembers it as the latest.
    pub(crate) fn publish(&self, entries: &[Entry]) -> Result<PathBuf, SourceError> {
        let mut sorted: Vec<&Entry> = entries.iter().collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        let parts = sorted.iter().flat_map(|entry| [entry.name.as_bytes(), entry.blob.as_bytes()]);
        let version = hash(parts);
        let dir = self.dir.join("snapshots").join(&version);
        if self.complete(&version).is_none() {
            let links: Vec<(String, PathBuf)> =
                entries.iter().map(|entry| (entry.name.clone(), self.blob(entry))).collect();
            snapshot::link(&dir, &links)?;
            let path = self.manifest(&version);
            let text = serde_json::to_vec(&sorted).map_err(std::io::Error::from);
            snapshot::write(&path, &text.map_err(SourceError::io(&path, "describe"))?)?;
        }
        snapshot::write(&self.dir.join("latest"), version.as_bytes())?;
        snapshot::clean(&self.dir.join("blobs"), |blob| self.lock(blob));
        Ok(dir)
    }

    /// The snapshot that was used last, if all of it is there.
    pub(crate) fn latest(&self) -> Option<(PathBuf, Vec<Entry>)> {
        let version = fs::read_to_string(self.dir.join("latest")).ok()?;
        let is_hash = version.len() == 40 && version.bytes().all(|b| b.is_ascii_hexdigit());
        let entries = is_hash.then(|| self.complete(&version))??;
        Some((self.dir.join("snapshots").join(version), entries))
    }

    fn manifest(&self, version: &str) -> PathBuf {
        self.dir.join("manifests").join(format!("{version}.json"))
    }

    fn complete(&self, version: &str) -> Option<Vec<Entry>> {
        let path = self.manifest(version);
        let is_sane = fs::metadata(&path).ok()?.len() <= MAX_MANIFEST_BYTES;
        let entries: Vec<Entry> =
            is_sane.then(|| serde_json::from_slice(&fs::read(&path).ok()?).ok())??;
        let dir = self.dir.join("snapshots").join(version);
        let is_there = |entry: &Entry| {
            let size = fs::metadata(dir.join(&entry.name)).map(|metadata| metadata.len());
            size.is_ok_and(|size| size == entry.size)
        };
        entries.iter().all(is_there).then_some(entries)
    }
}

/// The first 20 bytes of a SHA-256, as text; parts are told apart by their lengths.
fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    let mut parts = parts.into_iter().peekable();
    let first = parts.next().unwrap_or_default();
    hash.update(first);
    for part in parts {
        hash.update([0]);
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(20).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_found_again_while_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mirror = Mirror::new(folder.path(), "s3://bucket/m");
        assert!(mirror.latest().is_none());
        let entries = [Entry::new("config.json", "a", 2), Entry::new("d/x.bin", "b", 3)];
        fs::create_dir_all(mirror.dir().join("blobs")).unwrap();
        fs::create_dir_all(mirror.dir().join("locks")).unwrap();
        fs::write(mirror.blob(&entries[0]), "{}").unwrap();
        fs::write(mirror.blob(&entries[1]), "abc").unwrap();
        let dir = mirror.publish(&entries).unwrap();
        assert_eq!(fs::read_to_string(dir.join("d/x.bin")).unwrap(), "abc");
        assert_eq!(mirror.latest().unwrap().0, dir);
        assert_eq!(mirror.publish(&entries).unwrap(), dir);
        let moved = folder.path().join("moved");
        fs::rename(folder.path().join("download"), &moved).unwrap();
        let inner = moved.join(dir.strip_prefix(folder.path().join("download")).unwrap());
        assert_eq!(fs::read_to_string(inner.join("config.json")).unwrap(), "{}");
        fs::rename(&moved, folder.path().join("download")).unwrap();
        fs::remove_file(mirror.blob(&entries[1])).unwrap();
        assert!(mirror.latest().is_none());
        assert_ne!(Entry::new("a", "bc", 1).blob, Entry::new("ab", "c", 1).blob);
    }

    #[test]
    fn the_directory_is_named_by_the_address() {
        // The figure is `printf %s s3://bucket/m | sha256sum`, its first 40 digits.
        let mirror = Mirror::new(Path::new("/d"), "s3://bucket/m");
        let wanted = "/d/download/d4ed7e22a61e56b9859a6aea7c6e47675f02182c";
        assert_eq!(mirror.dir().display().to_string(), wanted);
    }
}
