//! Tokens as text: pieces of text as they become certain, and stop strings.

mod held;
mod stops;

pub(crate) use held::Held;
pub(crate) use stops::StopWatch;
