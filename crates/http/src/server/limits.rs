//! What a client may stretch, and how far.

use std::time::Duration;

/// The bounds of a listener's connections. Every one has a default that suits a public address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For a request's head to arrive, and for the next request on an idle connection.
    pub head: Duration,
    /// Between two pieces of a request's body.
    pub body_piece: Duration,
    /// For a request's whole body.
    pub body: Duration,
    /// For a client to take the next piece of its reply.
    pub write: Duration,
    /// From the shutdown signal until the last connection is cut off. The host is told to end its
    /// work a second (or half of it, if that is less) before.
    pub drain: Duration,
    /// Most connections at once on a listener; further ones wait to be accepted.
    pub max_connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(30),
            body_piece: Duration::from_secs(30),
            body: Duration::from_secs(300),
            write: Duration::from_secs(60),
            // SageMaker kills a container 30 s after the signal; the process needs some of that to
            // end, on a busy machine too.
            drain: Duration::from_secs(28),
            max_connections: 8192,
        }
    }
}
