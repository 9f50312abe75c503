//! Archives: what kind a file is, and its content in a directory of its own.

mod sink;
mod store;
mod tarball;
mod zipfile;

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use crate::error::ArtifactError;
use crate::file::open_regular;
use crate::model_dir::UnpackOptions;
use sink::Sink;
use store::Store;

/// How an archive is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tar,
    TarGz,
    Zip,
}

/// The directory that holds the content of the archive at `path`. It is unpacked unless a complete
/// copy of this very file is there already. Several processes may do so at once: each unpacks into a
/// directory of its own, and the first that is done gives its copy the final name.
///
/// # Errors
/// It can't be read, is no archive, or holds what is refused; then nothing is left behind.
pub fn unpack(path: &Path, options: &UnpackOptions) -> Result<PathBuf, ArtifactError> {
    let (mut file, metadata) = open_regular(path)?;
    let kind = detect(path, &mut file)?;
    let store = Store::open(&options.into)?;
    let key = store::key(path, &metadata);
    if let Some(files) = store.find(&key)? {
        tracing::debug!(archive = %path.display(), into = %files.display(), "archive is unpacked already");
        return Ok(files);
    }
    let mut sink = Sink::new(path, store.files(), options, metadata.len())?;
    match kind {
        Kind::Tar => tarball::unpack_plain(file, &mut sink)?,
        Kind::TarGz => tarball::unpack_gzip(file, &mut sink)?,
        Kind::Zip => zipfile::unpack(file, &mut sink)?,
    }
    let manifest = sink.finish()?;
    let files = store.publish(&key, &manifest)?;
    tracing::info!(
        archive = %path.display(), into = %files.display(), files = manifest.len(), "unpacked archive"
    );
    Ok(files)
}

/// Tells the kind by the first bytes, and only where they say nothing by the name.
fn detect(path: &Path, file: &mut File) -> Result<Kind, ArtifactError> {
    const USTAR: std::ops::Range<usize> = 257..262;
    let io = |source| ArtifactError::Io { path: path.to_owned(), action: "read", source };
    let mut head = Vec::new();
    file.take(512).read_to_end(&mut head).map_err(io)?;
    file.rewind().map_err(io)?;
    let found = match head.as_slice() {
        [0x1f, 0x8b, ..] => return Ok(Kind::TarGz),
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => return Ok(Kind::Zip),
        tar if tar.get(USTAR) == Some(b"ustar") => return Ok(Kind::Tar),
        [0x1f, 0x9d, ..] => "is packed with compress, repack it with gzip",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "is packed with xz, repack it with gzip",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "is packed with zstd, repack it with gzip",
        [b'B', b'Z', b'h', ..] => "is packed with bzip2, repack it with gzip",
        [] => "is an empty file",
        // A tar file from before the ustar format has nothing that tells it from other files.
        _ if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tar")) => {
            return Ok(Kind::Tar);
        }
        _ => "is no archive",
    };
    Err(ArtifactError::NotAnArchive { path: path.to_owned(), found })
}

#[cfg(test)]
mod tests;
