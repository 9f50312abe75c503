//! Everything that the parity suite checks, with every other layer left on the disk.
#![allow(clippy::unwrap_used, reason = "clippy's exception for tests leaves out their helpers")]

use std::path::Path;

use drivetrain_accelerate::Accelerate;
use serde_json::json;

/// The engine under test, and the options by which it computes in f32.
const ENGINE: Accelerate = Accelerate;
const EXACT: &[(&str, &str)] = &[("dtype", "fp32")];

/// Layers 1, 3, 5, ... stay in their file, and the head where it is not the token table.
fn options_of(dir: &Path) -> Vec<(&'static str, String)> {
    let odd = |number: usize| (number % 2 == 1).then(|| json!("disk"));
    vec![("device_map", maps::map_of(dir, &json!("cpu"), &[("head", json!("disk"))], odd))]
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
mod maps;
#[path = "../parity/support.rs"]
mod support;
#[path = "../parity/variants.rs"]
mod variants;
