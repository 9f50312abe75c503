//! A model's data: brought here, unpacked, and put where a container looks for it.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use drivetrain_artifacts::{ArtifactError, UnpackOptions, unpack};
use drivetrain_sources::{FetchOptions, ModelSource, SourceError, Stop, Watch, fetch};

use crate::records::{Compression, ModelData};

/// What a packed model is called.
const ARCHIVES: [&str; 2] = [".tar.gz", ".tgz"];

/// Why a model's data is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataError {
    #[error("model data {url}: could not be brought here")]
    Fetch {
        url: String,
        #[source]
        source: SourceError,
    },
    #[error("model data {url}: could not be unpacked")]
    Unpack {
        url: String,
        #[source]
        source: ArtifactError,
    },
    #[error("model data {url}: {reason}")]
    Form { url: String, reason: String },
    #[error("{}: can't be made", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What bringing data needs beside its address.
#[derive(Debug)]
pub(crate) struct Bringer {
    pub(crate) fetch: FetchOptions,
    pub(crate) unpack_into: PathBuf,
    pub(crate) limit: Duration,
}

impl Bringer {
    /// Brings `data` and makes `place` lead to the directory of its files. Blocks as long as that
    /// takes, at most `limit`.
    pub(crate) fn bring(&self, data: &ModelData, place: &Path) -> Result<(), DataError> {
        let url = &data.url;
        let form = |reason: &str| DataError::Form { url: url.clone(), reason: reason.to_owned() };
        let source = ModelSource::parse(url)
            .map_err(|source| DataError::Fetch { url: url.clone(), source })?;
        let is_packed = ARCHIVES.iter().any(|end| url.ends_with(end));
        match (&source, data.compression) {
            (ModelSource::S3(_), Compression::Gzip) if !is_packed => {
                return Err(form(
                    "expected a key that ends in .tar.gz; files that are not packed are given by \
                     ModelDataSource with CompressionType None",
                ));
            }
            (ModelSource::S3(_), Compression::None) if is_packed => {
                return Err(form("CompressionType None expects a prefix, not an archive"));
            }
            (ModelSource::S3(_) | ModelSource::Local(_), _) => {}
            _ => return Err(form("expected s3://bucket/key or file:///path")),
        }
        let watch = Deadline { at: Instant::now() + self.limit, limit: self.limit };
        let found = fetch(&source, None, &self.fetch, &watch)
            .map_err(|source| DataError::Fetch { url: url.clone(), source })?;
        let files = if found.is_dir() {
            found
        } else if found.exists() {
            let options =
                UnpackOptions { into: self.unpack_into.clone(), ..UnpackOptions::default() };
            unpack(&found, &options)
                .map_err(|source| DataError::Unpack { url: url.clone(), source })?
        } else {
            return Err(form("there is no such file or directory on this machine"));
        };
        lead(place, &files).map_err(|source| DataError::Io { path: place.to_owned(), source })
    }
}

/// Makes `place` a link to `files`.
fn lead(place: &Path, files: &Path) -> io::Result<()> {
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::remove_file(place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(std::path::absolute(files)?, place)
}

/// Ends a download that takes too long.
struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Watch for Deadline {
    fn progress(&self, stage: &str, done: u64, total: u64) {
        tracing::trace!(stage, done, total, "model data");
    }

    fn stop(&self) -> Option<Stop> {
        (Instant::now() >= self.at).then_some(Stop::Late(self.limit))
    }
}

#[cfg(test)]
mod tests {
    use drivetrain_sources::{HubOptions, Limits, S3Options};

    use super::*;

    fn bringer(folder: &Path) -> Bringer {
        Bringer {
            fetch: FetchOptions {
                hub: HubOptions { endpoint: String::new(), cache: folder.join("hub"), token: None },
                s3: S3Options::default(),
                download_dir: folder.join("downloads"),
                offline: true,
                limits: Limits::default(),
            },
            unpack_into: folder.join("unpacked"),
            limit: Duration::from_secs(60),
        }
    }

    #[test]
    fn a_directory_of_this_machine_is_led_to() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("m");
        fs::create_dir(&model).unwrap();
        fs::write(model.join("serving.properties"), "a=b").unwrap();
        let url = format!("file://{}", model.display());
        let data = ModelData { url, compression: Compression::Gzip };
        let place = folder.path().join("ml/model");
        let bringer = bringer(folder.path());
        // A container that starts again finds it again.
        for _ in 0..2 {
            bringer.bring(&data, &place).unwrap();
            assert_eq!(fs::read_to_string(place.join("serving.properties")).unwrap(), "a=b");
        }
    }

    #[test]
    fn what_is_no_model_data_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |url: &str, compression| {
            let data = ModelData { url: url.to_owned(), compression };
            let place = folder.path().join("ml/model");
            let error = bringer(folder.path()).bring(&data, &place).unwrap_err();
            assert!(error.to_string().contains(url), "{error}");
            crate::fault::chain(&error)
        };
        assert!(refused("s3://bucket/prefix", Compression::Gzip).contains(".tar.gz"));
        assert!(refused("s3://bucket/m.tar.gz", Compression::None).contains("expects a prefix"));
        assert!(refused("file:///nowhere", Compression::Gzip).contains("there is no such file"));
        assert!(refused("org/name", Compression::Gzip).contains("expected s3://"));
        let text = folder.path().join("m.tar.gz");
        fs::write(&text, "this is no archive").unwrap();
        let url = format!("file://{}", text.display());
        assert!(refused(&url, Compression::Gzip).contains("no archive"));
    }
}
