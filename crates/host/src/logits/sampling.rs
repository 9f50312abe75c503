//! Drawing tokens.

/// What is done to the scores before a token is drawn, in `generate`'s order; neutral values are
/// `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sampling {
    pub(crate) temperature: Option<f32>,
    pub(crate) top_k: Option<usize>,
    pub(crate) top_p: Option<f32>,
    pub(crate) min_p: Option<f32>,
    pub(crate) typical_p: Option<f32>,
    pub(crate) epsilon_cutoff: Option<f32>,
    pub(crate) eta_cutoff: Option<f32>,
    /// Least tokens that each filter keeps; 1, and more with beams.
    pub(crate) min_kept: usize,
}
