//! What goes into the two calls of a step.

use drivetrain_engine::{ModelKind, TokenModel};

use super::Scheduler;
use super::group::{Group, State};
use super::lookup;
use super::pass::Owner;

/// Most logits that a piece of a prompt leaves whose tokens are all scored, as numbers: a vocabulary
/// is wide and a prompt long.
const PROMPT_LOGITS: usize = 1 << 23;

impl Scheduler {
    /// Whole inputs that the encoder has not read, in order, up to the step's tokens; the first
    /// one even if it is longer.
    pub(super) fn plan_encode(&mut self) {
        self.pass.clear();
        for (idx, group) in self.running.iter().enumerate() {
            let n_tokens = group.n_to_encode();
            if n_tokens == 0 {
                continue;
            }
            if !self.pass.is_empty() && self.pass.n_tokens() + n_tokens > self.limits.step_tokens {
                break;
            }
            if let Some(piece) = group.encode_piece() {
                self.pass.push(Owner { group: idx, row: 0 }, piece);
            }
        }
    }

    /// The tokens of the groups that decode, then prompts cut to the tokens left.
    pub(super) fn plan_forward(&mut self, model: &mut dyn TokenModel) {
        self.grow(model);
        self.pass.clear();
        self.plan_decodes();
        self.plan_prompts();
    }

    /// One token of each sequence that decodes, and those that are looked up while there are tokens
    /// left. If not all fit, the next step begins with the first that did not.
    fn plan_decodes(&mut self) {
        let n_groups = self.running.len();
        let start = if self.turn < n_groups { self.turn } else { 0 };
        self.turn = 0;
        let n_decoding = self.running.iter().filter(|g| g.is_decoding()).map(|g| g.rows.len());
        let mut budget = self.limits.info.max_batch_tokens as usize;
        // What is left when each sequence that decodes has its token; half of it is for prompts.
        let mut extra = budget.saturating_sub(n_decoding.sum());
        if self.running.iter().any(|group| !group.is_decoding()) {
            extra /= 2;
        }
        for idx in (start..n_groups).chain(0..start) {
            let Some(group) = self.running.get_mut(idx) else { continue };
            let can_go = group.is_decoding()
                && self.jobs.get(&group.job).is_some_and(|entry| entry.sink.has_room());
            if !can_go {
                continue;
            }
            if group.rows.len() > budget && !self.pass.is_empty() {
                self.turn = idx;
                return;
            }
            let n_proposed = propose(group, extra);
            extra -= n_proposed;
            self.tally.n_proposed += n_proposed as u64;
            for (row_idx, row) in group.rows.iter().enumerate() {
                let n_tokens = 1 + row.n_proposed;
                if let Some(piece) = group.piece(row_idx, n_tokens) {
                    self.pass.push(Owner { group: idx, row: row_idx }, piece);
                    budget = budget.saturating_sub(n_tokens);
                }
            }
        }
    }

    /// Prompts, in the order of admission, cut to the step's tokens. An encoder takes whole inputs;
    /// one that does not fit any more lets shorter ones behind it go first, and is the first of a
    /// later step.
    fn plan_prompts(&mut self) {
        let is_whole = self.limits.info.kind == ModelKind::Encoder;
        let most_scored = (PROMPT_LOGITS / self.limits.info.n_logits.max(1) as usize).max(1);
        let n_decoding = self.pass.n_tokens();
        let mut n_all = 0;
        let in_batch = (self.limits.info.max_batch_tokens as usize).saturating_sub(n_decoding);
        let budget = self.limits.step_tokens.min(in_batch);
        for (idx, group) in self.running.iter().enumerate() {
            let left = budget.saturating_sub(self.pass.n_tokens() - n_decoding);
            let Some(row) = group.rows.first() else { continue };
            let n_tokens = row.n_to_run();
            if left == 0 {
                return;
            }
            if group.is_decoding() || group.n_to_encode() > 0 || n_tokens == 0 {
                continue;
            }
            let mut n_taken = n_tokens.min(left);
            if is_whole && n_tokens > left && !self.pass.is_empty() {
                continue;
            }
            let wants_all = matches!(&group.state, State::Rows(rows) if rows.wants_all_logits());
            if is_whole && wants_all {
                // Each token leaves a row, which may be as wide as the vocabulary.
                if n_all > 0 && n_all + n_tokens > most_scored {
                    continue;
                }
                n_all += n_tokens;
            }
            if is_whole {
                n_taken = n_tokens;
            } else if wants_all || group.n_prompt_scores().is_some() {
                n_taken = n_taken.min(most_scored);
            }
            if let Some(piece) = group.piece(0, n_taken) {
                self.pass.push(Owner { group: idx, row: 0 }, piece);
            }
        }
    }
}

/// Looks up what may come next in the text of a group's only sequence: as many tokens as it asks
/// for, `n_most` at most, and within the cache it has; how many.
fn propose(group: &mut Group, n_most: usize) -> usize {
    let held = group.held.kv + group.n_shared as u64;
    let State::Tokens(choices) = &group.state else { return 0 };
    let generate = &choices.generate;
    let max_length = generate.rules.max_length;
    let n_wanted = if choices.ended.len() == 1 { generate.n_lookup } else { 0 };
    let Some(row) = group.rows.first_mut().filter(|row| row.constraint.is_none()) else {
        return 0;
    };
    let in_cache = usize::try_from(held).unwrap_or(usize::MAX).saturating_sub(row.n_done + 1);
    let in_text = max_length.saturating_sub(row.len() + 1);
    let n_most = n_wanted.min(n_most).min(in_cache).min(in_text);
    if n_most == 0 {
        return 0;
    }
    row.n_proposed = lookup::propose(&mut row.tokens, generate.lookup_ngram, n_most);
    row.n_proposed
}
