//! Drivetrain's HTTP front ends: SageMaker's container contract and DJL Serving's APIs over a host.
//!
//! One module a protocol, each thin: parse, call the host, print. [`router`] is everything that
//! answers requests, and can be driven without a socket; [`Server`] puts it on listeners and takes
//! it down again without losing a request.

#![forbid(unsafe_code)]

mod accept;
mod adapters;
mod answer;
mod app;
mod body;
mod bounded;
mod call;
mod content_type;
mod documents;
mod error;
mod failure;
mod fields;
mod generation;
mod host_error;
mod inference;
mod input;
mod items;
mod json;
mod management;
mod metrics;
mod model_path;
mod offload;
mod ping;
mod predictions;
mod raw;
mod registration;
mod reply;
mod request_id;
mod respond;
mod routes;
mod sagemaker;
mod server;
mod urlencoded;
mod wire;

pub use error::HttpError;
pub use metrics::install_metrics;
pub use routes::router;
pub use server::{BoundAddress, Limits, Server, serve};
