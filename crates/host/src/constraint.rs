//! What a text has to follow, a token at a time: JSON schemas, regular expressions, choices.

use drivetrain_engine::{EngineError, TokenId};

/// Where one choice stands in its grammar.
#[derive(Clone, Debug)]
pub(crate) struct Constraint {}

impl Constraint {
    /// Begins to compute, on another thread, which tokens may come next; called as soon as that is
    /// settled, so that it is done while the engine computes.
    pub(crate) fn begin(&mut self) {}

    /// Sets the scores of tokens that may not come next to minus infinity; waits for [`Self::begin`].
    ///
    /// # Errors
    /// The grammar was stopped for its cost.
    pub(crate) fn apply(&mut self, scores: &mut [f32]) -> Result<(), EngineError> {
        let _ = scores;
        Ok(())
    }

    /// Goes past `id`; `true` if the text is complete and nothing may follow.
    ///
    /// # Errors
    /// The token may not come here.
    pub(crate) fn advance(&mut self, id: TokenId) -> Result<bool, EngineError> {
        let _ = id;
        Ok(false)
    }
}
