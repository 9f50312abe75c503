//! Who gets how much of the cache: admission, growth, preemption, and prefixes that are kept.

use std::time::{Duration, Instant};

use drivetrain_engine::{ModelKind, SeqId, TokenModel};

use super::Scheduler;
use super::capacity::Cache;
use super::group::{Group, Row, State};
use super::prefix::{Hit, Keep, PrefixKey};

/// New tokens that a sequence has room for when it is admitted, if it may have as many.
const HEADROOM: usize = 64;

impl Scheduler {
    /// Admits from the front of the queue while there is room.
    pub(super) fn admit(&mut self, model: &mut dyn TokenModel, now: Instant) {
        if self.delay(now).is_some() {
            return;
        }
        while let Some(mut next) = self.waiting.pop_front() {
            if !self.find_room(&mut next, model) {
                self.waiting.push_front(next);
                break;
            }
            self.round = self.round.max(next.order.round);
            self.n_rows += next.most_rows();
            if !std::mem::replace(&mut next.has_started, true)
                && let Some(entry) = self.jobs.get_mut(&next.job)
            {
                entry.n_waiting -= 1;
                if entry.n_waiting == 0 {
                    entry.sink.started();
                    self.waits.push(now.saturating_duration_since(entry.submitted));
                }
            }
            for constraint in next.rows.iter_mut().filter_map(|row| row.constraint.as_mut()) {
                constraint.begin();
            }
            self.running.push(next);
        }
    }

