//! The engine against transformers: recorded fixtures, unusual configs, the default model.
#![allow(clippy::unwrap_used, reason = "clippy's exception for tests leaves out their helpers")]

use std::path::Path;

use drivetrain_accelerate::Accelerate;

/// The engine under test, and the options by which it computes in f32.
const ENGINE: Accelerate = Accelerate;
const EXACT: &[(&str, &str)] = &[("dtype", "fp32")];

/// Further options for the model in this directory.
fn options_of(_: &Path) -> Vec<(&'static str, String)> {
    Vec::new()
}

mod adapters;
mod behaviour;
mod default_model;
mod fixtures;
mod forms;
mod gguf;
#[path = "../placed/maps.rs"]
mod maps;
mod measures;
mod packed;
mod refusals;
mod support;
mod variants;
