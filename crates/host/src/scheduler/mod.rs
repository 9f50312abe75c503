//! Which tokens go into the next forward pass.
//!
//! The unit of scheduling is one pass, not one request (Orca, OSDI 2022). Between passes finished
//! groups leave and waiting ones join. A group is one input with its sequences: one, one for each
//! choice, or one for each row of beams, which share what they have in common ([`fork`]). A step:
//!
//! ```text
//! drop jobs nobody waits for, fail those past their deadline
//! admit the first waiting group while places and cache are free, from a kept prefix if there is one
//! encode whole inputs that were not yet, up to the step's tokens
//! forward: first the tokens of the groups that decode, then prompts, cut to the step's tokens
//! take each sequence's next tokens, or its hidden states
//! ```
//!
//! So a prompt never pauses a decode (chunked prefill: Sarathi-Serve, OSDI 2024).
//!
//! Nothing runs out of cache while it runs. Groups of several sequences have all that they may grow
//! to set aside; single ones take block by block, and when there is none left, kept prefixes go
//! first and then the group that was admitted last goes back to the queue, to be computed again.
//!
//! Jobs of a higher priority come first. Among equals a job's groups wait in rounds, one in each,
//! from the round after the one that is being admitted, so that a job of many inputs takes turns
//! with the others. The first in the queue is admitted next and nobody overtakes it, so among jobs
//! of one priority nobody waits for ever.
//!
//! This module knows no threads and no clock: the model's thread calls [`Scheduler::step`] with the
//! time, and so do the tests.
//!
//! [`fork`]: drivetrain_engine::TokenModel::fork

mod capacity;
mod choose;
mod group;
mod lookup;
mod pass;
mod passes;
mod plan;
mod prefix;
mod room;
mod settle;
mod work;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use drivetrain_engine::{EngineError, ModelKind, SeqId, TokenModel};

use crate::HostError;
use crate::adapters::Lease;
use capacity::Cache;
use choose::Chooser;
use group::{Group, Order, Row};
use pass::{Call, Pass};
use prefix::Prefixes;

pub(crate) use capacity::{Limits, Policy};
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

/// What has happened since the scheduler was made, and what is now: for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Jobs of which nothing has run yet.
    pub(crate) n_waiting: usize,
    /// Jobs of which something has.
    pub(crate) n_running: usize,
    /// Sequences that the groups which run may have.
    pub(crate) n_rows: usize,
    /// Tokens of KV cache set aside for what runs.
    pub(crate) kv_running: u64,
    /// Tokens of KV cache in kept prefixes.
    pub(crate) kv_kept: u64,
    /// Sequences of the engine that hold kept prefixes.
    pub(crate) n_kept: usize,
    /// Segments of the last forward pass.
    pub(crate) n_segments: usize,
    /// Tokens of the last forward pass.
    pub(crate) n_tokens: usize,
    /// Prompt tokens of admitted groups.
    pub(crate) prompt_tokens: u64,
    /// Those of them that a kept prefix held.
    pub(crate) prefix_tokens: u64,
    /// Groups that went back to the queue.
    pub(crate) n_preempted: u64,
    /// Tokens that were looked up and proposed.
    pub(crate) n_proposed: u64,
    /// Those of them that were right.
    pub(crate) n_agreed: u64,
}

/// The jobs of one model.
pub(crate) struct Scheduler {
    model: String,
    limits: Limits,
    jobs: HashMap<u64, Entry>,
    next_job: u64,
    next_sequence: u64,
    n_arrived: u64,
    waiting: VecDeque<Group>,
    running: Vec<Group>,
    /// What is set aside for the groups that run.
    used: Cache,
    /// Sequences that the groups that run may have at once.
    n_rows: usize,
    prefixes: Prefixes,
    /// Of the group that was admitted last.
    round: u64,
    /// Where the last pass stopped among those that decode.
    turn: usize,
    drain: Option<Instant>,
    /// How long the last step took.
    step_time: Duration,
    pass: Pass,
    chooser: Chooser,
    /// Rows that beams have left, whose memory is used again.
    spare_rows: Vec<Row>,
    /// Jobs that end in a sweep, and with which error if anybody waits for it.
    ended: Vec<(u64, Option<HostError>)>,
    /// Whether a job has ended that may have groups in the queue.
    has_orphans: bool,
    tally: Tally,
    waits: Vec<Duration>,
}

