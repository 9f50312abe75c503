//! What a text has to follow, a token at a time: JSON schemas, regular expressions, choices.

use drivetrain_engine::{EngineError, TokenId};
use serde_json::Value;

use crate::HostError;

/// What a text has to follow, as a request says it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Grammar {
    /// Some JSON object.
    JsonObject,
    /// JSON that keeps to a schema.
    JsonSchema(Value),
    /// A regular expression, over the whole text.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in llguidance's form of Lark.
    Lark(String),
}

/// What makes constraints for one model: its vocabulary as bytes, worked out when the first request
/// needs it.
#[derive(Debug, Default)]
pub(crate) struct Grammars {}

impl Grammars {
    /// A constraint to follow `grammar` from the first new token.
    ///
    /// # Errors
    /// `BadRequest` if the grammar is wrong or too large; `field` is what the client calls it.
    pub(crate) fn constraint(
        &self,
        grammar: &Grammar,
        field: &str,
    ) -> Result<Constraint, HostError> {
        let _ = (grammar, field);
        Err(HostError::bad_request("no grammars"))
    }
}

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
