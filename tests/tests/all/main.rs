//! The cross-crate tests, one binary.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test ends where its ground gives way")]

mod article;
mod clients;
mod contract;
mod drain;
mod engines;
mod generation;
mod layers;
mod tasks;
mod tidy;
