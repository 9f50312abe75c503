//! What the cross-crate tests share: the workspace's files, recorded outputs, a running server.
#![forbid(unsafe_code)]

mod files;
mod random;
mod reference;
mod server;
mod stream;
mod workspace;

pub use files::{archive, copy_dir, copy_model, edit_json, write};
pub use random::Random;
pub use reference::{Reference, largest_difference};
pub use server::{Exit, Reply, Server, ServerOptions, request};
pub use stream::Stream;
pub use workspace::{binary, fixture, library, model, plugins, root, source_files};
