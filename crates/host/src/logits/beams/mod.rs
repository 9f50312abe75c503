//! Beam search, as transformers 5.23.0 has it (`generation/utils.py`, `_beam_search`), and the search
//! in groups of transformers 4.53 (`_group_beam_search`, `beam_search.py`).
//!
//! ```text
//! beams: ids and a score each; at first all have the prompt's ids, and the scores 0, -1e9, -1e9 ...
//! each step, k = max(2, 1 + end tokens) * beams:
//!     scores     = rules(log_softmax(logits)) + the beam's score
//!     candidates = best k of all beams' scores, or k drawn in their proportion
//!     a candidate ends by an end token, a stop string or the length
//!     beams'     = best candidates; those that ended lose 1e9
//!     finished   = best of it and of the candidates that ended among the first `beams`,
//!                  by score / new tokens ^ length penalty
//!     over if no finished text can be improved, or all candidates ended, or, with
//!     `Immediate`, there are as many finished texts as beams
//! ```
//!
//! In groups, each group of beams goes by itself, with its own finished texts, one after the other
//! in each step: a token that beams of earlier groups have chosen costs `diversity_penalty` for each
//! of them. There a candidate does not end by the length; the beams that are left at the length count
//! as finished at the end. A group that is over takes no part any more (transformers lets it say
//! padding). transformers has no stop strings for groups; here they end a text as end tokens do.
//!
//! Among equal scores the lower beam comes first, then the lower token. Ids in an equal state come
//! from the same parent and the same token, so beams that are copies of each other share a row.

mod finished;
mod select;
mod step;

use drivetrain_engine::{EngineError, TokenId};

use super::{Rules, Sampling, Scratch};
use crate::FinishReason;
use crate::scheduler::Choice;
use crate::text::StopWatch;
use finished::{End, Finished};
use step::Workbench;

/// What a beam has against it that is a copy, or has ended; also the score of a missing text.
const NEVER: f32 = -1e9;

/// When beam search stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum EarlyStopping {
    /// When it is unlikely that a better candidate comes.
    #[default]
    Heuristic,
    /// As soon as there are as many finished candidates as beams.
    Immediate,
    /// When there can be no better candidate.
    Never,
}

/// A beam search's figures.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BeamParams {
    /// Beams, 1 to 16, over all groups.
    pub(crate) n_beams: usize,
    /// Choices to give, 1 to `n_beams`.
    pub(crate) n_return: usize,
    pub(crate) length_penalty: f64,
    pub(crate) early_stopping: EarlyStopping,
    /// Groups that the beams are divided into; 1 for plain beam search.
    pub(crate) n_groups: usize,
    /// What a token loses for each beam of an earlier group that chose it in the same step.
    pub(crate) diversity_penalty: f32,
    /// Candidates are drawn instead of taking the best; not in groups.
    pub(crate) sampling: Option<Sampling>,
    /// What draws follow from.
    pub(crate) seed: u64,
}

/// A beam search under way. It knows the beams' ids and scores, and nothing of sequences or caches:
/// it is given a row of logits for each of its rows, and says which rows go on with which token.
///
/// Beams that have the same ids (before the first free choice they all have) share a row.
#[derive(Clone, Debug)]
pub(crate) struct BeamSearch {
    params: BeamParams,
    rules: Rules,
    rows: Vec<Row>,
    groups: Vec<Group>,
    next_rows: Vec<(usize, TokenId)>,
    is_done: bool,
    bench: Workbench,
}

/// Ids that one beam or more have.
#[derive(Clone, Debug, Default)]
struct Row {
    ids: Vec<TokenId>,
    watch: Option<StopWatch>,
}

#[derive(Clone, Copy, Debug)]
struct Beam {
    row: usize,
    score: f32,
}

/// Beams that are ranked together; without groups, all.
#[derive(Clone, Debug)]
struct Group {
    n_beams: usize,
    /// Best first.
    beams: Vec<Beam>,
    finished: Finished,
    is_done: bool,
}

