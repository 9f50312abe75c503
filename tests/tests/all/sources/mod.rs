//! Models that are elsewhere: the hub, S3, a web server, and what can go wrong on the way.

mod hub;
mod python_client;
mod resume;
mod s3;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use drivetrain_sources::{
    FetchOptions, Hidden, HubOptions, Limits, ModelSource, S3Options, SourceError, Stop, Unwatched,
    Watch, fetch,
};
use drivetrain_tests::{CREDENTIALS, Random};

/// Options that put everything under `folder`, with pieces small enough for small files.
fn options(folder: &Path, endpoint: &str) -> FetchOptions {
    FetchOptions {
        hub: HubOptions { endpoint: endpoint.to_owned(), cache: folder.join("hub"), token: None },
        s3: S3Options {
            variables: CREDENTIALS
                .iter()
                .copied()
                .chain([("AWS_ENDPOINT_URL", endpoint)])
                .map(|(name, value)| (name.to_owned(), Hidden::new(value)))
                .collect(),
            home: None,
        },
        download_dir: folder.join("downloads"),
        offline: false,
        limits: Limits { piece_bytes: 256 << 10, ..Limits::default() },
    }
}

fn bring(text: &str, options: &FetchOptions) -> Result<PathBuf, SourceError> {
    fetch(&ModelSource::parse(text).unwrap(), None, options, &Unwatched)
}

/// An error with its causes.
fn chain(error: &SourceError) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

fn refused(text: &str, options: &FetchOptions) -> String {
    let error = bring(text, options).expect_err(text);
    let text = chain(&error);
    assert!(!text.contains("verysecret"), "{text}");
    text
}

/// Bytes without a pattern that a mistake in order could hide in.
fn noise(n_bytes: usize) -> Vec<u8> {
    let mut random = Random::new(20_261_126);
    let mut bytes = Vec::with_capacity(n_bytes + 8);
    while bytes.len() < n_bytes {
        bytes.extend_from_slice(&random.number().to_le_bytes());
    }
    bytes.truncate(n_bytes);
    bytes
}

/// Remembers what was reported, and stops when told to.
struct Recorder {
    reports: Mutex<Vec<(String, u64, u64)>>,
    /// The number of bytes at which it wants no more.
    enough: u64,
    stop: Stop,
}

impl Recorder {
    fn new(enough: u64, stop: Stop) -> Self {
        Self { reports: Mutex::default(), enough, stop }
    }
}

impl Watch for Recorder {
    fn progress(&self, stage: &str, done: u64, total: u64) {
        self.reports.lock().unwrap().push((stage.to_owned(), done, total));
    }

    fn stop(&self) -> Option<Stop> {
        let reports = self.reports.lock().unwrap();
        reports.last().is_some_and(|(_, done, _)| *done >= self.enough).then_some(self.stop)
    }
}

const LATE: Stop = Stop::Late(Duration::from_secs(7));
