//! Requests to models that answer whole requests themselves: bytes in, a stream of frames out.

use std::time::Instant;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::HostError;
use crate::activity::ActiveRequest;
use crate::model::DRAIN_GRACE;

/// A request as it goes to a `RequestModel`.
#[derive(Clone, Debug, Default)]
pub struct RawRequest {
    /// The request's id.
    pub id: String,
    /// Header names and values, custom attributes included.
    pub properties: Vec<(String, String)>,
    /// The content entries: name and bytes. A plain body is one entry named `data`.
    pub content: Vec<(String, Bytes)>,
    /// When the answer is of no use any more. The model's `predict_timeout` bounds it anyway.
    pub deadline: Option<Instant>,
}

/// Status, reason and headers of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawHead {
    /// The status code.
    pub status: u16,
    /// Its reason phrase; empty for the usual one.
    pub reason: String,
    /// Header names and values.
    pub headers: Vec<(String, String)>,
}

impl Default for RawHead {
    fn default() -> Self {
        Self { status: 200, reason: String::new(), headers: Vec::new() }
    }
}

/// The answer to a [`RawRequest`]. Its head is there; its body comes frame by frame.
#[derive(Debug)]
pub struct RawReply {
    /// Status, reason and headers.
    pub head: RawHead,
    /// The body.
    pub frames: RawFrames,
}

/// The frames of a body. The model waits while several are unread; dropping this stops it.
#[derive(Debug)]
pub struct RawFrames {
    pub(crate) receiver: mpsc::Receiver<Result<Bytes, HostError>>,
    /// The request is in hand until its last frame is.
    pub(crate) guard: ActiveRequest,
}

impl RawFrames {
    /// The next frame; `None` at the end, which the end of the server is too.
    ///
    /// # Errors
    /// What the model said went wrong, after which there are no more frames.
    pub async fn next(&mut self) -> Option<Result<Bytes, HostError>> {
        tokio::select! {
            biased;
            frame = self.receiver.recv() => frame,
            () = self.guard.past_drain(DRAIN_GRACE) => None,
        }
    }
}
