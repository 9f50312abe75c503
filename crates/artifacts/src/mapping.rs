//! Files mapped into memory: the only unsafe code of this crate.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::ArtifactError;
use crate::file::open_regular;

/// A regular file whose bytes are read when they are touched.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    /// Kept for reads that must fail rather than fault.
    file: File,
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
                // Another process can change the file: if it writes to it, reads give the old or the
                // new bytes, and the cost is wrong weights; what was checked once (headers) was
                // copied out first. If it truncates the file, touching a lost page raises SIGBUS and
                // ends this process, so what is streamed is read by `read_at`. Model files are
                // replaced by rename, never rewritten in place, by this crate and the hub's clients.
                // SAFETY: the map is private and read-only, so nothing in this process can change
                // the bytes behind the slices made from it, and every type made from them (numbers
                // of any bit pattern) is valid.
                let map = unsafe { Mmap::map(&file) };
                Some(map.map_err(|source| ArtifactError::Io {
                    path: path.to_owned(),
                    action: "map",
                    source,
                })?)
            }
        };
        Ok(Self { path: path.to_owned(), file, map })
    }

    /// Fills `out` with the bytes from `start` on by a system call, into no page of the map.
    ///
    /// # Errors
    /// The file has become shorter, or can't be read.
    pub(crate) fn read_at(&self, start: usize, out: &mut [u8]) -> Result<(), ArtifactError> {
        self.file.read_exact_at(out, start as u64).map_err(|error| {
            let source = match error.kind() {
                io::ErrorKind::UnexpectedEof => io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("the file ends before byte {}: it was changed", start + out.len()),
                ),
                _ => error,
            };
            ArtifactError::Io { path: self.path.clone(), action: "read", source }
        })
    }

    /// Asks the system to read `n` bytes from `start` on before they are asked for.
    pub(crate) fn expect(&self, start: usize, n: usize) {
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::{Advice, fadvise};
            let Some(n) = std::num::NonZeroU64::new(n as u64) else { return };
            let advised = fadvise(&self.file, start as u64, Some(n), Advice::WillNeed);
            if let Err(error) = advised {
                tracing::debug!(%error, path = %self.path.display(), "no pages are read ahead");
            }
        }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives back the memory of what was read of `span`; touching it reads the file again.
    pub(crate) fn release(&self, span: Range<usize>) {
        let Some(map) = &self.map else { return };
        if span.start >= span.end || span.end > map.len() {
            return;
        }
        #[cfg(unix)]
        {
            // SAFETY: the map is of a file and read-only, so pages that are dropped come back from the
            // file with the same bytes; slices made from it stay valid.
            let advised = unsafe {
                map.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    span.start,
                    span.len(),
                )
            };
            if let Err(error) = advised {
                tracing::debug!(%error, path = %self.path.display(), "pages stay in memory");
            }
        }
    }

    /// Its content.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    /// Bytes of the file that are in this process's memory.
    fn resident(path: &Path) -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let path = path.to_str().unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.ends_with(path)).skip(1);
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    #[test]
    fn released_pages_leave_memory_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("weights");
        let content: Vec<u8> =
            (0..1 << 20).map(|idx: u32| (idx.wrapping_mul(31) >> 3) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let file = MappedFile::open(&path).unwrap();
        assert!(file.bytes() == content);
        assert_eq!(resident(&path), content.len());
        file.release(0..content.len() / 2);
        assert!(resident(&path) <= content.len() / 2);
        assert!(file.bytes() == content);
        // Nothing of the file, and more than the file, are no pages.
        file.release(5..5);
        file.release(0..content.len() + 1);
        assert_eq!(resident(&path), content.len());
    }
}
