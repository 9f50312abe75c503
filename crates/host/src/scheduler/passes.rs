//! Running the two calls of a step, and whose fault it is when one fails.

use drivetrain_engine::{EngineError, ErrorKind, ModelKind, TokenModel};

use super::pass::{Call, Pass, RowCursor};
use super::{Calls, Scheduler};
use crate::HostError;

impl Scheduler {
    /// Runs the planned call. An error of the whole batch is put down to the groups that fail alone
    /// as well, so that nobody fails for the company kept.
    ///
    /// # Errors
    /// `DeviceLost`.
    pub(super) fn run(
        &mut self,
        call: Call,
        model: &mut dyn TokenModel,
        calls: &mut Calls,
    ) -> Result<(), EngineError> {
        if self.pass.is_empty() {
            return Ok(());
        }
        let mut pass = std::mem::take(&mut self.pass);
        if self.limits.info.kind != ModelKind::Encoder {
            for idx in 0..pass.n_segments() {
                if let Some((owner, _)) = pass.segment(idx)
                    && let Some(group) = self.running.get_mut(owner.group)
                    && let Some(row) = group.rows.get_mut(owner.row)
                {
                    row.is_born = true;
                }
            }
        }
        calls.n_made += 1;
        let end = match pass.run_all(call, model) {
            Ok(()) => {
                let (mut cursor, mut first) = (RowCursor::default(), 0);
                while first < pass.n_segments() {
                    let unit = pass.unit(first);
                    first = unit.end;
                    self.settle(call, unit, &mut cursor, &mut pass, model, calls);
                }
                Ok(())
            }
            Err(error) => self.run_alone(call, model, &mut pass, calls, error),
        };
        self.pass = pass;
        self.tell();
        end
    }

    /// Runs the groups of a batch that failed one by one.
    fn run_alone(
        &mut self,
        call: Call,
        model: &mut dyn TokenModel,
        pass: &mut Pass,
        calls: &mut Calls,
        batch_error: EngineError,
    ) -> Result<(), EngineError> {
        if batch_error.kind() == ErrorKind::DeviceLost {
            return Err(batch_error);
        }
        let n_segments = pass.n_segments();
        let (mut n_units, mut first) = (0, pass.unit(0).end);
        if first == n_segments {
            self.blame(0, pass, batch_error, calls);
            return Ok(());
        }
        tracing::debug!(model = self.model, n_segments, error = %batch_error, "a batch failed");
        let mut failures = Vec::new();
        first = 0;
        while first < n_segments {
            let unit = pass.unit(first);
            n_units += 1;
            calls.n_made += 1;
            match pass.run_some(call, model, unit.clone()) {
                Ok(()) => {
                    self.settle(call, unit.clone(), &mut RowCursor::default(), pass, model, calls);
                }
                Err(error) if error.kind() == ErrorKind::DeviceLost => return Err(error),
                Err(error) => failures.push((first, error)),
            }
            first = unit.end;
        }
        // An engine that broke its own rules may have left its sequences in any state, so what
        // they say afterwards does not tell what went wrong.
        let is_broken = failures.len() == n_units && batch_error.kind() == ErrorKind::Internal;
        for (first, error) in failures {
            self.blame(first, pass, if is_broken { batch_error.clone() } else { error }, calls);
        }
        Ok(())
    }

    /// Fails the job of a segment.
    pub(super) fn blame(&mut self, idx: usize, pass: &Pass, error: EngineError, calls: &mut Calls) {
        let Some((owner, _)) = pass.segment(idx) else { return };
        let Some(job) = self.running.get(owner.group).map(|group| group.job) else { return };
        let Some(entry) = self.jobs.remove(&job) else { return };
        self.has_orphans = true;
        calls.n_blamed += usize::from(error.kind() == ErrorKind::Internal);
        tracing::warn!(model = self.model, kind = %error.kind(), %error, "a request failed");
        entry.fail(HostError::from(error));
    }

    /// Wakes the readers of this step's tokens.
    fn tell(&mut self) {
        for group in &self.running {
            if let Some(entry) = self.jobs.get_mut(&group.job)
                && std::mem::take(&mut entry.has_news)
            {
                entry.sink.flush();
            }
        }
    }
}