    /// How much longer the inputs of an encoder wait for company.
    pub(crate) fn delay(&self, now: Instant) -> Option<Duration> {
        let policy = self.limits.policy;
        let is_short = self.limits.info.kind == ModelKind::Encoder
            && self.running.is_empty()
            && self.drain.is_none()
            && !self.waiting.is_empty()
            && self.waiting.len() < policy.batch_size;
        if !is_short {
            return None;
        }
        let first = self.jobs.values().map(|entry| entry.submitted).min()?;
        let left = (first + policy.max_delay).saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// Sets the cache aside that `group` starts with, and lets it start from a kept prefix if it
    /// can; `false` if there is no room.
    fn find_room(&mut self, group: &mut Group, model: &mut dyn TokenModel) -> bool {
        let n_rows = group.most_rows();
        if self.n_rows + n_rows > self.limits.max_sequences {
            return false;
        }
        let mut needs = self.limits.needs(&group.needs());
        if group.is_preemptible() {
            let n_tokens = group.rows.first().map_or(0, Row::len);
            let n_first = (n_tokens + HEADROOM).min(group.needs().n_most);
            needs.kv = self.limits.blocks(n_first);
        }
        let hit = self.hit(group);
        (hit.is_some() && self.start(group, needs, hit, model))
            || self.start(group, needs, None, model)
    }

    /// The longest kept beginning of what a group has to run.
    fn hit(&self, group: &Group) -> Option<Hit> {
        let row = group.rows.first()?;
        let is_of_use = self.prefixes.len() > 0 && group.may_skip_prefix();
        is_of_use.then(|| {
            self.prefixes.find(group.adapter, &group.encoder, &row.tokens, self.limits.block())
        })?
    }

    /// Sets aside what `group` needs beside what it shares with `hit`, and forks it from there.
    fn start(
        &mut self,
        group: &mut Group,
        mut needs: Cache,
        hit: Option<Hit>,
        model: &mut dyn TokenModel,
    ) -> bool {
        let n_rows = group.most_rows();
        if let Some(hit) = hit {
            self.prefixes.pin(hit.key);
            needs.kv -= hit.n_tokens as u64;
            needs.cross = 0;
        }
        // Each group that runs may want a block more before the next one is done.
        let n_growing = self.running.iter().filter(|other| other.is_preemptible()).count();
        let spare = (n_growing * self.limits.block()) as u64;
        let mut is_there = self.make_room(needs, spare, n_rows, model);
        if let (Some(hit), Some(row), true) = (hit, group.rows.first_mut(), is_there) {
            match model.fork(hit.sequence, row.id, hit.n_tokens as u32) {
                Ok(()) => {
                    (row.is_born, row.n_done) = (true, hit.n_tokens);
                    group.is_encoded = true;
                    (group.base, group.n_shared) = (Some(hit.key), hit.n_tokens);
                    self.tally.prefix_tokens += hit.n_tokens as u64;
                }
                Err(error) => {
                    tracing::warn!(model = self.model, %error, "a kept prefix is of no use");
                    is_there = false;
                }
            }
        }
        if is_there {
            self.used.add(needs);
            group.held = needs;
            self.tally.prompt_tokens += group.rows.first().map_or(0, Row::len) as u64;
        } else if let Some(hit) = hit {
            self.prefixes.unpin(hit.key);
        }
        is_there
    }

    /// Whether `needs` are free, with `spare` tokens more, and `n_rows` more sequences may live;
    /// drops kept prefixes for it.
    fn make_room(
        &mut self,
        needs: Cache,
        spare: u64,
        n_rows: usize,
        model: &mut dyn TokenModel,
    ) -> bool {
        let info = self.limits.info;
        let wanted = needs.plus(Cache { kv: spare, cross: 0 });
        let most_sequences = info.max_sequences as usize;
        loop {
            let used = self.used.plus(self.prefixes.used());
            let n_alive = self.n_rows + n_rows + self.prefixes.len();
            if used.has_room_for(wanted, &info) && n_alive <= most_sequences {
                return true;
            }
            let bases = self.running.iter().filter_map(|group| group.base);
            let mut fixed = used;
            fixed.subtract(self.prefixes.reclaimable(bases));
            // The prefix that is to be forked from is in use as well, which `evict` knows.
            if !fixed.has_room_for(wanted, &info) || !self.prefixes.evict(model) {
                return false;
            }
        }
    }

    /// Gives every group that decodes room for its next token, in the order of admission. Where
    /// there is none, the group that was admitted last of the least urgent goes back to the queue.
    pub(super) fn grow(&mut self, model: &mut dyn TokenModel) {
        let mut idx = 0;
        while let Some(group) = self.running.get(idx) {
            let row = group.rows.first();
            let n_next = row.map_or(0, |row| row.n_done + 1);
            let held = group.held.kv + group.n_shared as u64;
            if !group.is_preemptible() || !group.is_decoding() || n_next as u64 <= held {
                idx += 1;
                continue;
            }
            let more = Cache { kv: self.limits.blocks(n_next).saturating_sub(held), cross: 0 };
            if self.make_room(more, 0, 0, model) {
                self.used.add(more);
                if let Some(group) = self.running.get_mut(idx) {
                    group.held.add(more);
                }
                idx += 1;
                continue;
            }
            let others = self.running.iter().enumerate().filter(|(_, g)| g.is_preemptible());
            let victim = others.max_by_key(|(at, g)| (g.order.urgency, *at)).map(|(at, _)| at);
            let Some(victim) = victim else { return };
            self.preempt(victim, model);
            // Whoever stood before it has its room; the one that asked moves up if it did.
            idx -= usize::from(victim < idx);
        }
    }

    /// Takes a group's cache back and puts it into the queue, to be computed again.
    fn preempt(&mut self, idx: usize, model: &mut dyn TokenModel) {
        let mut group = self.running.remove(idx);
        self.used.subtract(std::mem::take(&mut group.held));
        self.n_rows -= group.most_rows();
        if let Some(base) = group.base.take() {
            self.prefixes.unpin(base);
        }
        group.n_shared = 0;
        (group.is_encoded, group.is_through) = (false, false);
        group.prompt_scores.clear();
        for row in &mut group.rows {
            if row.is_born {
                model.release(row.id);
            }
            row.unpropose();
            (row.id, row.is_born, row.n_done) = (self.new_id(), false, 0);
        }
        self.tally.n_preempted += 1;
        tracing::debug!(model = self.model, job = group.job, "a sequence gives its cache away");
        self.waiting.push_front(group);
        self.sort_waiting();
    }

    /// Keeps the whole blocks of a prompt that is through, for inputs that begin alike. The group
    /// shares them from now on, so that nothing more is used.
    pub(super) fn keep_prompt(&mut self, group: &mut Group, model: &mut dyn TokenModel) {
        let Some(row) = group.rows.first() else { return };
        let n_tokens = self.limits.whole_blocks(row.n_done);
        let is_more =
            n_tokens > group.n_shared || (!group.encoder.is_empty() && group.base.is_none());
        if !self.limits.policy.keeps_prefixes || row.first > 0 || !is_more {
            return;
        }
        let tokens = row.tokens.get(..n_tokens).unwrap_or_default();
        let is_full =
            || self.n_rows + self.prefixes.len() >= self.limits.info.max_sequences as usize;
        if self.prefixes.holds(group.adapter, &group.encoder, tokens)
            || (is_full() && !self.prefixes.evict(model))
        {
            return;
        }
        let sequence = SeqId(self.next_sequence);
        self.next_sequence += 1;
        if let Err(error) = model.fork(row.id, sequence, n_tokens as u32) {
            tracing::warn!(model = self.model, %error, "a prefix could not be kept");
            return;
        }
        let keep = Keep {
            sequence,
            adapter: group.adapter,
            encoder: &group.encoder,
            tokens,
            grew_from: group.base,
            n_shared: group.n_shared,
        };
        let own = keep.own();
        let Some(key) = self.prefixes.insert(keep) else {
            model.release(sequence);
            return;
        };
        self.prefixes.pin(key);
        if let Some(base) = group.base.replace(key) {
            self.prefixes.unpin(base);
        }
        group.n_shared = n_tokens;
        group.held.subtract(own);
        self.used.subtract(own);
        self.prefixes.absorb(key, model);
    }

    /// Takes back what a group that ran holds; its whole blocks are kept if they may be of use.
    pub(super) fn give_back(&mut self, group: &mut Group, model: &mut dyn TokenModel) {
        self.used.subtract(std::mem::take(&mut group.held));
        self.n_rows -= group.most_rows();
        let kept = self.keep_answer(group, model);
        for row in group.rows.drain(..) {
            if row.is_born && kept.is_none_or(|(id, _)| id != row.id) {
                model.release(row.id);
            }
        }
        if let Some(base) = group.base.take() {
            self.prefixes.unpin(base);
        }
        if let Some((_, key)) = kept {
            self.prefixes.absorb(key, model);
        }
    }

    /// Keeps the sequence of a group that ended well, in whole blocks.
    fn keep_answer(
        &mut self,
        group: &Group,
        model: &mut dyn TokenModel,
    ) -> Option<(SeqId, PrefixKey)> {
        let is_well = self.limits.policy.keeps_prefixes
            && group.outcome.is_some()
            && matches!(group.state, State::Tokens(_));
        let row = group.rows.first().filter(|row| is_well && row.is_born && row.first == 0)?;
        let n_tokens = self.limits.whole_blocks(row.n_done);
        if n_tokens <= group.n_shared {
            return None;
        }
        let tokens = row.tokens.get(..n_tokens)?;
        if self.prefixes.holds(group.adapter, &group.encoder, tokens) {
            return None;
        }
        if let Err(error) = model.truncate(row.id, n_tokens as u32) {
            tracing::warn!(model = self.model, %error, "an answer could not be kept");
            return None;
        }
        let key = self.prefixes.insert(Keep {
            sequence: row.id,
            adapter: group.adapter,
            encoder: &group.encoder,
            tokens,
            grew_from: group.base,
            n_shared: group.n_shared,
        })?;
        Some((row.id, key))
    }
}
