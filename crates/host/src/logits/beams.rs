//! Beam search.

use super::Sampling;

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
