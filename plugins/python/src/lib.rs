//! The engine that runs a model's own `model.py`, as DJL Serving's Python engine does.
//!
//! Each worker is a process of its own: an interpreter with the package `djl_python`, which is
//! embedded in this library and unpacked into a private folder when a model is loaded. A worker talks
//! over the socket that is its standard input; what it prints goes to the log. One that ends, hangs
//! or writes what it should not is replaced, and the requests it had are told.
#![forbid(unsafe_code)]

mod devices;
mod engine;
mod entry;
mod error;
mod everywhere;
mod follow;
mod interpreter;
mod model;
mod output;
mod package;
mod piece;
mod pool;
mod process;
mod published;
mod settings;
mod supervisor;
mod wire;
mod worker;

pub use engine::Python;

drivetrain_engine::export_engine!(Python);
