//! What the programs that compare engines with other libraries agree on: work, and how to ask for it.

#![forbid(unsafe_code)]

pub mod protocol;
mod work;

pub use work::{Task, Work};
