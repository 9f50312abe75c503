//! The seam between Drivetrain's host and its engines.
//!
//! An engine author implements [`Engine`], and [`TokenModel`] or [`RequestModel`], with ordinary
//! Rust types, and exports it with [`export_engine!`]. A host opens the library with
//! [`EngineLibrary::open`] and gets an [`Engine`] again; between the two lies a stable ABI, which
//! neither of them sees.

mod batch;
mod boundary;
mod error;
mod export;
mod library;
mod load_plan;
mod model;
mod services;
mod version;

pub use batch::{AdapterId, Batch, Outputs, Segment, SegmentView, SeqId, TokenId, Wanted, pool};
pub use error::{EngineError, ErrorKind};
pub use library::{EngineLibrary, OpenEngineError, through_abi};
pub use load_plan::{DevicePlan, LoadPlan, PlacedModule, PlannedPart};
pub use model::{
    Call, DefaultDecoderInput, Engine, EngineInfo, HeadKind, LoadRequest, LoadedModel,
    MERGES_ADAPTERS, ModelKind, Options, RELOADS_LOST_MODELS, Reply, Request, RequestModel,
    RequestModelInfo, TokenModel, TokenModelInfo,
};
pub use services::{HostServices, LogLevel, MetricKind, Services};
pub use version::{ABI_VERSION, AbiVersion};

/// What `export_engine!` expands to; no part of the API.
#[doc(hidden)]
pub mod __private {
    pub use crate::export::{EngineCell, Exported, Header, Root, header, module, root};
}
