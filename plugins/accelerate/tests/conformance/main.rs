//! The conformance suite, on a model of each kind, across the ABI: in a process of its own and one
//! after the other, since it looks at how much the process grows.
#![allow(clippy::unwrap_used, reason = "clippy's exception for tests leaves out their helpers")]

use drivetrain_accelerate::Accelerate;

/// The engine under test.
const ENGINE: Accelerate = Accelerate;

mod kinds;
