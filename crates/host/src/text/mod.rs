//! Tokens as text: pieces of text as they become certain, and stop strings.

mod held;
mod stops;

pub(crate) use held::{Held, KeepStop};
pub(crate) use stops::StopWatch;
