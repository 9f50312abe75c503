//! Models in S3: a prefix is mirrored, an archive is brought as it is.

mod credentials;
mod object;
mod profile;
mod store;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt};

use crate::download::{self, Body, Fault, Object, ReadError, Remote};
use crate::error::{Cause, SourceError};
use crate::http::plain_etag;
use crate::mirror::{Entry, Mirror};
use crate::names;
use crate::options::FetchOptions;
use crate::source::S3Location;
use crate::watch::Counters;
pub use object::{read_object, write_object};
use store::Bucket;

/// How often what changes meanwhile is looked up.
const MAX_LOOKUPS: u32 = 4;
/// Longest that a list may take to go on.
const PATIENCE: Duration = Duration::from_secs(120);

/// The directory of a prefix's objects, or the archive's file, brought here if need be.
pub(crate) async fn fetch(
    location: &S3Location,
    options: &FetchOptions,
    counters: &Arc<Counters>,
) -> Result<PathBuf, SourceError> {
    let place = location.to_string();
    let mirror = Mirror::new(&options.download_dir, &place);
    let path = |dir: PathBuf| match location.is_archive() {
        true => dir.join(last_part(location.key())),
        false => dir,
    };
    let latest = || mirror.latest().map(|(dir, _)| path(dir));
    if options.offline {
        return latest().ok_or_else(|| SourceError::Offline {
            place: place.clone(),
            reason: format!(
                "is not complete in {}, and the network is off limits (SERVING_OFFLINE)",
                mirror.dir().display()
            ),
        });
    }
    let bucket = Arc::new(Bucket::open(location, &options.s3, &options.limits).await?);
    for _ in 0..MAX_LOOKUPS {
        match once(location, &bucket, &mirror, options, counters).await {
            Ok(dir) => return Ok(path(dir)),
            Err(Fault::Changed(file)) => {
                tracing::warn!(
                    model = place,
                    file,
                    "changed while it was downloaded: looking again"
                );
            }
            Err(Fault::Source(error)) => {
                let there = Some(&error).filter(|e| e.is_unreachable()).and_then(|_| latest());
                let Some(there) = there else { return Err(error) };
                tracing::warn!(model = place, %error, path = %there.display(),
                    "S3 can't be reached: what was downloaded before is used");
                return Ok(there);
            }
        }
    }
    Err(SourceError::Changing { place, n_times: MAX_LOOKUPS })
}

async fn once(
    location: &S3Location,
    bucket: &Arc<Bucket>,
    mirror: &Mirror,
    options: &FetchOptions,
    counters: &Arc<Counters>,
) -> Result<PathBuf, Fault> {
    let place = location.to_string();
    let found = match location.is_archive() {
        true => vec![(last_part(location.key()).to_owned(), one(location, bucket).await?)],
        false => list(location, bucket, options.limits.max_files).await?,
    };
    names::check(&place, found.iter().map(|(name, _)| name.as_str()))?;
    let total = found.iter().map(|(_, meta)| meta.size).fold(0, u64::saturating_add);
    if total > options.limits.max_bytes {
        let limit = options.limits.max_bytes;
        return Err(SourceError::TooLarge { place, found: total, unit: "bytes", limit }.into());
    }
    let mut entries = Vec::with_capacity(found.len());
    let mut objects = Vec::with_capacity(found.len());
    for (name, meta) in found {
        let etag = meta.e_tag.clone().unwrap_or_default();
        let entry = Entry::new(&name, &etag, meta.size);
        objects.push(Object {
            name,
            size: meta.size,
            etag,
            sha256: None,
            blob: mirror.blob(&entry),
            lock: mirror.lock(&entry.blob),
            begun: None,
            remote: Arc::new(S3Object { bucket: Arc::clone(bucket), meta, place: place.clone() }),
        });
        entries.push(entry);
    }
    tracing::info!(model = place, files = objects.len(), bytes = total,
        into = %mirror.dir().display(), "mirroring from S3");
    download::all(&place, objects, &options.limits, counters).await?;
    Ok(mirror.publish(&entries)?)
}

fn last_part(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}

