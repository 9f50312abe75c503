//! Files from the other side, in ranges, many at once.
//!
//! ```text
//! for each file, a few at once:          take its lock; is it here? done
//!   open what there is of it             (partial.rs: bytes and journal)
//!   for each missing piece, many at once, over all files:
//!     ask for the rest of the piece, write what comes, note it in the journal
//!     it breaks off: ask again for what is missing, later each time
//!     it is another file now: forget all of it, and have the caller look it up again
//!   check the sum, where one is known; give it its name
//! ```
//!
//! Memory is bounded by the pieces under way times what is gathered before a write.

mod intervals;
mod partial;
mod remote;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

pub(crate) use partial::{JOURNAL_SUFFIX, PART_SUFFIX, with_suffix};
pub(crate) use remote::{Body, ReadError, Remote};

use partial::Partial;

use crate::error::{Cause, SourceError};
use crate::options::Limits;
use crate::watch::Counters;
use crate::{disk, lock, retry};

/// Gathered before it is written; also the finest step of the journal.
const WRITE_BYTES: usize = 1 << 20;
/// Longest silence of the other side.
const SILENCE: Duration = Duration::from_secs(60);
/// How often a file is begun before its sum is given up on.
const MAX_SUMS: u32 = 2;

/// A file to be had.
pub(crate) struct Object {
    /// Its name in the model.
    pub(crate) name: String,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// Which version of it is meant.
    pub(crate) etag: String,
    /// Its sum, where the other side says one.
    pub(crate) sha256: Option<String>,
    /// Where it goes.
    pub(crate) blob: PathBuf,
    /// The lock on that.
    pub(crate) lock: PathBuf,
    /// Where another program may have begun it.
    pub(crate) begun: Option<PathBuf>,
    /// The other side.
    pub(crate) remote: Arc<dyn Remote>,
}

/// Why a download ended.
#[derive(Debug)]
pub(crate) enum Fault {
    /// A file is another one now: what it is has to be looked up again.
    Changed(String),
    /// Anything else.
    Source(SourceError),
}

