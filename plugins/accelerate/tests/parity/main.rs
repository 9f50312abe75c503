//! The engine against transformers: recorded fixtures, unusual configs, the default model.
#![allow(clippy::unwrap_used, reason = "clippy's exception for tests leaves out their helpers")]

mod adapters;
mod behaviour;
mod default_model;
mod fixtures;
mod gguf;
mod refusals;
mod support;
mod variants;
