//! The cross-crate tests, one binary.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test ends where its ground gives way")]

mod adapters;
mod article;
mod bad_input;
mod batching;
mod clients;
mod contract;
mod crowd;
mod drain;
mod engines;
mod explosions;
mod generation;
mod gguf;
mod heads;
mod inspect;
mod layers;
mod minilm;
mod mpi;
mod offload;
mod plan;
mod python;
mod refusals;
mod registration;
mod sagemaker;
mod sources;
mod tasks;
mod tidy;
