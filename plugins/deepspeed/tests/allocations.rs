//! Warm steps of several ranks take no memory: see the fastertransformer engine's test of the same name.
#![allow(clippy::unwrap_used, reason = "a test ends where its ground gives way")]

use alloc_tracker::Allocator;
use drivetrain_deepspeed::DeepSpeed;

#[path = "../../fastertransformer/tests/warm/mod.rs"]
mod warm;

#[global_allocator]
static ALLOCATOR: Allocator<std::alloc::System> = Allocator::system();

/// The engine under test.
const ENGINE: DeepSpeed = DeepSpeed;

fn main() {
    for name in [
        "llama_gqa",
        "gguf_llama/model-Q4_K_M.gguf",
        "mixtral",
        "gptj",
        "bart",
        "bert",
        "deberta_v2",
    ] {
        warm::check(name, &[("tensor_parallel_degree", "3")]);
    }
}
