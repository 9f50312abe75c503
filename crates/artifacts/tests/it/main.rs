//! The crate against the fixtures that transformers wrote.

// Helpers of tests fail the test, too.
#![allow(clippy::unwrap_used)]

mod fixtures;
mod gguf;
mod gguf_writer;
mod mutations;
mod packed;
mod tokenizer;
mod tokenizer_files;
mod torch;
mod weights;
