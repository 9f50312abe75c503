//! What a file on the other side has to be able to do.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::error::{Cause, SourceError};

/// A file on the other side, at the version that was looked up.
pub(crate) trait Remote: Send + Sync {
    /// The bytes of `range` from its start on. A stream that ends early is a failure like any other
    /// and is asked for again from there.
    fn read(&self, range: Range<u64>, whole: bool) -> BoxFuture<'_, Result<Body, ReadError>>;

    /// What to forget when the file is begun again.
    fn forget(&self) {}
}

/// Bytes as they come.
pub(crate) type Body = BoxStream<'static, Result<Bytes, Cause>>;

/// Why a range can't be had.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// It may go better later, at the earliest after `after`.
    Again { after: Option<Duration>, cause: Cause },
    /// The file is another one now.
    Changed,
    /// The other side sends whole files only.
    NoRanges,
    /// It will not go better.
    Refused(SourceError),
}

impl ReadError {
    pub(crate) fn again(cause: impl Into<Cause>) -> Self {
        Self::Again { after: None, cause: cause.into() }
    }
}
