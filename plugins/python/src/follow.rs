//! Follows a request that a worker has to its end, and hands on what comes of it.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use drivetrain_engine::Reply;

use crate::error::PythonError;
use crate::pool::Pool;
use crate::wire::Failure;
use crate::worker::{CREDIT, Event, Worker};

/// How often one who waits shows that it lives.
const TURN: Duration = Duration::from_millis(500);

/// How long a handler is given to end when its request is taken back, or when all are to end, before
/// its worker and all that it does are ended.
const TAKEN_BACK: Duration = Duration::from_secs(2);

/// Pieces after which the worker is allowed as many more.
const CREDIT_STEP: u32 = CREDIT / 2;

/// A request that a worker has.
pub(crate) struct Following<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) worker: &'a Worker,
    pub(crate) id: u64,
    pub(crate) events: Receiver<Event>,
}

/// What is known of a request's answer.
struct Progress {
    /// Whether there is somebody who waits for it.
    is_wanted: bool,
    /// Whether all calls are to end.
    is_over: bool,
    /// Whether the answer has begun.
    has_begun: bool,
    n_pieces: u32,
    deadline: Instant,
}

impl Following<'_> {
    /// Hands on the answer to `reply` until it is complete.
    pub(crate) fn run(&self, reply: &mut dyn Reply) -> Result<(), PythonError> {
        let limit = self.pool.launch.settings.predict_timeout;
        let mut progress = Progress {
            is_wanted: true,
            is_over: false,
            has_begun: false,
            n_pieces: 0,
            deadline: Instant::now() + limit,
        };
        loop {
            if !progress.is_over && self.pool.launch.services.cancelled() {
                progress.is_over = true;
                progress.deadline = progress.deadline.min(Instant::now() + TAKEN_BACK);
                self.let_go(&mut progress);
            }
            let left = progress.deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left.min(TURN)) {
                Ok(Event::End) => return Ok(()),
                Ok(Event::Failed(failure, message)) => return Err(failed(failure, message)),
                Ok(_) if progress.is_over && left.is_zero() => return Err(self.hung(limit)),
                Ok(event) => {
                    if !progress.is_over {
                        progress.deadline = Instant::now() + limit;
                    }
                    self.hand_on(event, &mut progress, reply)?;
                }
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended()),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Err(self.hung(limit)),
                Err(RecvTimeoutError::Timeout) => self.pool.show_life(),
            }
        }
    }

    /// Says that nobody waits any more, once.
    fn let_go(&self, progress: &mut Progress) {
        if progress.is_wanted {
            progress.is_wanted = false;
            self.worker.cancel(self.id);
        }
    }

    fn hand_on(
        &self,
        event: Event,
        progress: &mut Progress,
        reply: &mut dyn Reply,
    ) -> Result<(), PythonError> {
        let is_twice = match event {
            Event::Reply { status, reason, headers } if !progress.has_begun => {
                progress.has_begun = true;
                let headers: Vec<(&str, &str)> =
                    headers.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
                if progress.is_wanted {
                    reply.head(status, &reason, &headers);
                }
                false
            }
            Event::Piece(piece) if progress.has_begun => {
                let bytes = piece.bytes();
                if progress.is_wanted && !bytes.is_empty() && !reply.frame(bytes) {
                    self.let_go(progress);
                }
                progress.n_pieces += 1;
                if progress.n_pieces >= CREDIT_STEP {
                    self.worker.give_credit(self.id, progress.n_pieces);
                    progress.n_pieces = 0;
                }
                false
            }
            _ => true,
        };
        if is_twice {
            self.worker.kill("answered out of turn and was replaced");
            return Err(self.ended());
        }
        Ok(())
    }

    /// How the worker ended, or will have.
    fn ended(&self) -> PythonError {
        let how = self.worker.end().unwrap_or_else(|| "was ended".into());
        PythonError::Ended { worker: self.worker.number(), how }
    }

    /// The limit is over: takes the request back from a handler that does others beside it, and ends
    /// any other worker.
    fn hung(&self, limit: Duration) -> PythonError {
        let worker = self.worker.number();
        if self.worker.max_in_flight() > 1 {
            self.worker.cancel(self.id);
            let deadline = Instant::now() + TAKEN_BACK;
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                match self.events.recv_timeout(left) {
                    Ok(Event::End | Event::Failed(..)) => {
                        return PythonError::Hung { worker, limit, was_killed: false };
                    }
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
        }
        self.worker.kill("did not answer within predict_timeout and was replaced");
        PythonError::Hung { worker, limit, was_killed: true }
    }
}

fn failed(failure: Failure, message: String) -> PythonError {
    match failure {
        Failure::BadInput | Failure::Internal => PythonError::BadAnswer { message },
        Failure::OutOfMemory => PythonError::LoadOutOfMemory { reason: message },
    }
}
