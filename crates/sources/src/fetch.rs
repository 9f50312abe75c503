//! From the name of a model to a path on this machine.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::SourceError;
use crate::options::FetchOptions;
use crate::source::ModelSource;
use crate::watch::{Counters, Stop, Watch};
use crate::{archive, hub, s3};

/// How often the one who waits is told and asked.
const TURN: Duration = Duration::from_millis(100);
/// Threads that a download runs on: enough for TLS at the speed of a fast network.
const MAX_THREADS: usize = 4;
/// How long writes under way may hold up the end.
const GRACE: Duration = Duration::from_secs(5);

/// Brings a model's files here: the directory that holds them, or the archive. Blocks; to be called
/// where waiting is allowed. What is here already is not downloaded again, what is here in part is
/// gone on with, and several processes that want the same wait for each other.
///
/// `revision` is the hub's, where the source does not name one itself.
///
/// # Errors
/// The source can't be reached, refuses, holds what is no model or more than is allowed, or `watch`
/// says to stop. What came until then is kept for the next try.
pub fn fetch(
    source: &ModelSource,
    revision: Option<&str>,
    options: &FetchOptions,
    watch: &dyn Watch,
) -> Result<PathBuf, SourceError> {
    if let ModelSource::Local(path) = source {
        return Ok(path.clone());
    }
    let n_threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(n_threads)
        .thread_name("download")
        .enable_all()
        .build()
        .map_err(SourceError::io(&options.download_dir, "start threads to download to"))?;
    let result = runtime.block_on(watched(source, revision, options, watch));
    runtime.shutdown_timeout(GRACE);
    result
}

async fn watched(
    source: &ModelSource,
    revision: Option<&str>,
    options: &FetchOptions,
    watch: &dyn Watch,
) -> Result<PathBuf, SourceError> {
    let counters = Arc::new(Counters::new());
    let work = async {
        match source {
            ModelSource::Local(path) => Ok(path.clone()),
            ModelSource::Hub(id) => {
                let id = id.clone().at(revision)?;
                hub::fetch(&id, options, &counters).await
            }
            ModelSource::S3(location) => s3::fetch(location, options, &counters).await,
            ModelSource::Http(location) => archive::fetch(location, options, &counters).await,
        }
    };
    tokio::pin!(work);
    let mut turns = tokio::time::interval(TURN);
    loop {
        tokio::select! {
            biased;
            result = &mut work => return result,
            _ = turns.tick() => {}
        }
        counters.report(watch);
        let place = || source.to_string();
        match watch.stop() {
            None => {}
            Some(Stop::Cancelled) => return Err(SourceError::Stopped { place: place() }),
            Some(Stop::Late(limit)) => return Err(SourceError::Late { place: place(), limit }),
        }
    }
}
