//! What the cross-crate tests share: the workspace's files and a running server.
#![forbid(unsafe_code)]

mod server;
mod workspace;

pub use server::{Exit, Reply, Server, ServerOptions};
pub use workspace::{binary, fixture, model, plugins, root, source_files};