impl BeamSearch {
    /// A search that starts after `prompt`, the decoder's ids so far, with one row.
    pub(crate) fn new(
        params: BeamParams,
        rules: Rules,
        prompt: &[TokenId],
        stops: Option<&StopWatch>,
    ) -> Self {
        let n_groups = params.n_groups.clamp(1, params.n_beams.max(1));
        let n_beams = (params.n_beams / n_groups).max(1);
        let score = |rank| if rank == 0 { 0.0 } else { NEVER };
        let group = Group {
            n_beams,
            beams: (0..n_beams).map(|rank| Beam { row: 0, score: score(rank) }).collect(),
            finished: Finished::new(n_beams),
            is_done: false,
        };
        Self {
            params,
            rules,
            rows: vec![Row { ids: prompt.to_vec(), watch: stops.cloned() }],
            groups: vec![group; n_groups],
            next_rows: Vec::new(),
            is_done: false,
            bench: Workbench::default(),
        }
    }

    /// Most rows there may be at once: the number of beams.
    pub(crate) fn max_rows(&self) -> usize {
        self.params.n_beams
    }

    /// Rows now; 1 before the first step.
    pub(crate) fn n_rows(&self) -> usize {
        self.rows.len()
    }

    /// Takes the logits of all rows, `[n_rows, n_logits]`, and makes the next rows.
    ///
    /// # Errors
    /// `Internal` if logits are no numbers.
    pub(crate) fn step(
        &mut self,
        logits: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), EngineError> {
        let mut groups = std::mem::take(&mut self.groups);
        let stepped = self.step_groups(&mut groups, logits, scratch);
        self.is_done = groups.iter().all(|group| group.is_done);
        self.groups = groups;
        stepped?;
        self.is_done |= self.n_ids() >= self.rules.max_length;
        if self.next_rows.is_empty() && !self.is_done {
            return Err(EngineError::internal("the logits processors made no numbers"));
        }
        Ok(())
    }

    /// The rows after the last step: each one's parent among the rows before it, and its new token.
    pub(crate) fn next_rows(&self) -> &[(usize, TokenId)] {
        &self.next_rows
    }

    /// Whether the search has ended; then the rows are of no use any more.
    pub(crate) fn is_done(&self) -> bool {
        self.is_done
    }

    /// The best `n_return` choices, best first; fewer only where a search that was cut off has no
    /// more. Called once, when the search is done or cut off by the server (`is_cut_off`), which beams
    /// that have not finished then end with.
    pub(crate) fn choices(&mut self, is_cut_off: bool) -> Vec<Choice> {
        let is_cut_off = is_cut_off && !self.is_done;
        let has_groups = self.groups.len() > 1;
        let finish = if is_cut_off { FinishReason::Shutdown } else { FinishReason::Length };
        let mut all = Finished::new(0);
        for mut group in std::mem::take(&mut self.groups) {
            if !group.is_done && (is_cut_off || has_groups) {
                self.finish_open(&mut group, is_cut_off, finish);
            }
            all.merge(group.finished);
        }
        let n = self.params.n_return;
        let mut choices = all.into_choices(n);
        if !is_cut_off {
            // As in transformers, a slot that no text came to is an empty text.
            choices.resize_with(n, || Finished::missing(NEVER));
        }
        choices
    }

    /// Counts a group's beams as finished.
    fn finish_open(&self, group: &mut Group, is_cut_off: bool, finish: FinishReason) {
        let penalty = self.penalty(self.n_new().max(1));
        let mut last = None;
        for beam in &group.beams {
            // Copies stand beside each other, or a long way behind.
            let is_copy = last.replace(beam.row) == Some(beam.row) || beam.score <= NEVER / 2.0;
            if let Some(row) = self.rows.get(beam.row).filter(|_| !(is_cut_off && is_copy)) {
                let ids = row.ids.get(self.rules.n_prompt..).unwrap_or_default();
                let score = f64::from(beam.score) / penalty;
                group.finished.add(score, ids, None, End::of(finish));
            }
        }
    }

    /// All rows have equally many ids.
    fn n_ids(&self) -> usize {
        self.rows.first().map_or(0, |row| row.ids.len())
    }

    fn n_new(&self) -> usize {
        self.n_ids().saturating_sub(self.rules.n_prompt)
    }

    /// What the score of a text of `n_new` tokens is divided by.
    fn penalty(&self, n_new: usize) -> f64 {
        (n_new as f64).powf(self.params.length_penalty)
    }
}

#[cfg(test)]
mod tests;
