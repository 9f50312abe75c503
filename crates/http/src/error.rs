//! Why the server could not start or had to stop.

use std::io;

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// A listener's address can't be bound; a process should exit with code 2.
    #[error("can't bind {address}: give another address or port, or stop what listens there")]
    Bind {
        /// The address, as configured.
        address: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A listener's address asks for something this server can't do.
    #[error("{key}={address}: {reason}")]
    Address {
        /// The setting.
        key: &'static str,
        /// Its value.
        address: String,
        /// What is wrong with it, and what is allowed.
        reason: &'static str,
    },
}
