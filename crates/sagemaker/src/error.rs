//! Why the service could not start.

use std::io;
use std::path::PathBuf;

/// Why the service could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// The address can't be bound.
    #[error("can't bind {address}: give another --host or --port, or stop what listens there")]
    Bind {
        /// Host and port.
        address: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The directory for downloads and containers can't be made.
    #[error("{}: can't be made: give another --work-dir", path.display())]
    WorkDir {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}
