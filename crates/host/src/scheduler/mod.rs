//! Which tokens go into the next forward pass.
//!
//! The unit of scheduling is one pass, not one request (Orca, OSDI 2022). Between passes finished
//! sequences leave and waiting ones join, in the order of their rounds. A step:
//!
//! ```text
//! drop jobs nobody waits for, fail those past their deadline
//! admit the first waiting sequence while a place and its whole cache are free
//! encode whole inputs that were not yet, up to the step's tokens
//! forward: first one token of each decoding sequence, then prompts, cut to the tokens left
//! take each sequence's next token, or its hidden states
//! ```
//!
//! So a prompt never pauses a decode (chunked prefill: Sarathi-Serve, OSDI 2024), and what was
//! admitted never runs out of cache, since all that it may grow to is set aside for it.
//!
//! A job's sequences wait in rounds, one in each, from the round after the one that is being
//! admitted, so that a job of many inputs takes turns with the others. The first of the earliest
//! round is admitted next and nobody overtakes it. A later job only ever comes before those of
//! rounds that have not begun, and finitely often, so nobody waits for ever.
//!
//! This module knows no threads and no clock: the model's thread calls [`Scheduler::step`] with the
//! time, and so do the tests.

mod capacity;
mod pass;
mod passes;
mod sequence;
mod work;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use drivetrain_engine::{EngineError, ModelKind, SeqId, TokenModel};

use crate::HostError;
use crate::logits::Scratch;
use capacity::Cache;
use pass::{Call, Pass};
use sequence::Sequence;

pub(crate) use capacity::Limits;
pub(crate) use work::{
    Choice, Generate, Goal, Job, NewToken, Outcome, Report, Scored, Search, Sink, Work,
};

/// What a step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) encode: Calls,
    pub(crate) forward: Calls,
}

/// What became of a step's calls of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Calls {
    /// Calls of the engine, however they ended.
    pub(crate) n_made: usize,
    /// Segments whose results were asked for and were right.
    pub(crate) n_good: usize,
    /// Jobs that failed by the engine's own fault.
    pub(crate) n_blamed: usize,
}

/// The jobs of one model.
pub(crate) struct Scheduler {
    model: String,
    limits: Limits,
    jobs: HashMap<u64, Entry>,
    next_job: u64,
    next_sequence: u64,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    used: Cache,
    /// Of the sequence that was admitted last.
    round: u64,
    drain: Option<Instant>,
    /// How long the last step took.
    step_time: Duration,
    pass: Pass,
    scratch: Scratch,
    ended: Vec<u64>,
    /// Whether a job has ended that may have sequences in the queue.
    has_orphans: bool,
}

struct Entry {
    sink: Box<dyn Sink>,
    submitted: Instant,
    deadline: Instant,
    /// Items without an outcome.
    n_open: usize,
    /// Items in the queue.
    n_waiting: usize,
    n_items: usize,
}

impl Scheduler {
    pub(crate) fn new(model: &str, limits: Limits) -> Self {
        Self {
            model: model.to_owned(),
            limits,
            jobs: HashMap::new(),
            next_job: 0,
            next_sequence: 0,
            waiting: VecDeque::new(),
            running: Vec::with_capacity(limits.max_sequences.min(1024)),
            used: Cache::default(),
            round: 0,
            drain: None,
            step_time: Duration::ZERO,
            pass: Pass::new(limits.info.n_logits, limits.info.dim),
            scratch: Scratch::default(),
            ended: Vec::new(),
            has_orphans: false,
        }
    }

    /// Takes a job, each of whose works passed [`Limits::check`].
    pub(crate) fn push(&mut self, job: Job) {
        let key = self.next_job;
        self.next_job += 1;
        let n_items = job.works.len();
        for (item, work) in job.works.into_iter().enumerate() {
            let id = SeqId(self.next_sequence);
            self.next_sequence += 1;
            let needs = self.limits.needs(&work);
            let mut sequence = Sequence::new(id, key, item, needs, work);
            sequence.round = self.round.saturating_add(1 + item as u64);
            self.waiting.push_back(sequence);
        }
        // Stable, so that within a round they stay in the order they came.
        self.waiting.make_contiguous().sort_by_key(|sequence| sequence.round);
        let entry = Entry {
            sink: job.sink,
            submitted: job.submitted,
            deadline: job.deadline,
            n_open: n_items,
            n_waiting: n_items,
            n_items,
        };
        if n_items > 0 {
            self.jobs.insert(key, entry);
        }
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.running.is_empty() && self.waiting.is_empty()
    }

    /// How long the step took that was made last, as the clock says.
    pub(crate) fn took(&mut self, step_time: Duration) {
        self.step_time = step_time;
    }

    /// Sets when everything ends: generations with what they have, the rest with an error. That is
    /// a step earlier if another one like the last would end too late.
    pub(crate) fn drain(&mut self, deadline: Instant) {
        self.drain = Some(self.drain.map_or(deadline, |old| old.min(deadline)));
    }

