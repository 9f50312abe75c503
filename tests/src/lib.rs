//! What the cross-crate tests share: the workspace's files, recorded outputs, a running server.
#![forbid(unsafe_code)]

mod files;
mod hub;
mod python;
mod random;
mod random_model;
mod reference;
mod s3;
mod sagemaker;
mod server;
mod stream;
mod wire;
mod workspace;

pub use files::{archive, copy_dir, copy_model, edit_json, write};
pub use hub::{Hub, Repository};
pub use python::{cache, python, scripts, skip};
pub use random::Random;
pub use random_model::RandomLlama;
pub use reference::{Reference, largest_difference};
pub use s3::{CREDENTIALS, S3};
pub use sagemaker::LocalSagemaker;
pub use server::{Exit, Reply, Server, ServerOptions, request};
pub use stream::Stream;
pub use wire::{Answered, Asked, Fault, Rule, Wire};
pub use workspace::{binary, fixture, library, model, plugins, root, source_files};
