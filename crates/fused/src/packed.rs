//! A file of packed weights beside a model's, so that a second start packs and quantises nothing.
//!
//! ```text
//! weights of the first matrix, scales of its columns, those of the next, ...
//! what is where: JSON, `Index`
//! its length (u64, little-endian), MAGIC
//! ```
//!
//! The first start with `option.packed_cache=true` writes `.drivetrain/packed-KEY.bin` in the model's
//! directory, and gives it that name once it is whole. The key covers all that the bytes depend on: the
//! files that were packed (path, size, times of change, inode), the form, the instruction set, the ranks
//! and the version. What is read back is checked against checksums; with anything amiss the weights are
//! packed as ever. No failure here fails a load.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use drivetrain_engine::{LogLevel, Services};
use drivetrain_kernels::Pool;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

/// The end of each file; the number changes with the form of what is packed.
const MAGIC: &[u8; 8] = b"DTPACK01";
/// Most bytes of an index.
const MAX_INDEX: u64 = 64 << 20;
/// Bytes that share a checksum, and are read at once.
const PIECE: usize = 1 << 20;
/// Where it lies in the model's directory.
const FOLDER: &str = ".drivetrain";

/// What is where.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Index {
    key: String,
    /// The files that were packed, without what may change of them.
    sources: Vec<PathBuf>,
    entries: HashMap<String, Entry>,
}

/// Bytes of one matrix, `[PIECE, ...]` with a checksum each.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    at: u64,
    n_bytes: u64,
    checksums: Vec<u32>,
}

/// The file, read or written.
#[derive(Debug)]
pub(crate) struct PackedFile {
    state: State,
    services: Services,
    model: String,
    /// Whether something that was read is not what was written.
    is_broken: AtomicBool,
}

#[derive(Debug)]
enum State {
    Read { file: File, index: Index, path: PathBuf },
    Write(Mutex<Option<Writer>>),
}

#[derive(Debug)]
struct Writer {
    file: NamedTempFile,
    at: u64,
    index: Index,
    path: PathBuf,
}

/// What a key is made of beside the model's files.
pub(crate) struct PackedKey<'k> {
    /// The model's directory.
    pub(crate) dir: &'k Path,
    /// Files that the weights are made of.
    pub(crate) sources: Vec<PathBuf>,
    /// How weights are held, on which instruction set, by how many ranks.
    pub(crate) form: String,
}

impl PackedKey<'_> {
    /// The key: a digest of what the packed bytes depend on.
    fn digest(&self) -> io::Result<String> {
        let mut digest = Sha256::new();
        digest.update(format!("{MAGIC:?} {} {}", env!("CARGO_PKG_VERSION"), self.form));
        for path in &self.sources {
            let of = fs::metadata(path)?;
            let file = (of.dev(), of.ino(), of.len());
            let times = [(of.mtime(), of.mtime_nsec()), (of.ctime(), of.ctime_nsec())];
            digest.update(format!("\0{} {file:?} {times:?}", path.display()));
        }
        Ok(digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
    }
}

impl PackedFile {
    /// The file of `key`, if it is there; else one to be written. `None`, with a line in the log, where
    /// neither can be.
    pub(crate) fn open(key: &PackedKey<'_>, model: &str, services: &Services) -> Option<Self> {
        let folder = key.dir.join(FOLDER);
        let state = key.digest().and_then(|digest| {
            let path = folder.join(format!("packed-{digest}.bin"));
            match read_index(&path) {
                Ok((file, index)) if index.key == digest => {
                    return Ok(State::Read { file, index, path });
                }
                _ => {}
            }
            make_folder(&folder)?;
            let file = tempfile::Builder::new().prefix("packing-").tempfile_in(&folder)?;
            let sources = key.sources.clone();
            let index = Index { key: digest, sources, entries: HashMap::new() };
            Ok(State::Write(Mutex::new(Some(Writer { file, at: 0, index, path }))))
        });
        match state {
            Ok(state) => Some(Self {
                state,
                services: services.clone(),
                model: model.to_owned(),
                is_broken: AtomicBool::new(false),
            }),
            Err(error) => {
                let message = format!(
                    "model {model}: option.packed_cache=true has no effect: {}: {error}",
                    folder.display()
                );
                services.log(LogLevel::Warn, &message);
                None
            }
        }
    }

    /// Whether `name` is there with so many bytes.
    pub(crate) fn has(&self, name: &str, n_bytes: usize) -> bool {
        let State::Read { index, .. } = &self.state else { return false };
        index.entries.get(name).is_some_and(|entry| entry.n_bytes == n_bytes as u64)
    }

    /// Reads `name` on the threads of `pool`; false where it is not what was written.
    pub(crate) fn read(&self, name: &str, pool: &Pool, to: &mut [u8]) -> bool {
        let State::Read { file, index, .. } = &self.state else { return false };
        let Some(entry) = index.entries.get(name).filter(|of| of.n_bytes == to.len() as u64) else {
            return false;
        };
        let is_whole = AtomicBool::new(true);
        pool.pieces(to, PIECE, |idx, piece| {
            let at = entry.at + (idx * PIECE) as u64;
            let is_read = file.read_exact_at(piece, at).is_ok();
            if !is_read || entry.checksums.get(idx) != Some(&crc32fast::hash(piece)) {
                is_whole.store(false, Ordering::Relaxed);
            }
        });
        let is_whole = is_whole.into_inner();
        if !is_whole {
            self.is_broken.store(true, Ordering::Relaxed);
        }
        is_whole
    }

