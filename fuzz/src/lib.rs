//! Fuzz targets: whatever bytes a file that comes from outside holds, reading it ends in an error or
//! in a result that can be used, in bounded time and memory, and without a panic.
//!
//! - A target is a function of bytes, the seeds that inputs are made of, and a [`Bounds`].
//! - `tests/targets.rs` replays seeds and `tests/__fuzz__/TARGET/{corpus,crashes}` and runs random
//!   inputs; `cargo bolero test -p drivetrain-fuzz TARGET` goes on from there with libFuzzer.
//! - What was found and mended is kept in a corpus, so that it is replayed ever after.

#![forbid(unsafe_code)]

mod edit;
mod targets;
mod watch;

pub use edit::{Edit, apply};
pub use targets::{TARGETS, Target, target};
pub use watch::{Bounds, Spent};
