//! Configuration of the server and of its models: `config.properties`, `serving.properties`, the
//! environment, the command line and the defaults, resolved once to typed structs.
//!
//! - [`ServerConfig::resolve`] for the process, [`ModelConfig::resolve`] for one model.
//! - Every value is a [`Sourced`] one: it knows the file and line, the variable or the flag.
//! - What a key allows, defaults to and is also called stands in one table, from which
//!   [`configuration_markdown`] writes the reference.
//!
//! No other part of the host reads environment variables; [`Environment`] is their only door.

#![forbid(unsafe_code)]

mod address;
mod engine;
mod environment;
mod error;
mod keys;
mod layers;
mod model;
mod properties;
mod reference;
mod secret;
mod server;
mod source;
mod spec;
mod values;

pub use address::{Address, Scheme};
pub use engine::{DirLooks, EngineChoice, HandlerKind};
pub use environment::Environment;
pub use error::{ConfigError, Warning};
pub use model::{Batching, MemoryNeeds, ModelConfig, ModelInputs, Options, WorkerBounds, Workers};
pub use properties::{Entry, MAX_FILE_BYTES, Properties};
pub use reference::configuration_markdown;
pub use secret::{Secret, is_secret};
pub use server::{Cors, ErrorRates, Hub, LoadModels, ServerConfig, ServerOverrides, Tls};
pub use source::{Source, Sourced};
pub use spec::{ModelSpec, Origin, default_name};
pub use values::{
    Device, Devices, Dtype, ErrorRate, OutputFormatter, ParallelDegree, RollingBatch, Streaming,
};
