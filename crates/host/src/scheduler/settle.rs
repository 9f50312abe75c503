//! What becomes of a call's results: next tokens, next rows of beams, hidden states.

use std::ops::Range;

use drivetrain_engine::{EngineError, Segment, TokenModel, Wanted};

use super::choose::{Chosen, score_prompt};
use super::group::{Group, Row, State};
use super::pass::{Call, Pass, RowCursor, Rows};
use super::work::{Choice, Generate, NewToken, Outcome};
use super::{Calls, Scheduler};

impl Scheduler {
    /// Gives the segments `unit`, all of one group, their rows, which are the next ones.
    pub(super) fn settle(
        &mut self,
        call: Call,
        unit: Range<usize>,
        cursor: &mut RowCursor,
        pass: &mut Pass,
        model: &mut dyn TokenModel,
        calls: &mut Calls,
    ) {
        let Some((owner, segment)) = pass.segment(unit.start) else { return };
        let Some(place) = self.running.get_mut(owner.group) else { return };
        if call == Call::Encode {
            place.is_encoded = true;
            calls.n_good += 1;
            return;
        }
        // A piece of a prompt that leaves nothing says nothing of the engine's results.
        let n_good = if segment.wanted == Wanted::Nothing { 0 } else { unit.len() };
        let mut group = std::mem::replace(place, Group::hollow());
        let settled = match group.state {
            State::Beams { .. } if group.rows.len() == unit.len() && group.is_decoding() => {
                let logits = pass.take_logits(unit.len(), cursor);
                group.rows.iter_mut().for_each(|row| row.n_done += 1);
                self.step_beams(&mut group, logits, model)
            }
            _ => {
                let mut settled = Ok(());
                for idx in unit.clone() {
                    // Past an error the rows are still taken: what comes behind is other groups'.
                    let Some((owner, segment)) = pass.segment(idx) else { break };
                    let rows = pass.take_rows(&segment, cursor);
                    if settled.is_ok() {
                        settled = self.settle_row(&mut group, owner.row, &segment, rows, model);
                    }
                }
                settled
            }
        };
        self.drop_ended(&mut group, model);
        group.conclude();
        if let Some(place) = self.running.get_mut(owner.group) {
            *place = group;
        }
        match settled {
            Ok(()) => calls.n_good += n_good,
            Err(error) => self.blame(unit.start, pass, error, calls),
        }
    }

    /// Gives one row of a group what its segment left.
    fn settle_row(
        &mut self,
        group: &mut Group,
        row_idx: usize,
        segment: &Segment,
        rows: Rows<'_>,
        model: &mut dyn TokenModel,
    ) -> Result<(), EngineError> {
        let was_decoding = group.is_decoding();
        let Some(row) = group.rows.get_mut(row_idx) else { return Ok(()) };
        if was_decoding {
            return self.take_tokens(group, row_idx, rows, model);
        }
        row.n_done += segment.n_tokens as usize;
        let is_through = row.n_to_run() == 0;
        if let State::Rows(gathered) = &mut group.state {
            let piece = (segment.position as usize, segment.n_tokens as usize);
            gathered.take(piece, row.tokens.len(), &rows);
            if is_through {
                group.outcome = Some(gathered.outcome());
            }
            return Ok(());
        }
        let mut rows = rows;
        self.gather_prompt_scores(group, segment, &mut rows)?;
        if !is_through {
            return Ok(());
        }
        group.is_through = true;
        self.keep_prompt(group, model);
        let n_before = rows.logits.len().saturating_sub(rows.n_logits);
        let logits = rows.logits.get_mut(n_before..).unwrap_or_default();
        if matches!(group.state, State::Beams { .. }) {
            return self.step_beams(group, logits, model);
        }
        let max_length = group.generate().map_or(0, |generate| generate.rules.max_length);
        self.fork_choices(group, logits, model)?;
        group.rows.iter_mut().for_each(|row| row.reserve(max_length));
        self.take_token(group, 0, logits).map(|_| ())
    }

    /// Takes the scores of a prompt's tokens, all but the first, from a piece of it; tells them when
    /// the prompt is through.
    fn gather_prompt_scores(
        &mut self,
        group: &mut Group,
        segment: &Segment,
        rows: &mut Rows<'_>,
    ) -> Result<(), EngineError> {
        let Some(n_top) = group.n_prompt_scores() else { return Ok(()) };
        let Some(n_prompt) = group.generate().map(|generate| generate.rules.n_prompt) else {
            return Ok(());
        };
        let Some(row) = group.rows.first() else { return Ok(()) };
        let position = segment.position as usize;
        for (idx, logits) in rows.logits.chunks_exact(rows.n_logits.max(1)).enumerate() {
            let next = position + idx + 1;
            if let Some(token) = row.tokens.get(next).filter(|_| next < n_prompt) {
                group.prompt_scores.push(score_prompt(logits, *token, n_top, next)?);
            }
        }
        if row.n_to_run() == 0 {
            group.has_told_prompt = true;
            let scores = std::mem::take(&mut group.prompt_scores);
            if let Some(entry) = self.jobs.get_mut(&group.job) {
                entry.sink.prompt(group.item, scores);
            }
        }
        Ok(())
    }