struct Entry {
    sink: Box<dyn Sink>,
    /// Given back before the job's end is told, so that whoever hears of it finds the slot free.
    leases: Vec<Lease>,
    submitted: Instant,
    deadline: Instant,
    /// Items without an outcome.
    n_open: usize,
    /// Items that have not been admitted yet.
    n_waiting: usize,
    n_items: usize,
    /// Whether tokens were said in this step.
    has_news: bool,
}

impl Entry {
    /// Ends the job with its last outcome, that of `item`.
    fn finish(mut self, item: usize, outcome: Outcome) {
        self.leases.clear();
        self.sink.finished(item, outcome);
    }

    /// Ends the job with `error`.
    fn fail(mut self, error: HostError) {
        self.leases.clear();
        self.sink.failed(error);
    }
}

impl Scheduler {
    pub(crate) fn new(model: &str, limits: Limits) -> Self {
        Self {
            model: model.to_owned(),
            limits,
            jobs: HashMap::new(),
            next_job: 0,
            next_sequence: 0,
            n_arrived: 0,
            waiting: VecDeque::new(),
            running: Vec::with_capacity(limits.max_sequences.min(1024)),
            used: Cache::default(),
            n_rows: 0,
            prefixes: Prefixes::default(),
            round: 0,
            turn: 0,
            drain: None,
            step_time: Duration::ZERO,
            pass: Pass::new(limits.info.n_logits, limits.info.dim),
            chooser: Chooser::default(),
            spare_rows: Vec::new(),
            ended: Vec::new(),
            has_orphans: false,
            tally: Tally::default(),
            waits: Vec::new(),
        }
    }

    /// Takes a job, each of whose works passed [`Limits::check`].
    pub(crate) fn push(&mut self, job: Job) {
        let key = self.next_job;
        self.next_job += 1;
        let n_items = job.works.len();
        for (item, work) in job.works.into_iter().enumerate() {
            let id = self.new_id();
            let mut group = Group::new(id, key, item, work);
            group.order = Order {
                urgency: -i64::from(job.priority),
                round: self.round.saturating_add(1 + item as u64),
                arrival: self.n_arrived,
            };
            self.n_arrived += 1;
            self.waiting.push_back(group);
        }
        self.sort_waiting();
        let entry = Entry {
            sink: job.sink,
            leases: job.leases,
            submitted: job.submitted,
            deadline: job.deadline,
            n_open: n_items,
            n_waiting: n_items,
            n_items,
            has_news: false,
        };
        if n_items > 0 {
            self.jobs.insert(key, entry);
        }
    }

    fn sort_waiting(&mut self) {
        self.waiting.make_contiguous().sort_by_key(|group| group.order);
    }

    fn new_id(&mut self) -> SeqId {
        let id = SeqId(self.next_sequence);
        self.next_sequence += 1;
        id
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.running.is_empty() && self.waiting.is_empty()
    }

    /// What has happened and what is.
    pub(crate) fn tally(&self) -> Tally {
        let n_waiting = self.jobs.values().filter(|entry| entry.n_waiting == entry.n_items).count();
        Tally {
            n_waiting,
            n_running: self.jobs.len() - n_waiting,
            n_rows: self.n_rows,
            kv_running: self.used.kv,
            kv_kept: self.prefixes.used().kv,
            n_kept: self.prefixes.len(),
            ..self.tally
        }
    }