impl From<SourceError> for Fault {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

/// What the tasks of one download share.
struct Shared {
    place: String,
    limits: Limits,
    counters: Arc<Counters>,
    connections: Arc<Semaphore>,
}

/// Brings all of `objects` that are not here.
pub(crate) async fn all(
    place: &str,
    objects: Vec<Object>,
    limits: &Limits,
    counters: &Arc<Counters>,
) -> Result<(), Fault> {
    let missing: Vec<Object> = objects.into_iter().filter(|object| !is_here(object)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    disk::check(place, &missing, limits)?;
    let dirs: BTreeSet<PathBuf> =
        missing.iter().filter_map(|object| Some(object.blob.parent()?.to_owned())).collect();
    counters.begin("downloading", missing.iter().map(|object| object.size).sum());
    let shared = Arc::new(Shared {
        place: place.to_owned(),
        limits: limits.clone(),
        counters: Arc::clone(counters),
        connections: Arc::new(Semaphore::new(limits.n_connections.max(1))),
    });
    let mut waiting = missing.into_iter();
    let mut running = JoinSet::new();
    loop {
        while running.len() < shared.limits.n_files.max(1) {
            let Some(object) = waiting.next() else { break };
            running.spawn(file(Arc::clone(&shared), Arc::new(object)));
        }
        // Leaving early drops the set, and with it ends what runs.
        match running.join_next().await {
            Some(done) => joined(&shared.place, done)?,
            None => break,
        }
    }
    let sync = move || dirs.iter().try_for_each(|dir| sync_dir(dir));
    Ok(blocking(place, sync).await?)
}

/// Sees to it that the names in a directory outlast the machine's run.
fn sync_dir(dir: &Path) -> Result<(), SourceError> {
    let synced = fs::File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(SourceError::io(dir, "write"))
}

/// Whether the whole file is here.
fn is_here(object: &Object) -> bool {
    fs::metadata(&object.blob)
        .is_ok_and(|metadata| metadata.is_file() && metadata.len() == object.size)
}

/// The result of a task; one that panicked is a fault of our own.
fn joined(
    place: &str,
    done: Result<Result<(), Fault>, tokio::task::JoinError>,
) -> Result<(), Fault> {
    done.unwrap_or_else(|error| {
        Err(Fault::Source(SourceError::Unreachable {
            place: place.to_owned(),
            reason: "a task of the download ended early".to_owned(),
            source: Some(error.into()),
        }))
    })
}

/// How a file is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Ranges,
    Whole,
}

/// Brings one file.
async fn file(shared: Arc<Shared>, object: Arc<Object>) -> Result<(), Fault> {
    let _lock = lock::take(&object.lock).await?;
    if is_here(&object) {
        shared.counters.add(object.size);
        return Ok(());
    }
    let partial = Arc::new(Partial::open(&object.blob, &object.etag, object.size)?);
    if let (Some(begun), Some(_)) = (&object.begun, &object.sha256) {
        partial.adopt(begun)?;
    }
    let resumed = partial.covered();
    shared.counters.add(resumed);
    if resumed > 0 {
        tracing::info!(
            model = shared.place,
            file = object.name,
            resumed,
            size = object.size,
            "continuing a download"
        );
    }
    let mut manner = Manner::Ranges;
    let mut n_sums = 0;
    loop {
        match pieces(&shared, &object, &partial, manner).await {
            Ok(()) => {}
            Err(End::NoRanges) if manner == Manner::Ranges => {
                manner = Manner::Whole;
                begin_again(&shared, &partial)?;
                continue;
            }
            Err(End::NoRanges) => return Err(no_ranges(&shared, &object).into()),
            Err(End::Fault(fault)) => {
                if matches!(fault, Fault::Changed(_)) {
                    object.remote.forget();
                    begin_again(&shared, &partial)?;
                }
                return Err(fault);
            }
        }
        n_sums += 1;
        match check_sum(&shared, &object, &partial).await {
            Ok(()) => break,
            Err(error @ SourceError::Checksum { .. }) => {
                object.remote.forget();
                begin_again(&shared, &partial)?;
                if n_sums >= MAX_SUMS {
                    return Err(error.into());
                }
                tracing::warn!(model = shared.place, file = object.name, %error,
                    "downloading it again");
            }
            Err(error) => return Err(error.into()),
        }
    }
    let partial = Arc::into_inner(partial);
    let finish = move || partial.map_or(Ok(()), Partial::finish);
    blocking(&shared.place, finish).await?;
    if let Some(begun) = &object.begun {
        let _ = fs::remove_file(begun);
    }
    Ok(())
}

fn begin_again(shared: &Shared, partial: &Partial) -> Result<(), SourceError> {
    shared.counters.take_back(partial.covered());
    partial.restart()
}

fn no_ranges(shared: &Shared, object: &Object) -> SourceError {
    SourceError::Refused {
        place: format!("{} {}", shared.place, object.name),
        reason: "the server answers a request for the whole file with a part of it".to_owned(),
        source: None,
    }
}

/// How bringing a file's pieces ended, other than well.
enum End {
    NoRanges,
    Fault(Fault),
}

impl From<SourceError> for End {
    fn from(error: SourceError) -> Self {
        Self::Fault(error.into())
    }
}

/// Brings what is missing of a file.
async fn pieces(
    shared: &Arc<Shared>,
    object: &Arc<Object>,
    partial: &Arc<Partial>,
    manner: Manner,
) -> Result<(), End> {
    let piece_bytes = match manner {
        Manner::Ranges => shared.limits.piece_bytes,
        Manner::Whole => u64::MAX,
    };
    let mut running = JoinSet::new();
    for range in partial.gaps(piece_bytes) {
        while let Some(done) = running.try_join_next() {
            piece_joined(shared, done)?;
        }
        // The semaphore is never closed.
        let permit = Arc::clone(&shared.connections).acquire_owned().await.ok();
        let task = Piece {
            shared: Arc::clone(shared),
            object: Arc::clone(object),
            partial: Arc::clone(partial),
            range,
            whole: manner == Manner::Whole,
        };
        running.spawn(async move {
            let _permit = permit;
            task.bring().await
        });
    }
    while let Some(done) = running.join_next().await {
        piece_joined(shared, done)?;
    }
    Ok(())
}

fn piece_joined(
    shared: &Shared,
    done: Result<Result<(), End>, tokio::task::JoinError>,
) -> Result<(), End> {
    match done {
        Ok(end) => end,
        Err(error) => joined(&shared.place, Err(error)).map_err(End::Fault),
    }
}

/// One piece of a file.
struct Piece {
    shared: Arc<Shared>,
    object: Arc<Object>,
    partial: Arc<Partial>,
    range: Range<u64>,
    whole: bool,
}

impl Piece {
    async fn bring(mut self) -> Result<(), End> {
        let mut n_failures = 0;
        while !self.range.is_empty() {
            let before = self.range.start;
            let Err(error) = self.read_on().await else { continue };
            let (after, cause) = match error {
                ReadError::Again { after, cause } => (after, cause),
                ReadError::NoRanges => return Err(End::NoRanges),
                ReadError::Changed => {
                    return Err(End::Fault(Fault::Changed(self.object.name.clone())));
                }
                ReadError::Refused(error) => return Err(error.into()),
            };
            if self.range.start > before {
                n_failures = 0;
                if self.whole {
                    // What came without ranges can't be gone on with.
                    self.shared.counters.take_back(self.range.start);
                    self.range.start = 0;
                }
            }
            n_failures += 1;
            if n_failures >= retry::MAX_FAILURES {
                return Err(self.given_up(n_failures, cause).into());
            }
            let wait = retry::wait(n_failures, after);
            tracing::debug!(model = self.shared.place, file = self.object.name, at = self.range.start,
                cause = %cause, wait_ms = wait.as_millis() as u64, "a read broke off: trying again");
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }

    fn given_up(&self, n_failures: u32, cause: Cause) -> SourceError {
        SourceError::Unreachable {
            place: format!("{} {}", self.shared.place, self.object.name),
            reason: format!(
                "byte {} could not be had in {n_failures} tries; what came is kept, and the next \
                 start goes on from there",
                self.range.start
            ),
            source: Some(cause),
        }
    }

    /// Reads from the start of the range on, and moves that along.
    async fn read_on(&mut self) -> Result<(), ReadError> {
        let silence = || ReadError::again(format!("nothing came for {} s", SILENCE.as_secs()));
        let read = self.object.remote.read(self.range.clone(), self.whole);
        let mut body = tokio::time::timeout(SILENCE, read).await.map_err(|_| silence())??;
        let mut gathered = Vec::new();
        let mut n_gathered = 0_usize;
        let end = loop {
            let next = match tokio::time::timeout(SILENCE, body.next()).await {
                Ok(Some(Ok(bytes))) => bytes,
                Ok(Some(Err(cause))) => break Err(ReadError::again(cause)),
                Ok(None) => break Ok(()),
                Err(_) => break Err(silence()),
            };
            let room = self.range.end - self.range.start - n_gathered as u64;
            if next.len() as u64 > room {
                break Err(ReadError::again("more bytes came than were asked for"));
            }
            n_gathered += next.len();
            gathered.push(next);
            if n_gathered >= WRITE_BYTES {
                self.write(std::mem::take(&mut gathered), n_gathered).await?;
                n_gathered = 0;
            }
        };
        self.write(gathered, n_gathered).await?;
        end?;
        match self.range.is_empty() {
            true => Ok(()),
            false => Err(ReadError::again(format!(
                "the answer ended {} bytes early",
                self.range.end - self.range.start
            ))),
        }
    }

    async fn write(&mut self, pieces: Vec<Bytes>, n_bytes: usize) -> Result<(), ReadError> {
        if n_bytes == 0 {
            return Ok(());
        }
        let (partial, start) = (Arc::clone(&self.partial), self.range.start);
        let write = move || partial.write(start, &pieces);
        blocking(&self.shared.place, write).await.map_err(ReadError::Refused)?;
        self.range.start += n_bytes as u64;
        self.shared.counters.add(n_bytes as u64);
        Ok(())
    }
}

/// Runs what waits for the disk where waiting is allowed.
async fn blocking<T: Send + 'static>(
    place: &str,
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(SourceError::Unreachable {
            place: place.to_owned(),
            reason: "a task of the download ended early".to_owned(),
            source: Some(error.into()),
        })
    })
}

/// Compares the file's sum with the one that the other side says.
async fn check_sum(shared: &Shared, object: &Object, partial: &Partial) -> Result<(), SourceError> {
    let Some(wanted) = object.sha256.clone() else { return Ok(()) };
    let path = partial.path().to_owned();
    let found = blocking(&shared.place, move || sha256(&path)).await?;
    match found.eq_ignore_ascii_case(&wanted) {
        true => Ok(()),
        false => Err(SourceError::Checksum {
            place: format!("{} {}", shared.place, object.name),
            found,
            wanted,
        }),
    }
}

fn sha256(path: &Path) -> Result<String, SourceError> {
    let mut file = fs::File::open(path).map_err(SourceError::io(path, "open"))?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; WRITE_BYTES];
    loop {
        match file.read(&mut chunk).map_err(SourceError::io(path, "read"))? {
            0 => break,
            n => hash.update(&chunk[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests;
