//! Everything that the parity suite checks, over three devices, made of the CPU's memory and threads.
#![allow(clippy::unwrap_used, reason = "clippy's exception for tests leaves out their helpers")]

use std::path::Path;

use drivetrain_accelerate::Accelerate;
use serde_json::json;

/// The engine under test, and the options by which it computes in f32.
const ENGINE: Accelerate = Accelerate;
const EXACT: &[(&str, &str)] = &[("dtype", "fp32")];

/// Layers take turns, each second of four in the CPU's memory; the head is on the last device.
fn options_of(dir: &Path) -> Vec<(&'static str, String)> {
    let places = [json!(0), json!("cpu"), json!(1), json!(2)];
    let turn = |number: usize| places.get(number % places.len()).cloned();
    let map = maps::map_of(dir, &json!(0), &[("head", json!(2))], turn);
    vec![("device_map", map), ("virtual_devices", "3".to_owned())]
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
mod pipelining;
#[path = "../parity/support.rs"]
mod support;
#[path = "../parity/variants.rs"]
mod variants;