    /// How long each job waited that has started since the last call.
    pub(crate) fn waits(&mut self) -> impl Iterator<Item = Duration> + use<'_> {
        self.waits.drain(..)
    }

    /// Forgets all kept prefixes that nothing runs on.
    #[cfg(test)]
    pub(crate) fn forget(&mut self, model: &mut dyn TokenModel) {
        while self.prefixes.evict(model) {}
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
        self.admit(model, now);
        if self.limits.info.kind == ModelKind::EncoderDecoder {
            self.plan_encode();
            self.run(Call::Encode, model, &mut step.encode)?;
            self.leave(model);
        }
        self.plan_forward(model);
        (self.tally.n_segments, self.tally.n_tokens) =
            (self.pass.n_segments(), self.pass.n_tokens());
        self.run(Call::Forward, model, &mut step.forward)?;
        self.leave(model);
        Ok(step)
    }

    /// Ends every job with `error`; the model is not called.
    pub(crate) fn fail_all(&mut self, error: &HostError) {
        for (_, entry) in self.jobs.drain() {
            entry.fail(error.clone());
        }
        self.waiting.clear();
        self.running.clear();
        (self.tally.n_segments, self.tally.n_tokens) = (0, 0);
        self.prefixes = Prefixes::default();
        (self.used, self.n_rows) = (Cache::default(), 0);
    }

    /// Ends the jobs that nobody waits for, that are late, or that the drain cuts off.
    fn sweep(&mut self, now: Instant) {
        let drained = self
            .drain
            .is_some_and(|deadline| deadline.saturating_duration_since(now) <= self.step_time);
        for (key, entry) in &self.jobs {
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
            self.ended.push((*key, error));
        }
        for (key, error) in self.ended.drain(..) {
            self.has_orphans = true;
            if let (Some(entry), Some(error)) = (self.jobs.remove(&key), error) {
                entry.fail(error);
            }
        }
        if drained {
            self.cut_off();
        }
    }

    /// Ends what runs: generations with what they have, other work with an error.
    fn cut_off(&mut self) {
        for group in self.running.iter_mut().chain(&mut self.waiting) {
            if !group.cut_off()
                && let Some(entry) = self.jobs.remove(&group.job)
            {
                entry.fail(HostError::ShuttingDown);
                self.has_orphans = true;
            }
        }
        for mut group in self.waiting.drain(..) {
            if let Some(outcome) = group.outcome.take() {
                deliver(&mut self.jobs, &group, outcome);
            }
        }
    }

    /// Lets groups go that are done or whose job has ended. This is the only way out for one that
    /// runs, so that what it holds is always given back.
    fn leave(&mut self, model: &mut dyn TokenModel) {
        let mut n_kept = 0;
        for idx in 0..self.running.len() {
            let stays = self
                .running
                .get(idx)
                .is_some_and(|g| g.outcome.is_none() && self.jobs.contains_key(&g.job));
            if stays {
                self.running.swap(n_kept, idx);
                n_kept += 1;
            }
        }
        while self.running.len() > n_kept {
            let Some(mut group) = self.running.pop() else { break };
            self.give_back(&mut group, model);
            if let Some(outcome) = group.outcome.take() {
                deliver(&mut self.jobs, &group, outcome);
            }
        }
        if std::mem::take(&mut self.has_orphans) {
            self.waiting.retain(|group| self.jobs.contains_key(&group.job));
        }
    }
}

/// Hands an outcome to its job, which ends with its last one.
fn deliver(jobs: &mut HashMap<u64, Entry>, group: &Group, outcome: Outcome) {
    let Some(entry) = jobs.get_mut(&group.job) else { return };
    entry.n_open -= 1;
    if entry.n_open > 0 {
        entry.sink.finished(group.item, outcome);
    } else if let Some(entry) = jobs.remove(&group.job) {
        entry.finish(group.item, outcome);
    }
}

#[cfg(test)]
mod tests;
