//! The cross-crate tests, one binary.
#![forbid(unsafe_code)]

mod article;
mod contract;
mod drain;
mod engines;
mod layers;
mod tasks;
mod tidy;
