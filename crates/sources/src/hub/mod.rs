//! Models of the Hugging Face hub, in the cache that its Python client uses, too.

mod api;
mod cache;
mod select;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use futures::{StreamExt, TryStreamExt};

use crate::download::{self, Fault, Object};
use crate::error::SourceError;
use crate::http::HttpFile;
use crate::options::FetchOptions;
use crate::source::HubId;
use crate::watch::Counters;
use crate::{names, snapshot};
use api::{Api, Description};
use cache::Repository;

/// The revision that is meant where none is named.
const DEFAULT_REVISION: &str = "main";
/// How often a model that changes meanwhile is looked up.
const MAX_LOOKUPS: u32 = 3;
/// Files that are asked about at once.
const LOOKUPS_AT_ONCE: usize = 8;

/// The directory of a model's files, brought there if need be.
pub(crate) async fn fetch(
    id: &HubId,
    options: &FetchOptions,
    counters: &Arc<Counters>,
) -> Result<PathBuf, SourceError> {
    let repository = Repository::new(&options.hub.cache, id.id());
    let revision = id.revision().unwrap_or(DEFAULT_REVISION);
    if options.offline {
        return repository.complete(revision).ok_or_else(|| SourceError::Offline {
            place: id.to_string(),
            reason: format!(
                "is not complete in {}, and the network is off limits (HF_HUB_OFFLINE, \
                 SERVING_OFFLINE): fill the cache first, or allow the network",
                repository.dir().display()
            ),
        });
    }
    // A commit never changes.
    if cache::is_commit(revision)
        && let Some(there) = repository.complete(revision)
    {
        return Ok(there);
    }
    let api = Api::new(id, revision, options)?;
    for _ in 0..MAX_LOOKUPS {
        match once(&api, &repository, options, counters).await {
            Ok(there) => return Ok(there),
            Err(Fault::Changed(file)) => {
                tracing::warn!(model = %id, file, "changed while it was downloaded: looking again");
            }
            Err(Fault::Source(error)) => return older(error, &repository, revision, id),
        }
    }
    Err(SourceError::Changing { place: id.to_string(), n_times: MAX_LOOKUPS })
}

/// What is in the cache, where the hub can't be reached.
fn older(
    error: SourceError,
    repository: &Repository,
    revision: &str,
    id: &HubId,
) -> Result<PathBuf, SourceError> {
    let there =
        Some(&error).filter(|e| e.is_unreachable()).and_then(|_| repository.complete(revision));
    let Some(there) = there else { return Err(error) };
    tracing::warn!(model = %id, %error, path = %there.display(),
        "the hub can't be reached: what the cache has is used");
    Ok(there)
}

async fn once(
    api: &Api,
    repository: &Repository,
    options: &FetchOptions,
    counters: &Arc<Counters>,
) -> Result<PathBuf, Fault> {
    let place = api.place();
    let found = api.revision().await?;
    let chosen = select::choose(&place, &found.files)?;
    names::check(&place, chosen.iter().map(String::as_str))?;
    let limit = options.limits.max_files;
    if chosen.len() as u64 > limit {
        let found = chosen.len() as u64;
        return Err(SourceError::TooLarge { place, found, unit: "files", limit }.into());
    }
    let dir = repository.snapshot(&found.commit);
    let missing: Vec<String> =
        chosen.into_iter().filter(|name| !dir.join(name).is_file()).collect();
    let described: Vec<(String, Description)> = futures::stream::iter(missing)
        .map(|name| async {
            let described = api.describe(&found.commit, &name).await?;
            Ok::<_, SourceError>((name, described))
        })
        .buffered(LOOKUPS_AT_ONCE)
        .try_collect()
        .await?;
    let total = described.iter().map(|(_, file)| file.size).fold(0, u64::saturating_add);
    if total > options.limits.max_bytes {
        let limit = options.limits.max_bytes;
        return Err(SourceError::TooLarge { place, found: total, unit: "bytes", limit }.into());
    }
    let objects: Vec<Object> = described
        .iter()
        .map(|(name, file)| object(api, repository, &found.commit, name, file))
        .collect();
    let links: Vec<(String, PathBuf)> =
        objects.iter().map(|object| (object.name.clone(), object.blob.clone())).collect();
    if !objects.is_empty() {
        tracing::info!(model = place, commit = found.commit, files = objects.len(), bytes = total,
            into = %dir.display(), "downloading from the hub");
    }
    download::all(&place, objects, &options.limits, counters).await?;
    snapshot::link(&dir, &links)?;
    repository.set_ref(api.revision_name(), &found.commit);
    snapshot::clean(&repository.blobs(), |etag| repository.lock(etag));
    Ok(dir)
}

fn object(
    api: &Api,
    repository: &Repository,
    commit: &str,
    name: &str,
    file: &Description,
) -> Object {
    let blob = repository.blobs().join(&file.etag);
    let remote = HttpFile {
        client: api.client(),
        url: api.file_url(commit, name),
        size: file.size,
        etag: file.etag.clone(),
        content_etag: Mutex::new(None),
        explain: api.explain(Some(name)),
    };
    Object {
        name: name.to_owned(),
        size: file.size,
        etag: file.etag.clone(),
        sha256: file.is_sha256.then(|| file.etag.clone()),
        begun: Some(download::with_suffix(&blob, ".incomplete")),
        blob,
        lock: repository.lock(&file.etag),
        remote: Arc::new(remote),
    }
}
