//! A file that is being downloaded, and the journal of what is there of it.
//!
//! The file has its whole size from the start, with holes; the journal beside it says which bytes
//! hold. Its first line names what is downloaded, each further line is one finished range, and a line
//! without its end is the trace of a process that was killed: it counts for nothing. Bytes are
//! written before their line is. A process that dies loses no written page, but a machine that does
//! may, so a journal of before the last boot is not believed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::intervals::Intervals;
use crate::error::SourceError;

/// Largest journal that is read: over a million ranges.
const MAX_JOURNAL_BYTES: u64 = 64 << 20;
/// End of the name of a file that is not whole.
pub(crate) const PART_SUFFIX: &str = ".drivetrain-part";
/// End of the name of its journal.
pub(crate) const JOURNAL_SUFFIX: &str = ".drivetrain-journal";

/// What is downloaded, so that nothing else is continued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    etag: String,
    size: u64,
    boot: String,
}

/// A file on its way. Its lock is held by whoever has this.
pub(super) struct Partial {
    target: PathBuf,
    part: PathBuf,
    journal: PathBuf,
    header: Header,
    file: File,
    state: Mutex<State>,
}

struct State {
    there: Intervals,
    journal: File,
}

impl Partial {
    /// Opens what there is of `target`, or begins it.
    pub(super) fn open(target: &Path, etag: &str, size: u64) -> Result<Self, SourceError> {
        let (part, journal) =
            (with_suffix(target, PART_SUFFIX), with_suffix(target, JOURNAL_SUFFIX));
        let header = Header { etag: etag.to_owned(), size, boot: boot_id() };
        let there = read_journal(&journal, &header).filter(|_| has_size(&part, size));
        let (file, state) = match there {
            Some(there) => {
                let file = OpenOptions::new()
                    .write(true)
                    .read(true)
                    .open(&part)
                    .map_err(SourceError::io(&part, "open"))?;
                // A line that was cut off would merge with the next one: the journal is written anew.
                let journal = write_journal(&journal, &header, &there)?;
                (file, State { there, journal })
            }
            None => {
                let _ = fs::remove_file(&journal);
                let file = OpenOptions::new()
                    .write(true)
                    .read(true)
                    .create(true)
                    .truncate(true)
                    .open(&part)
                    .map_err(SourceError::io(&part, "make"))?;
                file.set_len(size).map_err(SourceError::io(&part, "make room for"))?;
                let there = Intervals::default();
                let journal = write_journal(&journal, &header, &there)?;
                (file, State { there, journal })
            }
        };
        Ok(Self {
            target: target.to_owned(),
            part,
            journal,
            header,
            file,
            state: Mutex::new(state),
        })
    }

    /// Takes over what another program downloaded of the same file from its beginning.
    pub(super) fn adopt(&self, other: &Path) -> Result<(), SourceError> {
        let Ok(mut from) = File::open(other) else { return Ok(()) };
        let n_bytes = from.metadata().map_or(0, |metadata| metadata.len());
        if n_bytes == 0 || n_bytes > self.header.size || self.covered() > 0 {
            return Ok(());
        }
        let mut to = &self.file;
        let copied = io::copy(&mut io::Read::take(&mut from, n_bytes), &mut to)
            .map_err(SourceError::io(&self.part, "write"))?;
        self.record(0..copied)
    }

    /// How many bytes are there.
    pub(super) fn covered(&self) -> u64 {
        self.lock().there.covered()
    }

    /// What is missing, in pieces of at most `piece_bytes`.
    pub(super) fn gaps(&self, piece_bytes: u64) -> Vec<Range<u64>> {
        self.lock().there.gaps(self.header.size, piece_bytes)
    }

    /// Writes bytes that came, and then their line.
    pub(super) fn write(&self, start: u64, pieces: &[Bytes]) -> Result<(), SourceError> {
        let mut at = start;
        for piece in pieces {
            self.file.write_all_at(piece, at).map_err(SourceError::io(&self.part, "write"))?;
            at += piece.len() as u64;
        }
        self.record(start..at)
    }

    /// Forgets what is there.
    pub(super) fn restart(&self) -> Result<(), SourceError> {
        let mut state = self.lock();
        state.there = Intervals::default();
        state.journal = write_journal(&self.journal, &self.header, &state.there)?;
        Ok(())
    }

    /// The file as it is now.
    pub(super) fn path(&self) -> &Path {
        &self.part
    }

    /// Gives the whole file its name. That the name lasts is for the caller to see to, once for a
    /// whole directory.
    pub(super) fn finish(self) -> Result<(), SourceError> {
        self.file.sync_all().map_err(SourceError::io(&self.part, "write"))?;
        if let Err(error) = fs::rename(&self.part, &self.target) {
            // Where the file system has no locks, another process may have been faster.
            if !has_size(&self.target, self.header.size) {
                return Err(SourceError::io(&self.target, "name the downloaded file")(error));
            }
        }
        let _ = fs::remove_file(&self.journal);
        Ok(())
    }

