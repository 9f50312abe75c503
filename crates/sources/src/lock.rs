//! Locks that keep processes from downloading one file twice.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::Duration;

use crate::error::SourceError;

/// How often a lock that is taken is asked for again.
const POLL: Duration = Duration::from_millis(50);

/// A lock that is held until this is dropped, or the process ends. It is an advisory lock on the
/// file (`flock`), which Python's `filelock` takes too.
#[derive(Debug)]
pub(crate) struct Lock(#[allow(dead_code, reason = "open is what holds the lock")] File);

/// Takes the lock, waiting for whoever has it.
pub(crate) async fn take(path: &Path) -> Result<Lock, SourceError> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(SourceError::io(dir, "make the directory"))?;
    }
    let mut told = false;
    loop {
        if let Some(lock) = try_take(path)? {
            return Ok(lock);
        }
        if !told {
            tracing::info!(lock = %path.display(), "another process downloads this file: waiting");
            told = true;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Takes the lock if nobody has it.
pub(crate) fn try_take(path: &Path) -> Result<Option<Lock>, SourceError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(SourceError::io(path, "make the lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Lock(file))),
        Err(TryLockError::WouldBlock) => Ok(None),
        // A file system without locks: a file is downloaded twice at worst, under one name after
        // the other, so this goes on.
        Err(TryLockError::Error(error)) => {
            tracing::debug!(lock = %path.display(), %error, "no locks here");
            Ok(Some(Lock(file)))
        }
    }
}
