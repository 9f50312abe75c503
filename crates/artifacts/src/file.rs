//! Opening regular files and reading them within a bound.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::error::ArtifactError;

/// Opens `path` if it is a regular file, or a link to one. A pipe is refused before it is opened,
/// because opening it would wait for a writer.
pub(crate) fn open_regular(path: &Path) -> Result<(File, Metadata), ArtifactError> {
    let io = |action| move |source| ArtifactError::Io { path: path.to_owned(), action, source };
    check_regular(path, &std::fs::metadata(path).map_err(io("open"))?)?;
    let file = File::open(path).map_err(io("open"))?;
    let metadata = file.metadata().map_err(io("open"))?;
    check_regular(path, &metadata)?;
    Ok((file, metadata))
}

/// The whole content of a regular file of at most `max_bytes` bytes.
pub(crate) fn read_bounded(path: &Path, max_bytes: u64) -> Result<Vec<u8>, ArtifactError> {
    let too_large =
        |found| ArtifactError::TooLarge { path: path.to_owned(), found, limit: max_bytes };
    let (file, metadata) = open_regular(path)?;
    if metadata.len() > max_bytes {
        return Err(too_large(metadata.len()));
    }
    let mut content = Vec::new();
    // The file may grow while it is read, hence the second bound.
    file.take(max_bytes.saturating_add(1))
        .read_to_end(&mut content)
        .map_err(|source| ArtifactError::Io { path: path.to_owned(), action: "read", source })?;
    match content.len() as u64 > max_bytes {
        true => Err(too_large(content.len() as u64)),
        false => Ok(content),
    }
}

pub(crate) fn check_regular(path: &Path, metadata: &Metadata) -> Result<(), ArtifactError> {
    let kind = metadata.file_type();
    let found = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() || kind.is_char_device() => "a device",
        () => "no file",
    };
    Err(ArtifactError::NotAFile { path: path.to_owned(), found })
}
