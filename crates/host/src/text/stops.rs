//! Stop strings.

use std::sync::Arc;

use drivetrain_artifacts::DecodeStream;
use drivetrain_engine::TokenId;

/// Looks for stop strings in the text of one choice.
#[derive(Clone, Debug)]
pub(crate) struct StopWatch {}

impl StopWatch {
    /// Looks for `strings` (none of them empty) in the text that `stream` makes of the new tokens.
    pub(crate) fn new(strings: Arc<[String]>, stream: DecodeStream) -> Self {
        let _ = (strings, stream);
        Self {}
    }

    /// Takes the choice's next token; the place in the list of the stop string that its text now
    /// contains, if there is one.
    pub(crate) fn push(&mut self, id: TokenId) -> Option<usize> {
        let _ = id;
        None
    }
}
