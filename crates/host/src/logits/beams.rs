//! Beam search.

use drivetrain_engine::{EngineError, TokenId};

use super::{Rules, Sampling, Scratch};
use crate::scheduler::Choice;
use crate::text::StopWatch;

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
    /// Candidates are drawn instead of taking the best.
    pub(crate) sampling: Option<Sampling>,
    /// What draws follow from.
    pub(crate) seed: u64,
}

/// A beam search under way. It knows the beams' ids and scores, and nothing of sequences or caches:
/// it is given a row of logits for each of its rows, and says which rows go on with which token.
///
/// Beams that have the same ids (before the first free choice they all have) share a row.
#[derive(Clone, Debug)]
pub(crate) struct BeamSearch {}

impl BeamSearch {
    /// A search that starts after `prompt`, the decoder's ids so far, with one row.
    pub(crate) fn new(
        params: BeamParams,
        rules: Rules,
        prompt: &[TokenId],
        stops: Option<&StopWatch>,
    ) -> Self {
        let _ = (params, rules, prompt, stops);
        Self {}
    }

    /// Most rows there may be at once: the number of beams.
    pub(crate) fn max_rows(&self) -> usize {
        1
    }

    /// Rows now; 1 before the first step.
    pub(crate) fn n_rows(&self) -> usize {
        1
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
        let _ = (logits, scratch);
        Ok(())
    }

    /// The rows after the last step: each one's parent among the rows before it, and its new token.
    pub(crate) fn next_rows(&self) -> &[(usize, TokenId)] {
        &[]
    }

    /// Whether the search has ended; then the rows are of no use any more.
    pub(crate) fn is_done(&self) -> bool {
        true
    }

    /// The best `n_return` choices, best first. Called once, when the search is done or cut off by
    /// the server (`is_cut_off`), which beams that have not finished then end with.
    pub(crate) fn choices(&mut self, is_cut_off: bool) -> Vec<Choice> {
        let _ = is_cut_off;
        Vec::new()
    }
}
