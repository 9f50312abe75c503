//! `drivetrain sagemaker-local`: SageMaker's control plane and runtime on one port of this machine.
//!
//! An endpoint is made of containers, and a container is a `drivetrain serve` of its own process,
//! started, asked and stopped as SageMaker does it with an image: the port and the environment it is
//! given, how long it may take to answer `/ping` and `/invocations`, how it is told to end. Models,
//! configurations and endpoints live in memory and end with the process.
//!
//! `server` listens, `signature` checks who asks, `control` answers `X-Amz-Target` calls, `runtime`
//! answers invocations, `endpoint` owns the containers. Requests come from outside: bodies are bounded
//! before they are read, and names stay inside the directories they belong to.
#![forbid(unsafe_code)]

mod control;
mod endpoint;
mod error;
mod fault;
mod names;
mod options;
mod records;
mod reply;
mod runtime;
mod server;
mod service;
mod signature;

pub use error::LocalError;
pub use options::{Credentials, Limits, Options};
pub use server::serve;