/// The archive.
async fn one(location: &S3Location, bucket: &Bucket) -> Result<ObjectMeta, SourceError> {
    let key = key(location)?;
    let head = tokio::time::timeout(PATIENCE, bucket.store.head(&key)).await;
    let head = head.map_err(|_| bucket.silent(&location.to_string()))?;
    head.map_err(|error| bucket.explain(error, &location.to_string()))
}

/// The objects under the prefix, by their names below it.
async fn list(
    location: &S3Location,
    bucket: &Bucket,
    max_files: u64,
) -> Result<Vec<(String, ObjectMeta)>, SourceError> {
    let place = location.to_string();
    let key = key(location)?;
    let prefix = Some(&key).filter(|key| !key.as_ref().is_empty());
    let mut objects = bucket.store.list(prefix);
    let mut found = Vec::new();
    loop {
        let next = tokio::time::timeout(PATIENCE, objects.try_next()).await;
        let next = next.map_err(|_| bucket.silent(&place))?;
        let Some(meta) = next.map_err(|error| bucket.explain(error, &place))? else { break };
        let name = meta.location.as_ref();
        let name = match prefix {
            Some(prefix) => name.strip_prefix(prefix.as_ref()).and_then(|n| n.strip_prefix('/')),
            None => Some(name),
        };
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            found.push((name.to_owned(), meta));
        }
        if found.len() as u64 > max_files {
            let found = found.len() as u64;
            return Err(SourceError::TooLarge { place, found, unit: "files", limit: max_files });
        }
    }
    drop_markers(&mut found);
    match found.is_empty() {
        false => Ok(found),
        true => Err(SourceError::Refused {
            place,
            reason: "there is nothing under this prefix: check bucket and prefix; a single object \
                     has to be an archive, such as model.tar.gz"
                .to_owned(),
            source: None,
        }),
    }
}

/// Leaves out the empty objects that the console makes of folders.
fn drop_markers(found: &mut Vec<(String, ObjectMeta)>) {
    let parents: std::collections::HashSet<String> = found
        .iter()
        .flat_map(|(name, _)| name.match_indices('/').map(|(idx, _)| name[..idx].to_owned()))
        .collect();
    found.retain(|(name, meta)| meta.size > 0 || !parents.contains(name));
}

fn key(location: &S3Location) -> Result<Key, SourceError> {
    Key::parse(location.key()).map_err(|error| SourceError::Unreadable {
        source_text: location.to_string(),
        reason: format!("the key can't be read: {error}"),
    })
}

/// An object at the version that was listed.
struct S3Object {
    bucket: Arc<Bucket>,
    meta: ObjectMeta,
    place: String,
}

impl S3Object {
    async fn open(&self, range: Range<u64>) -> Result<Body, ReadError> {
        let part = (range != (0..self.meta.size)).then_some(GetRange::Bounded(range));
        let options =
            GetOptions { if_match: self.meta.e_tag.clone(), range: part, ..GetOptions::default() };
        let got = self.bucket.store.get_opts(&self.meta.location, options).await;
        let got = got.map_err(|error| self.read_error(error))?;
        // Some services quote a tag in one place and not in the other.
        let same_tag = match (&got.meta.e_tag, &self.meta.e_tag) {
            (Some(now), Some(then)) => plain_etag(now) == plain_etag(then),
            _ => true,
        };
        if got.meta.size != self.meta.size || !same_tag {
            return Err(ReadError::Changed);
        }
        let bucket = Arc::clone(&self.bucket);
        let hide = move |error: object_store::Error| -> Cause { bucket.hide(&error).into() };
        Ok(got.into_stream().map_err(hide).boxed())
    }

    fn read_error(&self, error: object_store::Error) -> ReadError {
        use object_store::Error;
        match error {
            Error::Precondition { .. } | Error::NotModified { .. } => ReadError::Changed,
            // What was listed a moment ago has been taken away, and perhaps put there anew.
            Error::NotFound { .. } => ReadError::Changed,
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                let place = format!("{} {}", self.place, self.meta.location);
                ReadError::Refused(self.bucket.explain(error, &place))
            }
            error => ReadError::again(self.bucket.hide(&error)),
        }
    }
}

impl Remote for S3Object {
    fn read(&self, range: Range<u64>, _: bool) -> BoxFuture<'_, Result<Body, ReadError>> {
        Box::pin(self.open(range))
    }
}
