//! The thread of a model that the host schedules.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use drivetrain_engine::{EngineError, ErrorKind, TokenModel};

use crate::HostError;
use crate::adapters::Mail;
use crate::model::faults::{Faults, Verdict};
use crate::model::gauges::Gauges;
use crate::model::inbox::Inbox;
use crate::model::lifecycle::Lifecycle;
use crate::scheduler::{Limits, Scheduler, Step};

/// How often an idle model shows life and is asked for its health.
const IDLE_TURN: Duration = Duration::from_secs(1);

/// How long the thread rests when all sequences wait for their readers.
const PAUSE: Duration = Duration::from_millis(2);

/// What the thread of a model that the host schedules works with.
pub(crate) struct TokenWorker {
    pub(crate) name: String,
    pub(crate) inbox: Arc<Inbox<Mail>>,
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) limits: Limits,
    /// Failures of the engine's own in a row that are forgiven; then the model is given up, unless
    /// one request may be the cause of all.
    pub(crate) retry_threshold: u32,
    /// Whether the model is loaded again when it is lost.
    pub(crate) reloads: bool,
    /// Sequences that the engine held at the last idle moment; 0 unless it leaks.
    pub(crate) n_leaked: Arc<AtomicUsize>,
}

impl TokenWorker {
    /// Works until the inbox is closed and empty, or the model is gone, which is then the error.
    pub(crate) fn run(&self, model: &mut dyn TokenModel) -> Result<(), HostError> {
        let mut scheduler = Scheduler::new(&self.name, self.limits);
        let mut gauges = Gauges::new(&self.name, self.limits.info.kv_capacity_tokens);
        let end = self.turn(model, &mut scheduler, &mut gauges);
        if let Err(error) = &end {
            let error = HostError::Failed {
                model: self.name.clone(),
                reason: error.chain(),
                source: Some(Arc::new(error.clone())),
            };
            // Whoever gets its error now must not be told that the model is ready.
            if self.reloads && is_loss(end.as_ref().err()) {
                self.lifecycle.lose(error.clone());
                self.refuse_waiting(&mut scheduler);
            } else {
                self.lifecycle.fail(error.clone());
            }
            scheduler.fail_all(&error);
        }
        gauges.record(&mut scheduler);
        end
    }

    /// Takes what waits for the model, which goes with it.
    fn refuse_waiting(&self, scheduler: &mut Scheduler) {
        let mut mail = Vec::new();
        self.inbox.take_all(&mut mail);
        for mail in mail {
            match mail {
                Mail::Job(job) => scheduler.push(job),
                // Who asked for it hears that nobody answers.
                Mail::Load { .. } | Mail::Unload(_) => {}
            }
        }
    }

    fn turn(
        &self,
        model: &mut dyn TokenModel,
        scheduler: &mut Scheduler,
        gauges: &mut Gauges,
    ) -> Result<(), HostError> {
        let mut mail = Vec::new();
        let mut faults = Faults::default();
        let mut next_check = Instant::now();
        loop {
            self.lifecycle.beat();
            let orders = self.inbox.take_all(&mut mail);
            for mail in mail.drain(..) {
                match mail {
                    Mail::Job(job) => scheduler.push(job),
                    Mail::Load { id, dir, answer } => {
                        let end = model.load_adapter(id, &dir);
                        let lost = end.clone().err().filter(|e| e.kind() == ErrorKind::DeviceLost);
                        // Nobody waits any more where the answer can't be given.
                        let _ = answer.send(end);
                        if let Some(error) = lost {
                            return Err(error.into());
                        }
                        self.lifecycle.beat();
                    }
                    Mail::Unload(id) => model.unload_adapter(id),
                }
            }
            if let Some(deadline) = orders.drain {
                scheduler.drain(deadline);
            }
            let now = Instant::now();
            if scheduler.is_idle() {
                if orders.closed {
                    return Ok(());
                }
                self.report_leaks(model, scheduler.tally().n_kept);
                self.check_health(model)?;
                next_check = now + IDLE_TURN;
                self.inbox.wait(IDLE_TURN);
                continue;
            }
            let step = scheduler.step(model, now)?;
            scheduler.took(now.elapsed());
            gauges.record(scheduler);
            let verdict = faults.add(&step, self.retry_threshold);
            if verdict != Verdict::Fine {
                self.judge(model, verdict)?;
            }
            if step == Step::default() && !scheduler.is_idle() {
                self.inbox.wait(scheduler.delay(Instant::now()).unwrap_or(PAUSE));
            }
            if now >= next_check {
                self.check_health(model)?;
                next_check = now + IDLE_TURN;
            }
        }
    }

    /// Gives the model up if it is broken, or if it is suspect and says itself that it is not well.
    fn judge(&self, model: &mut dyn TokenModel, verdict: Verdict) -> Result<(), HostError> {
        match verdict {
            Verdict::Fine => Ok(()),
            Verdict::Suspect => model.health().map_err(HostError::from),
            Verdict::Broken { n_steps } => Err(HostError::Engine(EngineError::internal(format!(
                "{n_steps} calls in a row failed by the engine's own fault, for several \
                     requests, more than retry_threshold={}",
                self.retry_threshold
            )))),
        }
    }

    fn check_health(&self, model: &mut dyn TokenModel) -> Result<(), HostError> {
        match model.health() {
            Ok(()) => self.lifecycle.set_illness(None),
            Err(error) if error.kind() == ErrorKind::DeviceLost => return Err(error.into()),
            Err(error) => self.lifecycle.set_illness(Some(HostError::from(error).chain())),
        }
        Ok(())
    }

    /// When nothing runs the engine should hold nothing but the `n_kept` prefixes.
    fn report_leaks(&self, model: &dyn TokenModel, n_kept: usize) {
        let n_held = model.n_sequences().saturating_sub(n_kept);
        if n_held != self.n_leaked.swap(n_held, Ordering::Relaxed) && n_held > 0 {
            tracing::warn!(model = self.name, n_held, "the engine holds sequences while idle");
        }
    }
}

/// Whether this end is the loss of what computes, and no fault of the host's or the engine's.
pub(super) fn is_loss(error: Option<&HostError>) -> bool {
    matches!(error, Some(HostError::Engine(error)) if error.kind() == ErrorKind::DeviceLost)
}
