//! The crate against the fixtures that transformers wrote.

mod fixtures;
mod weights;