    fn record(&self, range: Range<u64>) -> Result<(), SourceError> {
        let mut state = self.lock();
        let line = format!("{} {}\n", range.start, range.end);
        state
            .journal
            .write_all(line.as_bytes())
            .map_err(SourceError::io(&self.journal, "write"))?;
        state.there.insert(range);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn has_size(path: &Path, size: u64) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
}

/// What the journal says is there; `None` if it is of something else.
fn read_journal(path: &Path, header: &Header) -> Option<Intervals> {
    let metadata = fs::symlink_metadata(path).ok()?;
    if !metadata.is_file() || metadata.len() > MAX_JOURNAL_BYTES {
        return None;
    }
    let text = fs::read_to_string(path).ok()?;
    let mut lines = text.split_inclusive('\n');
    let first: Header = serde_json::from_str(lines.next()?.strip_suffix('\n')?).ok()?;
    if first != *header || header.boot.is_empty() {
        return None;
    }
    let mut there = Intervals::default();
    for line in lines {
        let Some(line) = line.strip_suffix('\n') else { break };
        let (start, end) = line.split_once(' ')?;
        let (start, end): (u64, u64) = (start.parse().ok()?, end.parse().ok()?);
        if start > end || end > header.size {
            return None;
        }
        there.insert(start..end);
    }
    Some(there)
}

/// Writes a journal of what is there, in place of an older one, and opens it for more.
fn write_journal(path: &Path, header: &Header, there: &Intervals) -> Result<File, SourceError> {
    let fresh = with_suffix(path, ".new");
    let mut text = serde_json::to_string(header)
        .map_err(io::Error::from)
        .map_err(SourceError::io(path, "write"))?;
    text.push('\n');
    // What is there is what is left out of the gaps.
    let mut at = 0;
    for gap in there.gaps(header.size, u64::MAX) {
        if gap.start > at {
            text.push_str(&format!("{at} {}\n", gap.start));
        }
        at = gap.end;
    }
    if at < header.size {
        text.push_str(&format!("{at} {}\n", header.size));
    }
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&fresh)
        .map_err(SourceError::io(&fresh, "make"))?;
    file.set_len(0).map_err(SourceError::io(&fresh, "write"))?;
    file.write_all(text.as_bytes()).map_err(SourceError::io(&fresh, "write"))?;
    fs::rename(&fresh, path).map_err(SourceError::io(path, "write"))?;
    Ok(file)
}

/// Names this run of the machine; empty where the system does not say, and then nothing is resumed.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(range: Range<u64>) -> Vec<Range<u64>> {
        vec![range; 1]
    }

    fn write(partial: &Partial, start: u64, text: &'static str) {
        partial.write(start, &[Bytes::from_static(text.as_bytes())]).unwrap();
    }

    #[test]
    fn what_is_there_is_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("blob");
        let partial = Partial::open(&target, "e1", 10).unwrap();
        write(&partial, 4, "4567");
        drop(partial);
        // The trace of a killed process: half a line.
        let journal = with_suffix(&target, JOURNAL_SUFFIX);
        let mut text = fs::read_to_string(&journal).unwrap();
        text.push_str("0 4");
        fs::write(&journal, text).unwrap();
        let partial = Partial::open(&target, "e1", 10).unwrap();
        assert_eq!(partial.gaps(100), [0..4, 8..10]);
        write(&partial, 8, "89");
        drop(partial);
        let partial = Partial::open(&target, "e1", 10).unwrap();
        assert_eq!(partial.gaps(100), one(0..4));
        write(&partial, 0, "0123");
        assert_eq!(partial.gaps(100), []);
        partial.finish().unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "0123456789");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn another_file_is_not_continued() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("blob");
        let begin = || {
            let partial = Partial::open(&target, "e1", 10).unwrap();
            write(&partial, 0, "01234");
        };
        let missing = |etag: &str, size: u64| Partial::open(&target, etag, size).unwrap().gaps(100);
        begin();
        assert_eq!(missing("e2", 10), one(0..10));
        begin();
        assert_eq!(missing("e1", 11), one(0..11));
        begin();
        let journal = with_suffix(&target, JOURNAL_SUFFIX);
        let text = fs::read_to_string(&journal).unwrap();
        for odd in ["0 11\n", "5 2\n", "a b\n", "7\n"] {
            fs::write(&journal, format!("{text}{odd}")).unwrap();
            assert_eq!(missing("e1", 10), one(0..10), "{odd}");
            begin();
        }
        fs::write(with_suffix(&target, PART_SUFFIX), "012").unwrap();
        assert_eq!(missing("e1", 10), one(0..10));
        begin();
        let other_boot = text.replace(&boot_id(), "another");
        fs::write(&journal, other_boot).unwrap();
        assert_eq!(missing("e1", 10), one(0..10));
    }

    #[test]
    fn another_programs_beginning_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let (target, other) = (folder.path().join("blob"), folder.path().join("blob.incomplete"));
        fs::write(&other, "0123").unwrap();
        let partial = Partial::open(&target, "e1", 10).unwrap();
        partial.adopt(&other).unwrap();
        assert_eq!(partial.gaps(100), one(4..10));
        fs::write(&other, "longer than the file").unwrap();
        partial.restart().unwrap();
        partial.adopt(&other).unwrap();
        assert_eq!(partial.gaps(100), one(0..10));
    }
}
