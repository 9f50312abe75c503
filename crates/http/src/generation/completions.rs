//! `/v1/completions`: OpenAI's text completions.

mod print;
mod request;

pub(crate) use print::{Completed, CompletionChunks, completed, stop_reason};
pub(crate) use request::{COMPLETION, CompletionRequest};
