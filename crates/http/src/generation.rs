//! Generated text on the wire: LMI's schema and its dialects on DJL's routes, OpenAI's completions
//! and chat completions under `/v1`.
//!
//! ```text
//! body -> fields (schema) -> GenerateRequest -> Running -> whole document
//!                                                       -> Printer -> frames, as the client reads
//! ```
//!
//! A protocol is a table of fields, a reader, and a printer of documents and of frames. The first
//! event is awaited before the status line goes out, so that what goes wrong before it has a
//! status; later on the last frame says it.

mod chat;
mod completions;
#[cfg(test)]
pub(crate) mod examples;
mod format;
mod glance;
mod invoke;
mod lmi;
mod numbers;
pub(crate) mod openai;
mod running;
pub(crate) mod schema;
mod stream;
mod text;
pub(crate) mod v1;

pub(crate) use chat::{CHAT, ChatAnswer};
pub(crate) use completions::{COMPLETION, Completed};
pub(crate) use invoke::answer;
pub(crate) use lmi::{LmiReply, PARAMETERS, REQUEST};

#[cfg(test)]
mod tests;
