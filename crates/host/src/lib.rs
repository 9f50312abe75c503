//! Finds and loads engines, owns models and their workers, schedules, decodes, runs tasks.

mod error;
mod logits;
mod raw;
mod tasks;

pub use error::HostError;
pub use raw::{RawFrames, RawHead, RawReply, RawRequest};
pub use tasks::{Features, FinishReason, Generated, Task, TaskReply, TaskRequest, UnknownTask};
