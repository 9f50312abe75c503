//! Where an archive's entries go: checks each against the rules and writes it.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use crate::error::{ArtifactError, shorten};
use crate::model_dir::UnpackOptions;

/// Bytes that may be unpacked whatever the ratio is: zeros in a small model pack well.
const RATIO_FLOOR: u64 = 64 << 20;

/// Deepest directory.
const MAX_DEPTH: usize = 64;

const CHUNK_BYTES: usize = 64 << 10;

/// A file that was written: its path under the root and its size in bytes.
pub(super) type Written = (PathBuf, u64);

/// Writes entries under one directory that only this process knows, so nothing there is a link.
pub(super) struct Sink<'a> {
    archive: &'a Path,
    root: PathBuf,
    limits: &'a UnpackOptions,
    n_entries: u64,
    unpacked_bytes: u64,
    /// Bytes of the archive that were read so far.
    packed_bytes: Rc<Cell<u64>>,
    written: Vec<Written>,
}

impl<'a> Sink<'a> {
    pub(super) fn new(
        archive: &'a Path,
        root: PathBuf,
        limits: &'a UnpackOptions,
        archive_bytes: u64,
    ) -> Result<Self, ArtifactError> {
        fs::create_dir(&root).map_err(|source| ArtifactError::Io {
            path: root.clone(),
            action: "make the directory",
            source,
        })?;
        let packed_bytes = Rc::new(Cell::new(archive_bytes));
        let written = Vec::new();
        Ok(Self { archive, root, limits, n_entries: 0, unpacked_bytes: 0, packed_bytes, written })
    }

    /// A counter to be raised as the archive is read; until it is asked for, the archive's whole
    /// size counts as read.
    pub(super) fn count_packed(&mut self) -> Rc<Cell<u64>> {
        self.packed_bytes.set(0);
        Rc::clone(&self.packed_bytes)
    }

    /// Makes the directory of an entry.
    pub(super) fn directory(&mut self, name: &[u8]) -> Result<(), ArtifactError> {
        self.count_entry()?;
        let Some(relative) = self.relative(name)? else { return Ok(()) };
        fs::create_dir_all(self.root.join(relative))
            .map_err(|error| self.refuse(name, format!("can't be made a directory: {error}")))
    }

    /// Writes the file of an entry. Of two entries of one name the later stays, as with tar.
    pub(super) fn file(
        &mut self,
        name: &[u8],
        content: &mut dyn Read,
        mode: Option<u32>,
    ) -> Result<(), ArtifactError> {
        self.count_entry()?;
        let Some(relative) = self.relative(name)? else {
            return Err(self.refuse(name, "has no name".to_owned()));
        };
        let path = self.root.join(&relative);
        let cannot_write = |error: io::Error| format!("can't be written: {error}");
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| self.refuse(name, cannot_write(e)))?;
        }
        // Only whether a file is executable is taken over: no set-user-id bits, nothing that others
        // may write to.
        let mode = if mode.is_some_and(|mode| mode & 0o111 != 0) { 0o755 } else { 0o644 };
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&path)
            .map_err(|e| self.refuse(name, cannot_write(e)))?;
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut file_bytes = 0;
        loop {
            let n = match content.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.refuse(name, format!("is broken: {error}"))),
            };
            self.charge(n as u64).map_err(|reason| self.refuse(name, reason))?;
            file.write_all(&chunk[..n]).map_err(|e| self.refuse(name, cannot_write(e)))?;
            file_bytes += n as u64;
        }
        self.written.push((relative, file_bytes));
        Ok(())
    }

    /// Reads to the end of what follows the last entry, so that a cut-off archive is noticed.
    pub(super) fn drain(&mut self, rest: &mut dyn Read) -> Result<(), ArtifactError> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match rest.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(n) => self.charge(n as u64).map_err(|reason| self.broken(&reason, None))?,
                Err(error) => return Err(self.broken("is cut off or broken", Some(error))),
            }
        }
    }

    /// The files that were written; an archive without any is refused.
    pub(super) fn finish(mut self) -> Result<Vec<Written>, ArtifactError> {
        if self.written.is_empty() {
            return Err(self.broken("holds no files", None));
        }
        // A name that occurred twice has the size of its last entry.
        self.written.reverse();
        self.written.sort_by(|a, b| a.0.cmp(&b.0));
        self.written.dedup_by(|later, first| later.0 == first.0);
        Ok(self.written)
    }

    /// The error for an entry.
    pub(super) fn refuse(&self, name: &[u8], reason: String) -> ArtifactError {
        ArtifactError::ArchiveEntry {
            archive: self.archive.to_owned(),
            entry: shorten(&String::from_utf8_lossy(name)),
            reason,
        }
    }

    /// The error for the archive as a whole.
    pub(super) fn broken(&self, reason: &str, source: Option<io::Error>) -> ArtifactError {
        let reason = reason.to_owned();
        ArtifactError::Archive { archive: self.archive.to_owned(), reason, source }
    }

    fn count_entry(&mut self) -> Result<(), ArtifactError> {
        self.n_entries += 1;
        match self.n_entries > self.limits.max_entries {
            false => Ok(()),
            true => {
                let reason =
                    format!("holds more than {} entries, the limit", self.limits.max_entries);
                Err(self.broken(&reason, None))
            }
        }
    }

    /// Counts unpacked bytes before they are written.
    fn charge(&mut self, n: u64) -> Result<(), String> {
        self.unpacked_bytes = self.unpacked_bytes.saturating_add(n);
        if self.unpacked_bytes > self.limits.max_bytes {
            return Err(format!(
                "makes the archive unpack to more than {} bytes, the limit",
                self.limits.max_bytes
            ));
        }
        let allowed = self.packed_bytes.get().saturating_mul(self.limits.max_ratio);
        if self.unpacked_bytes > allowed.max(RATIO_FLOOR) {
            return Err(format!(
                "unpacks to more than {} times what was read of the archive, the limit",
                self.limits.max_ratio
            ));
        }
        Ok(())
    }

    /// An entry's path, relative to the root; `None` for the root itself, as in `./`.
    fn relative(&self, name: &[u8]) -> Result<Option<PathBuf>, ArtifactError> {
        let refuse = |reason: &str| Err(self.refuse(name, reason.to_owned()));
        if name.contains(&0) || name.contains(&b'\\') {
            return refuse("has a name with a zero byte or a backslash");
        }
        let mut relative = PathBuf::new();
        let mut depth = 0;
        for part in Path::new(OsStr::from_bytes(name)).components() {
            match part {
                Component::Normal(part) => relative.push(part),
                Component::CurDir => continue,
                Component::RootDir | Component::Prefix(_) => {
                    return refuse("is an absolute path: expected a path inside the archive");
                }
                Component::ParentDir => {
                    return refuse("leads out of the archive: expected a path without ..");
                }
            }
            depth += 1;
            if depth > MAX_DEPTH {
                return refuse("is nested deeper than 64 directories");
            }
        }
        Ok(Some(relative).filter(|_| depth > 0))
    }
}
