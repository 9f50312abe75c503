//! How many requests are in hand, and whether more may come.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use crate::HostError;

/// The requests of a host.
#[derive(Debug)]
pub(crate) struct Activity {
    n_requests: AtomicUsize,
    idle: Notify,
    drain: watch::Sender<Option<Instant>>,
}

/// One request, from its coming to its going.
#[derive(Debug)]
pub(crate) struct ActiveRequest(Arc<Activity>);

impl Activity {
    pub(crate) fn new() -> Arc<Self> {
        let drain = watch::Sender::new(None);
        Arc::new(Self { n_requests: AtomicUsize::new(0), idle: Notify::new(), drain })
    }

    /// Counts a request in.
    ///
    /// # Errors
    /// `ShuttingDown` once a drain has begun.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<ActiveRequest, HostError> {
        self.n_requests.fetch_add(1, Ordering::SeqCst);
        let request = ActiveRequest(Arc::clone(self));
        if self.is_draining() { Err(HostError::ShuttingDown) } else { Ok(request) }
    }

    /// Lets no more requests in; those in hand end by `deadline`.
    pub(crate) fn drain(&self, deadline: Instant) {
        self.drain.send_modify(|old| {
            *old = Some(old.map_or(deadline, |old| old.min(deadline)));
        });
        if self.n_requests.load(Ordering::SeqCst) == 0 {
            self.idle.notify_waiters();
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.drain.borrow().is_some()
    }

    pub(crate) fn n_requests(&self) -> usize {
        self.n_requests.load(Ordering::SeqCst)
    }

    /// Ends `grace` after the drain's deadline, if there ever is one.
    pub(crate) async fn past_drain(&self, grace: Duration) {
        let mut drain = self.drain.subscribe();
        let deadline = drain.wait_for(Option::is_some).await.ok().and_then(|deadline| *deadline);
        match deadline {
            Some(deadline) => tokio::time::sleep_until((deadline + grace).into()).await,
            None => std::future::pending().await,
        }
    }

    /// Ends when no request is in hand.
    pub(crate) async fn idle(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.n_requests() == 0 {
                return;
            }
            idle.await;
        }
    }
}

impl ActiveRequest {
    /// Ends `grace` after the drain's deadline, if there ever is one.
    pub(crate) async fn past_drain(&self, grace: Duration) {
        self.0.past_drain(grace).await;
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        if self.0.n_requests.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}
