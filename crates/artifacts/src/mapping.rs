//! Files mapped into memory: the only unsafe code of this crate.
#![allow(unsafe_code)]

use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::ArtifactError;
use crate::file::open_regular;

/// A regular file whose bytes are read when they are touched.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    /// `None` for an empty file, which can't be mapped.
    map: Option<Mmap>,
}

impl MappedFile {
    /// Maps the whole of a regular file for reading.
    pub(crate) fn open(path: &Path) -> Result<Self, ArtifactError> {
        let (file, metadata) = open_regular(path)?;
        let map = match metadata.len() {
            0 => None,
            _ => {
                // SAFETY: the map is private and read-only, so nothing in this process can change
                // the bytes behind the slices made from it. Another process can: if it writes to
                // the file, reads give the old or the new bytes, and since every type made from
                // them (numbers of any bit pattern) is valid, the cost is wrong weights; what was
                // checked once (headers) was copied out first. If it truncates the file, touching
                // a lost page raises SIGBUS and ends this process. Model files are replaced by
                // rename, never rewritten in place, by this crate and by the hub's clients.
                let map = unsafe { Mmap::map(&file) };
                Some(map.map_err(|source| ArtifactError::Io {
                    path: path.to_owned(),
                    action: "map",
                    source,
                })?)
            }
        };
        Ok(Self { path: path.to_owned(), map })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its content.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}
