//! The engine against transformers at several degrees: the same recorded models as the accelerate
//! engine's, in the same files, and what is this engine's own.
#![allow(clippy::unwrap_used, reason = "clippy's exception for tests leaves out their helpers")]

use std::path::Path;

use drivetrain_deepspeed::DeepSpeed;

/// The engine under test, and the options by which it computes in f32.
const ENGINE: DeepSpeed = DeepSpeed;
const EXACT: &[(&str, &str)] = &[("dtype", "fp32")];

/// Further options for the model in this directory.
fn options_of(_: &Path) -> Vec<(&'static str, String)> {
    let mut options = vec![("tensor_parallel_degree", degrees::own().to_string())];
    if degrees::is_mpi() {
        options.push(("mpi_mode", "true".to_owned()));
    }
    options
}

#[path = "../../../accelerate/tests/parity/adapters.rs"]
mod adapters;
#[path = "../../../accelerate/tests/parity/behaviour.rs"]
mod behaviour;
#[path = "../../../accelerate/tests/parity/default_model.rs"]
mod default_model;
#[path = "../../../accelerate/tests/parity/fixtures.rs"]
mod fixtures;
#[path = "../../../accelerate/tests/parity/gguf.rs"]
mod gguf;
#[path = "../../../accelerate/tests/parity/measures.rs"]
mod measures;
#[path = "../../../accelerate/tests/parity/packed.rs"]
mod packed;
#[path = "../../../accelerate/tests/parity/refusals.rs"]
mod refusals;
#[path = "../../../accelerate/tests/parity/support.rs"]
mod support;
#[path = "../../../accelerate/tests/parity/variants.rs"]
mod variants;

mod degrees;
mod mpi;
mod own;