    /// Does one step on `model`, at the time `now`.
    ///
    /// # Errors
    /// `DeviceLost`, after which the model may only be dropped and the jobs that are left are
    /// ended with [`Self::fail_all`].
    pub(crate) fn step(
        &mut self,
        model: &mut dyn TokenModel,
        now: Instant,
    ) -> Result<Step, EngineError> {
        let mut step = Step::default();
        self.sweep(now);
        self.leave(model);
        self.admit();
        if self.limits.info.kind == ModelKind::EncoderDecoder {
            self.plan_encode();
            self.run(Call::Encode, model, &mut step.encode)?;
            self.leave(model);
        }
        self.plan_forward();
        self.run(Call::Forward, model, &mut step.forward)?;
        self.leave(model);
        Ok(step)
    }

    /// Ends every job with `error`; the model is not called.
    pub(crate) fn fail_all(&mut self, error: &HostError) {
        for (_, mut entry) in self.jobs.drain() {
            entry.sink.failed(error.clone());
        }
        self.waiting.clear();
        self.running.clear();
        self.used = Cache::default();
    }

    /// Ends the jobs that nobody waits for, that are late, or that the drain cuts off.
    fn sweep(&mut self, now: Instant) {
        let drained = self
            .drain
            .is_some_and(|deadline| deadline.saturating_duration_since(now) <= self.step_time);
        for (key, entry) in &mut self.jobs {
            let error = if entry.sink.is_closed() {
                None
            } else if entry.deadline <= now {
                let waited = entry.deadline.saturating_duration_since(entry.submitted);
                Some(HostError::Timeout { model: self.model.clone(), waited })
            } else if drained && entry.n_waiting == entry.n_items {
                Some(HostError::ShuttingDown)
            } else {
                continue;
            };
            if let Some(error) = error {
                entry.sink.failed(error);
            }
            self.ended.push(*key);
        }
        for key in self.ended.drain(..) {
            self.jobs.remove(&key);
            self.has_orphans = true;
        }
        if drained {
            self.cut_off();
        }
    }

    /// Ends what runs: generations with what they have, other work with an error.
    fn cut_off(&mut self) {
        for sequence in self.running.iter_mut().chain(&mut self.waiting) {
            if !sequence.cut_off()
                && let Some(mut entry) = self.jobs.remove(&sequence.job)
            {
                entry.sink.failed(HostError::ShuttingDown);
                self.has_orphans = true;
            }
        }
        for mut sequence in self.waiting.drain(..) {
            if let Some(outcome) = sequence.outcome.take() {
                deliver(&mut self.jobs, &sequence, outcome);
            }
        }
    }

    /// Admits from the front of the queue while there is room.
    fn admit(&mut self) {
        while let Some(next) = self.waiting.front() {
            let fits = self.running.len() < self.limits.max_sequences
                && self.used.has_room_for(next.needs, &self.limits.info);
            if !fits {
                break;
            }
            let Some(sequence) = self.waiting.pop_front() else { break };
            self.used.add(sequence.needs);
            self.round = sequence.round;
            if let Some(entry) = self.jobs.get_mut(&sequence.job) {
                entry.n_waiting -= 1;
                if entry.n_waiting == 0 {
                    entry.sink.started();
                }
            }
            self.running.push(sequence);
        }
    }

    /// Lets sequences go that are done or whose job has ended. This is the only way out for one
    /// that runs, so that what it holds is always given back.
    fn leave(&mut self, model: &mut dyn TokenModel) {
        let mut n_kept = 0;
        for idx in 0..self.running.len() {
            let stays = self
                .running
                .get(idx)
                .is_some_and(|s| s.outcome.is_none() && self.jobs.contains_key(&s.job));
            if stays {
                self.running.swap(n_kept, idx);
                n_kept += 1;
            }
        }
        for mut sequence in self.running.drain(n_kept..) {
            self.used.subtract(sequence.needs);
            if sequence.is_born {
                model.release(sequence.id);
            }
            if let Some(outcome) = sequence.outcome.take() {
                deliver(&mut self.jobs, &sequence, outcome);
            }
        }
        if std::mem::take(&mut self.has_orphans) {
            self.waiting.retain(|sequence| self.jobs.contains_key(&sequence.job));
        }
    }
}

/// Hands an outcome to its job, which ends with its last one.
fn deliver(jobs: &mut HashMap<u64, Entry>, sequence: &Sequence, outcome: Outcome) {
    let Some(entry) = jobs.get_mut(&sequence.job) else { return };
    entry.sink.finished(sequence.item, outcome);
    entry.n_open -= 1;
    if entry.n_open == 0 {
        jobs.remove(&sequence.job);
    }
}

#[cfg(test)]
mod tests;
