//! Device maps against Accelerate's, against a transcription of its rules, and against what must hold.
#![allow(clippy::unwrap_used, reason = "clippy's exception for tests leaves out their helpers")]

mod accelerate;
mod golden;
mod properties;
mod random;
mod transcription;
mod tree;
