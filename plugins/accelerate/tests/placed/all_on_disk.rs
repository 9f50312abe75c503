//! Everything that the parity suite checks, with all of every model left on the disk.
#![allow(clippy::unwrap_used, reason = "clippy's exception for tests leaves out their helpers")]

use std::path::Path;

use drivetrain_accelerate::Accelerate;

/// The engine under test, and the options by which it computes in f32.
const ENGINE: Accelerate = Accelerate;
const EXACT: &[(&str, &str)] = &[("dtype", "fp32")];

/// Nothing that can be read when it is needed is kept.
fn options_of(_: &Path) -> Vec<(&'static str, String)> {
    vec![("device_map", "disk".to_owned())]
}

#[path = "../parity/adapters.rs"]
mod adapters;
#[path = "../parity/behaviour.rs"]
mod behaviour;
#[path = "../parity/default_model.rs"]
mod default_model;
#[path = "../parity/fixtures.rs"]
mod fixtures;
#[path = "../parity/gguf.rs"]
mod gguf;
#[path = "../parity/support.rs"]
mod support;
#[path = "../parity/variants.rs"]
mod variants;