    /// Writes `name`, if the file is one to be written.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        let State::Write(writer) = &self.state else { return };
        let mut writer = lock(writer);
        let Some(to) = writer.as_mut().filter(|to| !to.index.entries.contains_key(name)) else {
            return;
        };
        if let Err(error) = to.write(name, bytes) {
            *writer = None;
            self.warn(&error);
        }
    }

    /// Gives a file that was written its name, and removes those of the same files as they were before.
    pub(crate) fn finish(self) {
        let done = match &self.state {
            State::Read { path, .. } if self.is_broken.load(Ordering::Relaxed) => {
                fs::remove_file(path).and(Err(io::Error::other(format!(
                    "{} was damaged; the weights were packed, and the next start writes it anew",
                    path.display()
                ))))
            }
            State::Read { path, .. } => {
                self.say(LogLevel::Info, &format!("packed weights of {}", path.display()));
                return;
            }
            State::Write(writer) => match lock(writer).take() {
                Some(writer) => writer.finish(),
                None => return,
            },
        };
        match done {
            Ok(path) => {
                self.say(LogLevel::Info, &format!("packed weights are in {}", path.display()));
            }
            Err(error) => self.warn(&error),
        }
    }

    fn warn(&self, error: &io::Error) {
        self.say(LogLevel::Warn, &format!("the packed weights are not kept: {error}"));
    }

    fn say(&self, level: LogLevel, what: &str) {
        self.services.log(level, &format!("model {}: {what}", self.model));
    }
}

impl Writer {
    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        let n_bytes = bytes.len() as u64;
        let checksums = bytes.chunks(PIECE).map(crc32fast::hash).collect();
        self.index.entries.insert(name.to_owned(), Entry { at: self.at, n_bytes, checksums });
        self.at += n_bytes;
        Ok(())
    }

    fn finish(mut self) -> io::Result<PathBuf> {
        let index = serde_json::to_vec(&self.index)?;
        self.file.write_all(&index)?;
        self.file.write_all(&(index.len() as u64).to_le_bytes())?;
        self.file.write_all(MAGIC)?;
        // Its name says that it is whole, after a loss of power, too.
        self.file.as_file().sync_all()?;
        remove_older(&self.path, &self.index);
        self.file.persist(&self.path).map_err(|error| error.error)?;
        Ok(self.path)
    }
}

/// Makes the folder, which may be no link: a model must not lead writes elsewhere.
fn make_folder(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        done => return done,
    }
    match fs::symlink_metadata(folder)?.is_dir() {
        true => Ok(()),
        false => Err(io::Error::other("it is no directory")),
    }
}

/// Removes the files of the same sources, which have changed since, and what writers that were killed have
/// left. A form beside it, whose files are as they were, stays.
fn remove_older(path: &Path, index: &Index) {
    const ABANDONED_SECONDS: u64 = 24 * 3600;
    let Some(entries) = path.parent().and_then(|folder| fs::read_dir(folder).ok()) else { return };
    let newest = index.sources.iter().filter_map(|source| fs::metadata(source).ok());
    let newest = newest.map(|of| (of.ctime(), of.ctime_nsec())).max();
    for entry in entries.flatten() {
        let (Ok(of), name) = (entry.metadata(), entry.file_name()) else { continue };
        let name = name.to_string_lossy();
        let age = of.modified().ok().and_then(|at| at.elapsed().ok()).unwrap_or_default();
        let is_abandoned = name.starts_with("packing-") && age.as_secs() > ABANDONED_SECONDS;
        let is_older = || {
            name.starts_with("packed-")
                && Some((of.mtime(), of.mtime_nsec())) < newest
                && read_index(&entry.path()).is_ok_and(|(_, old)| old.sources == index.sources)
        };
        if is_abandoned || is_older() {
            // Another server's cleaning may have been faster.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Opens a file and reads what is where.
fn read_index(path: &Path) -> io::Result<(File, Index)> {
    let broken = |what: &str| io::Error::other(format!("{}: {what}", path.display()));
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(broken("it is no file"));
    }
    let file = File::open(path)?;
    let end = file.metadata()?.len();
    let at = end.checked_sub(16).ok_or_else(|| broken("it is too short"))?;
    let mut tail = [0; 16];
    file.read_exact_at(&mut tail, at)?;
    let (len, magic) = tail.split_at(8);
    let mut number = [0; 8];
    number.copy_from_slice(len);
    let len = u64::from_le_bytes(number);
    let start = at.checked_sub(len).filter(|_| len <= MAX_INDEX && magic == MAGIC);
    let start = start.ok_or_else(|| broken("it does not end as packed weights do"))?;
    let mut json = vec![0; len as usize];
    file.read_exact_at(&mut json, start)?;
    let index: Index = serde_json::from_slice(&json)?;
    let is_inside = |entry: &Entry| {
        entry.at.checked_add(entry.n_bytes).is_some_and(|end| end <= start)
            && entry.checksums.len() as u64 == entry.n_bytes.div_ceil(PIECE as u64)
    };
    match index.entries.values().all(is_inside) {
        true => Ok((file, index)),
        false => Err(broken("an entry lies outside")),
    }
}

/// Takes a lock whose data no panic leaves half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
