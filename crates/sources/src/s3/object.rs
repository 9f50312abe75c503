//! Single objects, read and written whole: what goes in and out of an asynchronous invocation.

use std::time::Duration;

use bytes::Bytes;
use object_store::{Attribute, Attributes, ObjectStore, ObjectStoreExt, PutOptions};
use tokio::time::timeout;

use super::key;
use super::store::Bucket;
use crate::error::SourceError;
use crate::options::FetchOptions;
use crate::source::S3Location;

/// Longest that an object may take to come or go.
const PATIENCE: Duration = Duration::from_secs(900);

/// The bytes of an object.
///
/// # Errors
/// It is not there, can't be read, or has more than `max_bytes`.
pub async fn read_object(
    location: &S3Location,
    options: &FetchOptions,
    max_bytes: u64,
) -> Result<Bytes, SourceError> {
    let place = location.to_string();
    let bucket = Bucket::open(location, &options.s3, &options.limits).await?;
    let read = async {
        let got = bucket.store.get(&key(location)?).await;
        let got = got.map_err(|error| bucket.explain(error, &place))?;
        if got.meta.size > max_bytes {
            let (place, found) = (place.clone(), got.meta.size);
            return Err(SourceError::TooLarge { place, found, unit: "bytes", limit: max_bytes });
        }
        got.bytes().await.map_err(|error| bucket.explain(error, &place))
    };
    timeout(PATIENCE, read).await.unwrap_or_else(|_| Err(bucket.silent(&place)))
}

/// Writes an object, in place of the one that is there.
///
/// # Errors
/// The bucket is not there, or refuses.
pub async fn write_object(
    location: &S3Location,
    options: &FetchOptions,
    bytes: Bytes,
    content_type: Option<&str>,
) -> Result<(), SourceError> {
    let place = location.to_string();
    let bucket = Bucket::open(location, &options.s3, &options.limits).await?;
    let mut attributes = Attributes::new();
    if let Some(content_type) = content_type {
        attributes.insert(Attribute::ContentType, content_type.to_owned().into());
    }
    let put = PutOptions { attributes, ..PutOptions::default() };
    let write = async {
        let written = bucket.store.put_opts(&key(location)?, bytes.into(), put).await;
        written.map(|_| ()).map_err(|error| bucket.explain(error, &place))
    };
    timeout(PATIENCE, write).await.unwrap_or_else(|_| Err(bucket.silent(&place)))
}
