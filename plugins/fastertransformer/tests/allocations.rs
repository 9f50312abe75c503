//! Warm steps take no memory. The process is counted as a whole, workers included, so nothing else may
//! run in it: this test does without the usual harness and its threads.
#![allow(clippy::unwrap_used, reason = "a test ends where its ground gives way")]

use alloc_tracker::Allocator;
use drivetrain_fastertransformer::FasterTransformer;

mod warm;

#[global_allocator]
static ALLOCATOR: Allocator<std::alloc::System> = Allocator::system();

/// The engine under test.
const ENGINE: FasterTransformer = FasterTransformer;

fn main() {
    for (name, option) in [
        ("gpt2", ("dtype", "fp32")),
        ("llama_gqa", ("quantize", "int8")),
        ("gguf_llama/model-Q4_K_M.gguf", ("dtype", "auto")),
        ("gemma3", ("dtype", "bf16")),
        ("variants/llama_dynamic", ("dtype", "auto")),
        ("variants/llama_longrope", ("dtype", "auto")),
        ("mixtral", ("dtype", "auto")),
        ("t5", ("dtype", "auto")),
        ("bart", ("kv_cache_dtype", "fp16")),
        ("bert", ("dtype", "auto")),
        ("deberta_v2", ("dtype", "auto")),
    ] {
        warm::check(name, &[option]);
    }
}
