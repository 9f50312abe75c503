//! Finds and loads engines, owns models and their workers, schedules, decodes, runs tasks.
//!
//! A [`Host`] has an [`EngineRegistry`] and models. [`Host::load`] registers a model at once and
//! gives a [`ModelHandle`]; the model loads on a thread of its own, which then drives it. A front
//! end asks [`ModelHandle::submit`] (models that the host schedules: a [`Task`] on texts) or
//! [`ModelHandle::submit_raw`] (models that answer whole requests themselves), and drops the future
//! to cancel. Nothing here knows a route, a status code or a wire format.
//!
//! ```text
//! submit -> task: text to tokens, parameters to rules -> bounded inbox -> model's thread:
//!           scheduler -> engine's forward pass -> next token ... -> outcomes -> task: text
//! ```

#![forbid(unsafe_code)]

mod activity;
mod adapters;
mod code_adapters;
mod constraint;
mod error;
#[cfg(test)]
mod fake;
mod generate;
mod host;
mod logits;
mod memory;
pub mod metrics;
mod model;
mod raw;
mod registry;
mod scheduler;
mod sources;
mod tasks;
mod text;

pub use adapters::{AdapterChange, AdapterChoice, AdapterInfo};
pub use code_adapters::{CodeAnswer, CodeChange};
pub use drivetrain_engine::{EngineError, ErrorKind, HeadKind, ModelKind, OpenEngineError};
pub use drivetrain_sources::{SourceError, Stop, Watch};
pub use error::HostError;
pub use generate::{
    Chat, Completion, Event, GenerateRequest, Generation, Naming, Prompt, PromptInfo, StopCause,
    TokenDetail, TopToken,
};
pub use host::Host;
pub use model::{ModelHandle, ModelStatus, Planned};
pub use raw::{RawFrames, RawHead, RawReply, RawRequest};
pub use registry::{EngineRegistry, FoundEngine, Trial, plugin_dirs};
pub use sources::locate;
pub use tasks::{
    Embedding, Features, FinishReason, Generated, Input, Rank, Suited, Task, TaskReply,
    TaskRequest, UnknownTask, suited,
};
