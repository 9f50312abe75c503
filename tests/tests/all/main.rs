//! The cross-crate tests, one binary.
#![forbid(unsafe_code)]

mod layers;
mod tidy;
