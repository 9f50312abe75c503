//! What a download is told beside the model's name.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(String);

impl Hidden {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("******")
    }
}

/// Settings of every source.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// The hub's.
    pub hub: HubOptions,
    /// S3's.
    pub s3: S3Options,
    /// Where what is neither the hub's goes: `download/<hash of the address>` under it.
    pub download_dir: PathBuf,
    /// Whether to use what is on the disk and no network.
    pub offline: bool,
    /// Bounds on a download.
    pub limits: Limits,
}

/// Settings of the Hugging Face hub.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// `HF_ENDPOINT`: where the hub is, such as `https://huggingface.co`.
    pub endpoint: String,
    /// `HF_HUB_CACHE`: the cache, which is laid out as the Python client's and shared with it.
    pub cache: PathBuf,
    /// `HF_TOKEN`: the credential, which goes to the endpoint's own host only.
    pub token: Option<Hidden>,
}

/// Settings of S3.
#[derive(Clone, Debug, Default)]
pub struct S3Options {
    /// `AWS_*` variables, names in capitals.
    pub variables: Vec<(String, Hidden)>,
    /// The user's home, in which `.aws` is looked for.
    pub home: Option<PathBuf>,
}

/// Bounds on a download.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once, over all files.
    pub n_connections: usize,
    /// Files at once.
    pub n_files: usize,
    /// Most bytes asked for at once on one connection.
    pub piece_bytes: u64,
    /// Most bytes of one model.
    pub max_bytes: u64,
    /// Most files of one model.
    pub max_files: u64,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// The setting that names the place of the files, for messages.
    pub place_setting: &'static str,
}

impl Default for Limits {
    /// 16 connections, 8 files, pieces of 16 MiB, 4 TiB, 100,000 files, 10 seconds.
    fn default() -> Self {
        Self {
            n_connections: 16,
            n_files: 8,
            piece_bytes: 16 << 20,
            max_bytes: 4 << 40,
            max_files: 100_000,
            connect_timeout: Duration::from_secs(10),
            place_setting: "SERVING_DOWNLOAD_DIR",
        }
    }
}
