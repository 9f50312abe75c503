//! Chat completions: OpenAI's, and LMI's, whose schema is the same.

mod chunks;
mod print;
mod request;
pub(super) mod tools;

pub(crate) use chunks::ChatChunks;
pub(crate) use print::{ChatAnswer, ChatForm, chat_answer};
pub(crate) use request::{CHAT, ChatRequest};
pub(crate) use tools::ToolSyntax;
