//! The seam between Drivetrain's host and its engines.
//!
//! An engine author implements [`Engine`], and [`TokenModel`] or [`RequestModel`], with ordinary
//! Rust types.

mod batch;
mod error;
mod model;
mod services;

pub use batch::{Batch, Outputs, Segment, SegmentView, SeqId, TokenId, Wanted, pool};
pub use error::{EngineError, ErrorKind};
pub use model::{
    DefaultDecoderInput, Engine, EngineInfo, LoadRequest, LoadedModel, ModelKind, Options, Reply,
    Request, RequestModel, RequestModelInfo, TokenModel, TokenModelInfo,
};
pub use services::{HostServices, LogLevel, MetricKind, Services};
