//! zip files, and TorchServe's .mar, which is one.

use std::fs::File;
use std::io::{self, BufReader};

use zip::ZipArchive;

use super::sink::Sink;
use crate::error::ArtifactError;

/// The file type in a Unix mode, and that of a link.
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFLNK: u32 = 0o120_000;

pub(super) fn unpack(file: File, sink: &mut Sink<'_>) -> Result<(), ArtifactError> {
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|error| {
        sink.broken("is no zip archive, or broken", Some(io::Error::other(error)))
    })?;
    for idx in 0..archive.len() {
        let name: Vec<u8> = archive
            .name_for_index(idx)
            .and_then(Result::ok)
            .map(|name| name.as_bytes().to_vec())
            .unwrap_or_default();
        let mut entry = archive
            .by_index(idx)
            .map_err(|error| sink.refuse(&name, format!("can't be read: {error}")))?;
        let (name, mode) = (entry.name_raw().to_vec(), entry.unix_mode());
        match mode.map(|mode| mode & S_IFMT) {
            None | Some(0 | S_IFREG | S_IFDIR) => {}
            Some(S_IFLNK) => {
                let reason = "is a link: only files and directories are unpacked";
                return Err(sink.refuse(&name, reason.to_owned()));
            }
            Some(_) => {
                let reason = "is a device or pipe: only files and directories are unpacked";
                return Err(sink.refuse(&name, reason.to_owned()));
            }
        }
        match entry.is_dir() {
            true => sink.directory(&name)?,
            false => sink.file(&name, &mut entry, mode)?,
        }
    }
    Ok(())
}