    /// Gives each choice of a prompt that is through its sequence, and its first token, from the
    /// logits that they share.
    fn fork_choices(
        &mut self,
        group: &mut Group,
        logits: &[f32],
        model: &mut dyn TokenModel,
    ) -> Result<(), EngineError> {
        let State::Tokens(choices) = &mut group.state else { return Ok(()) };
        if std::mem::replace(&mut choices.is_forked, true) {
            return Ok(());
        }
        let n_choices = choices.ended.len();
        let mut own = Vec::with_capacity(logits.len());
        for choice in 1..n_choices {
            let id = self.new_id();
            let Some(first) = group.rows.first() else { return Ok(()) };
            model.fork(first.id, id, first.n_done as u32)?;
            let row = first.fork(id, choice);
            group.rows.push(row);
        }
        for row_idx in 1..n_choices {
            own.clear();
            own.extend_from_slice(logits);
            self.take_token(group, row_idx, &mut own)?;
        }
        Ok(())
    }

    /// Takes the tokens that follow from a decoding row's logits: one, and one more for each
    /// proposed token that was right.
    fn take_tokens(
        &mut self,
        group: &mut Group,
        row_idx: usize,
        rows: Rows<'_>,
        model: &mut dyn TokenModel,
    ) -> Result<(), EngineError> {
        let Some(row) = group.rows.get_mut(row_idx) else { return Ok(()) };
        let n_proposed = row.n_proposed;
        let n_seen = row.n_done + 1 + n_proposed;
        row.unpropose();
        for (idx, logits) in rows.logits.chunks_exact_mut(rows.n_logits.max(1)).enumerate() {
            if let Some(row) = group.rows.get_mut(row_idx) {
                row.n_done += 1;
            }
            let Some(id) = self.take_token(group, row_idx, logits)? else { break };
            if rows.tokens.get(idx + 1) != Some(&id) {
                break;
            }
            self.tally.n_agreed += 1;
        }
        let Some(row) = group.rows.get(row_idx) else { return Ok(()) };
        if row.n_done < n_seen && !row.has_ended {
            model.truncate(row.id, row.n_done as u32)?;
        }
        Ok(())
    }

    /// Takes a row's next token from its logits and says it; `None` if the choice has ended with it.
    fn take_token(
        &mut self,
        group: &mut Group,
        row_idx: usize,
        logits: &mut [f32],
    ) -> Result<Option<u32>, EngineError> {
        let State::Tokens(choices) = &mut group.state else { return Ok(None) };
        let Some(row) = group.rows.get_mut(row_idx) else { return Ok(None) };
        let generate: &Generate = &choices.generate;
        let scored = self.chooser.choose(generate, row, logits)?;
        let end = row.accept(generate, scored)?;
        let mut entry = self.jobs.get_mut(&group.job);
        if let Some(entry) = &mut entry {
            let new = NewToken { token: scored, top: &self.chooser.top };
            entry.sink.token(group.item, row.choice, &new);
            entry.has_news = true;
        }
        let Some(chosen) = end else { return Ok(Some(scored.id)) };
        let Chosen { finish, stop } = chosen;
        let ended: Choice = row.end(generate.rules.n_prompt, chosen);
        let choice = row.choice;
        if let Some(place) = choices.ended.get_mut(choice) {
            *place = Some(ended);
        }
        if choices.ended.iter().any(Option::is_none)
            && let Some(entry) = entry
        {
            entry.sink.choice_finished(group.item, choice, finish, stop);
        }
        Ok(None)
    }

    /// Lets the rows go whose choice has ended while others go on.
    fn drop_ended(&mut self, group: &mut Group, model: &mut dyn TokenModel) {
        if group.rows.iter().all(|row| row.has_ended) {
            return;
        }
        for row in group.rows.iter().filter(|row| row.has_ended && row.is_born) {
            model.release(row.id);
        }
        group.rows.retain(|row| !row.has_ended);
    }

    /// Makes the next rows of a beam search from the logits of all its rows.
    fn step_beams(
        &mut self,
        group: &mut Group,
        logits: &mut [f32],
        model: &mut dyn TokenModel,
    ) -> Result<(), EngineError> {
        let State::Beams { search, .. } = &mut group.state else { return Ok(()) };
        search.step(logits, &mut self.chooser.rules)?;
        if search.is_done() {
            group.outcome = Some(Outcome::Generated(search.choices(false)));
            return Ok(());
        }
        let next = search.next_rows();
        let has_child = |parent: usize| next.iter().any(|(from, _)| *from == parent);
        // Those that end make room before others grow.
        let mut spare = std::mem::take(&mut self.spare_rows);
        for (idx, row) in group.rows.iter_mut().enumerate() {
            if !has_child(idx) && row.is_born {
                model.release(row.id);
                row.is_born = false;
            }
        }
        // The first child of a row goes on in its place; the others are forks.
        let n_old = group.rows.len();
        for (at, (parent, token)) in next.iter().enumerate() {
            let is_first = next.iter().take(at).all(|(from, _)| from != parent);
            let (id, n_done) = match group.rows.get(*parent) {
                Some(row) => (row.id, row.n_done),
                None => return Err(EngineError::internal("a beam has no parent")),
            };
            let mut child = spare.pop().unwrap_or_else(|| Row::new(id, Vec::new()));
            child.id = id;
            if !is_first {
                child.id = super::SeqId(self.next_sequence);
                self.next_sequence += 1;
                model.fork(id, child.id, n_done as u32)?;
            }
            (child.is_born, child.n_done, child.first) = (true, n_done, n_done);
            child.tokens.clear();
            child.tokens.push(*token);
            group.rows.push(child);
        }
        spare.extend(group.rows.drain(..n_old));
        self.spare_rows = spare;
        Ok(())
    }
}
