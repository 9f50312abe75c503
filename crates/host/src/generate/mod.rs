//! Generated text, as it comes or at once.
//!
//! [`ModelHandle::generate`](crate::ModelHandle::generate) gives a [`Generation`] as soon as the
//! request is in the model's queue; [`Generation::next`] waits for what comes. Whoever answers over
//! HTTP waits for the first event before the status line goes out, so that an error may still
//! change it. Dropping the generation cancels the work at the next step. A reader that is slow makes
//! its sequences rest, and nobody else.

mod answers;
mod chat;
mod event;
mod pipe;
mod request;
mod run;

pub use event::{Completion, Event, PromptInfo, StopCause, TokenDetail, TopToken};
pub use request::{Chat, GenerateRequest, Naming, Prompt};
pub use run::Generation;

pub(crate) use answers::{Answering, Answers, Plan};
pub(crate) use chat::ChatRenderer;
pub(crate) use pipe::Pipe;
pub(crate) use run::Term;

#[cfg(test)]
mod tests;
