//! A connection's socket, watched from both ends of HTTP.
//!
//! Two things that hyper leaves to its caller: a client that stops reading its reply is given up,
//! and the empty reply that hyper makes to bytes which are no HTTP gets the contract's body.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::time::{Instant, Sleep};

/// Longest head that hyper writes by itself.
const MAX_OWN_HEAD: usize = 256;

/// A socket whose writes must make progress.
pub(crate) struct Watched<S> {
    socket: S,
    stall_limit: Duration,
    /// Whether a write waits for the client, for whoever decides about the connection's end.
    waiting: Arc<AtomicBool>,
    /// Runs while a write waits for the client.
    stalled: Option<Pin<Box<Sleep>>>,
    /// What hyper's own refusal became, and how much of it is written.
    refusal: Option<(Vec<u8>, usize)>,
    /// The contract's reply to bytes that are no HTTP, by status.
    refuse: fn(status: u16) -> Vec<u8>,
}

impl<S> Watched<S> {
    pub(crate) fn new(
        socket: S,
        stall_limit: Duration,
        waiting: Arc<AtomicBool>,
        refuse: fn(u16) -> Vec<u8>,
    ) -> Self {
        Self { socket, stall_limit, waiting, stalled: None, refusal: None, refuse }
    }

    /// `Pending` until the limit has passed since the first write that did not go through.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let limit = self.stall_limit;
        let sleep = self
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + limit)));
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the client stopped reading its reply"))
    }
}

impl<S: Write + Unpin> Watched<S> {
    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            if self.stalled.take().is_some() {
                self.waiting.store(false, Ordering::Release);
            }
            return written;
        }
        self.waiting.store(true, Ordering::Release);
        self.poll_stall(cx).map(Err)
    }

    /// Writes what is left of a refusal.
    fn poll_refusal(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some((bytes, n_written)) = &mut self.refusal {
            let left = bytes.get(*n_written..).unwrap_or_default();
            if left.is_empty() {
                self.refusal = None;
                break;
            }
            let written = Pin::new(&mut self.socket).poll_write(cx, left);
            match ready!(written) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(n) => *n_written += n,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The status of a refusal that hyper made by itself: the head of an empty 4xx reply without the
/// request id that every reply of ours carries.
fn own_refusal(buf: &[u8]) -> Option<u16> {
    if buf.len() > MAX_OWN_HEAD || !buf.starts_with(b"HTTP/1.1 4") || !buf.ends_with(b"\r\n\r\n") {
        return None;
    }
    let head = std::str::from_utf8(buf).ok()?;
    if !head.contains("content-length: 0\r\n") || head.contains("x-request-id") {
        return None;
    }
    head.get(9..12)?.parse().ok()
}

impl<S: Read + Unpin> Read for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl<S: Write + Unpin> Write for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(status) = own_refusal(buf) {
            self.refusal = Some(((self.refuse)(status), 0));
            return Poll::Ready(Ok(buf.len()));
        }
        let written = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [only] = bufs
            && own_refusal(only).is_some()
        {
            return self.poll_write(cx, only);
        }
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_refusal(cx))?;
        let flushed = Pin::new(&mut self.socket).poll_flush(cx);
        self.watch(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_refusal(cx))?;
        let shut = Pin::new(&mut self.socket).poll_shutdown(cx);
        self.watch(cx, shut)
    }
}
