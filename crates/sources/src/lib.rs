//! Brings a model's files onto this machine: from the Hugging Face hub, from S3, from a web server.
//!
//! [`ModelSource::parse`] says what a text stands for, [`fetch`] makes a path of it. This is a crate
//! of its own because engines link `artifacts`, and a network client has no place in what reads
//! files. Nothing here reads the environment: [`FetchOptions`] says where caches and credentials are.
//!
//! What comes from outside is not believed: names stay inside the model, sizes are bounded and the
//! disk's room is looked at before the first byte, every piece is checked against the version that
//! was looked up, a sum is compared where the other side says one, and no message holds a secret.
#![forbid(unsafe_code)]

mod archive;
mod disk;
mod download;
mod error;
mod fetch;
mod http;
mod hub;
mod lock;
mod mirror;
mod names;
mod options;
mod retry;
mod s3;
mod snapshot;
mod source;
mod watch;

pub use error::{Cause, SourceError};
pub use fetch::fetch;
pub use options::{FetchOptions, Hidden, HubOptions, Limits, S3Options};
pub use s3::{read_object, write_object};
pub use source::{HttpLocation, HubId, ModelSource, S3Location};
pub use watch::{Stop, Unwatched, Watch};
