//! Tokens as text: pieces of text as they become certain, and stop strings.

mod stops;

pub(crate) use stops::StopWatch;
