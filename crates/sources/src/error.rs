//! Why a model's files could not be brought here.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The cause of a failure on the way, whatever library found it.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a model's files could not be brought here. No message holds a token or a key: addresses are
/// shown without their query, and credentials never enter one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The text names no place that models come from.
    #[error("{source_text}: {reason}")]
    Unreadable {
        /// What was written, shortened.
        source_text: String,
        /// What is wrong with it, and what is allowed.
        reason: String,
    },
    /// The remote side says no, and the same request would fail again.
    #[error("{place}: {reason}")]
    Refused {
        /// The model, and the file where it was one.
        place: String,
        /// What was answered, and what to do.
        reason: String,
        /// What the library said, where it was its finding.
        #[source]
        source: Option<Cause>,
    },
    /// The remote side could not be reached, or kept failing.
    #[error("{place}: {reason}")]
    Unreachable {
        /// The model, and the file where it was one.
        place: String,
        /// How often it was tried, and what to do.
        reason: String,
        /// The last failure.
        #[source]
        source: Option<Cause>,
    },
    /// The network is off limits and the cache does not have it.
    #[error("{place}: {reason}")]
    Offline {
        /// The model.
        place: String,
        /// What was looked for, where, and what to do.
        reason: String,
    },
    /// A name that the remote side gave leads out of the model, or can't be a file's.
    #[error("{place}: the file name {name:?} {reason}; nothing of it was downloaded")]
    Name {
        /// The model.
        place: String,
        /// The name, shortened.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// There is more than may be downloaded.
    #[error("{place}: holds {found} {unit}, at most {limit} are downloaded")]
    TooLarge {
        /// The model.
        place: String,
        /// How much there is.
        found: u64,
        /// What of: `bytes` or `files`.
        unit: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The disk has not enough room.
    #[error(
        "{place}: {needed} bytes are still to be downloaded and {} has {free} free: make room, or \
         name another place with {setting}", dir.display()
    )]
    NoSpace {
        /// The model.
        place: String,
        /// Bytes still to be downloaded.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// Where they were to go.
        dir: PathBuf,
        /// The setting that names the place.
        setting: &'static str,
    },
    /// A file kept changing while it was downloaded.
    #[error(
        "{place}: changed while it was downloaded, {n_times} times in a row: try again when whoever \
         writes it is done"
    )]
    Changing {
        /// The model and the file.
        place: String,
        /// How often it was begun.
        n_times: u32,
    },
    /// What was downloaded is not what the remote side says it holds.
    #[error(
        "{place}: has the SHA-256 {found}, the hub says {wanted}: what was downloaded is dropped"
    )]
    Checksum {
        /// The model and the file.
        place: String,
        /// The sum of what came.
        found: String,
        /// The sum it should have.
        wanted: String,
    },
    /// The caller no longer wants it.
    #[error("{place}: the download was stopped")]
    Stopped {
        /// The model.
        place: String,
    },
    /// It took longer than it may.
    #[error("{place}: the download was not done within {} s", limit.as_secs())]
    Late {
        /// The model.
        place: String,
        /// The limit.
        limit: Duration,
    },
    /// The operating system refused.
    #[error("{}: can't {action}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

impl SourceError {
    /// Makes an [`SourceError::Io`] of the system's answer; for `map_err`.
    pub(crate) fn io(
        path: impl Into<PathBuf>,
        action: &'static str,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, action, source }
    }

    /// Whether the remote side could not be reached, so that an older copy may stand in.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// The first part of a text that came from outside, fit for one line of a message.
pub(crate) fn shorten(text: &str) -> String {
    const LONGEST: usize = 160;
    let mut short: String =
        text.chars().take(LONGEST).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(LONGEST).is_some() {
        short.push('…');
    }
    short
}
