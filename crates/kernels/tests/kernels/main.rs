//! Every kernel against plain loops, for every instruction set that the machine has.
//!
//! Tests and references lie beside what they test, and are no part of the library: it would take minutes
//! to compile a second time.
#![allow(clippy::unwrap_used, reason = "a test ends where its ground gives way")]

use drivetrain_kernels::{FORCE_VARIABLE, Isa};

mod isa;
mod random;

/// The instruction sets to test: those of the machine, or up to what the variable says.
fn available() -> impl Iterator<Item = Isa> {
    Isa::choose(std::env::var(FORCE_VARIABLE).ok().as_deref()).unwrap().and_below()
}

#[path = "../../src/attention/tests.rs"]
mod attention;
#[path = "../../src/blocks/tests.rs"]
mod blocks;
#[path = "../../src/embedding/tests.rs"]
mod embedding;
#[path = "../../src/matmul/tests.rs"]
mod matmul;
#[path = "../../src/norm/tests.rs"]
mod norm;
#[path = "../../src/pool/tests.rs"]
mod pool;
#[path = "../../src/ranks/tests.rs"]
mod ranks;
#[path = "../../src/rotary/tests.rs"]
mod rotary;
#[path = "../../src/softmax/tests.rs"]
mod softmax;
#[path = "../../src/vector/tests.rs"]
mod vector;

#[path = "../../src/attention/reference.rs"]
mod attention_reference;
#[path = "../../src/blocks/reference.rs"]
mod blocks_reference;
#[path = "../../src/matmul/reference.rs"]
mod matmul_reference;
#[path = "../../src/norm/reference.rs"]
mod norm_reference;
