//! A generation as the body of a reply: frames, written when the client has taken the one before.

use std::fmt::Debug;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use bytes::Bytes;
use drivetrain_host::{Event, HostError};
use futures::stream;
use serde::Serialize;
use tracing::{Instrument, Span};

use super::running::{Running, Stalled};

/// How frames are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// `data: {json}` and an empty line.
    Sse,
    /// One JSON object a line.
    Lines,
    /// Text, without frames.
    Raw,
}

impl Framing {
    /// The reply's content type.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Sse => "text/event-stream",
            Self::Lines => "application/jsonlines",
            Self::Raw => "text/plain; charset=utf-8",
        }
    }

    /// Adds a frame that says `value`.
    pub(crate) fn frame(self, out: &mut Vec<u8>, value: &impl Serialize) {
        if self == Self::Sse {
            out.extend_from_slice(b"data: ");
        }
        let before = out.len();
        if let Err(error) = serde_json::to_writer(&mut *out, value) {
            tracing::error!("a frame has no json form: {error}");
            out.truncate(before);
            out.extend_from_slice(b"{}");
        }
        out.extend_from_slice(match self {
            Self::Sse => b"\n\n",
            Self::Lines => b"\n",
            Self::Raw => b"",
        });
    }

    /// Adds the mark after the last frame that OpenAI's clients wait for; a line of its own, and
    /// empty, where frames are lines.
    pub(crate) fn done(self, out: &mut Vec<u8>) {
        out.extend_from_slice(match self {
            Self::Sse => b"data: [DONE]\n\n",
            Self::Lines => b"\n",
            Self::Raw => b"",
        });
    }
}

/// A protocol's way to write a generation piece by piece.
pub(crate) trait Printer: Send + 'static {
    /// Writes what goes out because of `event`; nothing is sent while `out` stays empty.
    fn event(&mut self, event: Event, out: &mut Vec<u8>);

    /// Writes what comes after the last event.
    fn end(&mut self, out: &mut Vec<u8>);

    /// Writes what says that the answer broke off.
    fn failed(&mut self, error: HostError, out: &mut Vec<u8>);
}

/// The reply whose body is `running`, as `printer` writes it. A gap longer than `frame_timeout`
/// between two events cuts the connection, and dropping the body cancels the work.
pub(crate) fn respond(
    running: Running,
    printer: impl Printer,
    framing: Framing,
    frame_timeout: Duration,
) -> Response<Body> {
    let state = State { running, printer, frame_timeout, is_over: false, is_cut: false };
    // The reply's body is read outside of the request's span; what is logged then belongs to it.
    let span = Span::current();
    let body = Body::from_stream(stream::unfold(state, move |mut state| {
        let span = span.clone();
        async move {
            let frame = state.next().instrument(span).await?;
            Some((frame, state))
        }
    }));
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(framing.content_type()));
    response
}

/// The answer broke off, and no frame can say so.
#[derive(Debug, thiserror::Error)]
#[error("no token within chunked_read_timeout")]
pub(crate) struct Broken;

struct State<P> {
    running: Running,
    printer: P,
    frame_timeout: Duration,
    is_over: bool,
    is_cut: bool,
}

impl<P: Printer> State<P> {
    async fn next(&mut self) -> Option<Result<Bytes, Broken>> {
        if self.is_cut {
            return None;
        }
        let mut out = Vec::with_capacity(256);
        while !self.is_over && out.is_empty() {
            match self.running.next_within(self.frame_timeout).await {
                Ok(Some(Ok(event))) => self.printer.event(event, &mut out),
                Ok(Some(Err(error))) => {
                    tracing::error!("the answer broke off: {}", error.chain());
                    self.printer.failed(error, &mut out);
                    self.is_over = true;
                }
                Ok(None) => {
                    self.printer.end(&mut out);
                    self.is_over = true;
                }
                Err(Stalled) => {
                    tracing::error!(
                        "the answer broke off: no token for {} s, chunk reading interrupted \
                         (chunked_read_timeout)",
                        self.frame_timeout.as_secs()
                    );
                    self.is_cut = true;
                    return Some(Err(Broken));
                }
            }
        }
        (!out.is_empty()).then(|| Ok(Bytes::from(out)))
    }
}
