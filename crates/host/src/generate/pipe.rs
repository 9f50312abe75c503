//! From the model's thread to whoever reads: a bounded queue of what happened.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::model::Place;
use crate::scheduler::{NewToken, Outcome, Scored, Sink};
use crate::{FinishReason, HostError};

/// Tokens that may wait for a slow reader before its sequences rest.
const TOKENS_AHEAD: usize = 64;

/// What happened, as the scheduler says it.
#[derive(Debug)]
pub(crate) enum Happened {
    Prompt { item: usize, tokens: Vec<(Scored, Vec<Scored>)> },
    Token { item: usize, choice: usize, token: Scored, top: Vec<Scored> },
    ChoiceFinished { item: usize, choice: usize, finish: FinishReason, stop: Option<usize> },
    Finished { item: usize, outcome: Outcome },
    Failed(HostError),
}

/// The reading end.
#[derive(Debug)]
pub(crate) struct Pipe(Arc<Shared>);

/// The writing end, on the model's thread.
#[derive(Debug)]
pub(crate) struct PipeSink {
    shared: Arc<Shared>,
    place: Option<Place>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<VecDeque<Happened>>,
    wake: Notify,
    /// The reader is gone.
    is_closed: AtomicBool,
    /// The writer is gone.
    is_over: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Happened>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pipe {
    /// A pipe; `place` is held until the job has started.
    pub(crate) fn new(place: Place) -> (Self, PipeSink) {
        let shared = Arc::new(Shared {
            // A step adds one token of each sequence, so there may be a few more.
            queue: Mutex::new(VecDeque::with_capacity(2 * TOKENS_AHEAD)),
            ..Shared::default()
        });
        (Self(Arc::clone(&shared)), PipeSink { shared, place: Some(place) })
    }

    /// What happened next; `None` when nothing more will.
    pub(crate) async fn next(&mut self) -> Option<Happened> {
        loop {
            let woken = self.0.wake.notified();
            if let Some(happened) = self.0.lock().pop_front() {
                return Some(happened);
            }
            if self.0.is_over.load(Ordering::Acquire) {
                return self.0.lock().pop_front();
            }
            woken.await;
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.0.is_closed.store(true, Ordering::Release);
    }
}

impl PipeSink {
    fn push(&self, happened: Happened) {
        self.shared.lock().push_back(happened);
    }
}

impl Drop for PipeSink {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        self.shared.wake.notify_one();
    }
}

impl Sink for PipeSink {
    fn is_closed(&self) -> bool {
        self.shared.is_closed.load(Ordering::Acquire)
    }

    fn has_room(&self) -> bool {
        self.shared.lock().len() < TOKENS_AHEAD
    }

    fn started(&mut self) {
        self.place = None;
    }

    fn prompt(&mut self, item: usize, tokens: Vec<(Scored, Vec<Scored>)>) {
        self.push(Happened::Prompt { item, tokens });
    }

    fn token(&mut self, item: usize, choice: usize, new: &NewToken<'_>) {
        self.push(Happened::Token { item, choice, token: new.token, top: new.top.to_vec() });
    }

    fn flush(&mut self) {
        self.shared.wake.notify_one();
    }

    fn choice_finished(
        &mut self,
        item: usize,
        choice: usize,
        finish: FinishReason,
        stop: Option<usize>,
    ) {
        self.push(Happened::ChoiceFinished { item, choice, finish, stop });
    }

    fn finished(&mut self, item: usize, outcome: Outcome) {
        self.push(Happened::Finished { item, outcome });
        self.shared.wake.notify_one();
    }

    fn failed(&mut self, error: HostError) {
        self.push(Happened::Failed(error));
        self.shared.wake.notify_one();
    }
}
