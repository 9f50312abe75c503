//! The two calls of a step: what goes into them, and what becomes of it.

use drivetrain_engine::{EngineError, ErrorKind, ModelKind, TokenModel, Wanted};

use super::pass::{Call, RowCursor};
use super::{Calls, NewToken, Scheduler, Scored};
use crate::HostError;

impl Scheduler {
    /// Whole inputs that the encoder has not read, in order, up to the step's tokens; the first
    /// one even if it is longer.
    pub(super) fn plan_encode(&mut self) {
        self.pass.clear();
        for (idx, sequence) in self.running.iter().enumerate() {
            let n_tokens = sequence.n_to_encode();
            if n_tokens == 0 {
                continue;
            }
            if !self.pass.is_empty() && self.pass.n_tokens() + n_tokens > self.limits.step_tokens {
                break;
            }
            self.pass.push(idx, sequence.encode_piece());
        }
    }

    /// One token of each sequence that decodes, then prompts cut to the tokens left.
    pub(super) fn plan_forward(&mut self) {
        self.pass.clear();
        let budget = self.limits.step_tokens;
        for (idx, sequence) in self.running.iter().enumerate() {
            if self.pass.n_tokens() == budget {
                return;
            }
            let has_room = || self.jobs.get(&sequence.job).is_some_and(|e| e.sink.has_room());
            if sequence.is_decoding() && has_room() {
                self.pass.push(idx, sequence.piece(1));
            }
        }
        let is_whole = self.limits.info.kind == ModelKind::Encoder;
        for (idx, sequence) in self.running.iter().enumerate() {
            let left = budget.saturating_sub(self.pass.n_tokens());
            let n_tokens = sequence.n_to_run();
            if left == 0 {
                return;
            }
            if sequence.is_decoding() || sequence.n_to_encode() > 0 || n_tokens == 0 {
                continue;
            }
            if !is_whole {
                self.pass.push(idx, sequence.piece(n_tokens.min(left)));
            } else if n_tokens <= left || self.pass.is_empty() {
                self.pass.push(idx, sequence.piece(n_tokens));
            } else {
                return;
            }
        }
    }

    /// Runs the planned call. An error of the whole batch is put down to the segments that fail
    /// alone as well, so that nobody fails for the company kept.
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
        if self.limits.info.kind != ModelKind::Encoder {
            for idx in 0..self.pass.n_segments() {
                if let Some((owner, _)) = self.pass.segment(idx)
                    && let Some(sequence) = self.running.get_mut(owner)
                {
                    sequence.is_born = true;
                }
            }
        }
        calls.n_made += 1;
        let Err(error) = self.pass.run_all(call, model) else {
            let mut cursor = RowCursor::default();
            (0..self.pass.n_segments()).for_each(|idx| self.settle(call, idx, &mut cursor, calls));
            return Ok(());
        };
        if error.kind() == ErrorKind::DeviceLost {
            return Err(error);
        }
        if self.pass.n_segments() == 1 {
            self.blame(0, error, calls);
            return Ok(());
        }
        self.run_one_by_one(call, model, calls, error)
    }

    fn run_one_by_one(
        &mut self,
        call: Call,
        model: &mut dyn TokenModel,
        calls: &mut Calls,
        batch_error: EngineError,
    ) -> Result<(), EngineError> {
        let n_segments = self.pass.n_segments();
        tracing::debug!(model = self.model, n_segments, error = %batch_error, "a batch failed");
        let mut failures = Vec::new();
        for idx in 0..n_segments {
            calls.n_made += 1;
            match self.pass.run_one(call, model, idx) {
                Ok(()) => self.settle(call, idx, &mut RowCursor::default(), calls),
                Err(error) if error.kind() == ErrorKind::DeviceLost => return Err(error),
                Err(error) => failures.push((idx, error)),
            }
        }
        // An engine that broke its own rules may have left its sequences in any state, so what
        // they say afterwards does not tell what went wrong.
        let is_broken = failures.len() == n_segments && batch_error.kind() == ErrorKind::Internal;
        for (idx, error) in failures {
            self.blame(idx, if is_broken { batch_error.clone() } else { error }, calls);
        }
        Ok(())
    }

    /// Gives a segment's rows, which are the next ones, to its sequence.
    fn settle(&mut self, call: Call, idx: usize, cursor: &mut RowCursor, calls: &mut Calls) {
        let Some((owner, segment)) = self.pass.segment(idx) else { return };
        let Some(sequence) = self.running.get_mut(owner) else { return };
        if call == Call::Encode {
            sequence.encoded();
            calls.n_good += 1;
            return;
        }
        let rows = self.pass.take_rows(&segment, cursor);
        match sequence.advance(&segment, rows, &mut self.scratch) {
            // A piece of a prompt that leaves nothing says nothing of the engine's results.
            Ok(None) => calls.n_good += usize::from(segment.wanted != Wanted::Nothing),
            Ok(Some(id)) => {
                calls.n_good += 1;
                if let Some(entry) = self.jobs.get_mut(&sequence.job) {
                    let token = Scored { id, logprob: f32::NAN };
                    entry.sink.token(sequence.item, 0, &NewToken { token, top: &[] });
                    entry.sink.flush();
                }
            }
            Err(error) => self.blame(idx, error, calls),
        }
    }

    /// Fails the job of a segment.
    fn blame(&mut self, idx: usize, error: EngineError, calls: &mut Calls) {
        let Some((owner, _)) = self.pass.segment(idx) else { return };
        let Some(job) = self.running.get(owner).map(|sequence| sequence.job) else { return };
        let Some(mut entry) = self.jobs.remove(&job) else { return };
        self.has_orphans = true;
        calls.n_blamed += usize::from(error.kind() == ErrorKind::Internal);
        tracing::warn!(model = self.model, kind = %error.kind(), %error, "a request failed");
        entry.sink.failed(HostError::from(error));
    }
}
