//! Checkpoints since PyTorch 1.6: a zip file of `<name>/data.pkl` and one stored, that is not
//! packed, entry `<name>/data/<key>` for each storage.

use std::io::{Cursor, Read};
use std::ops::Range;

use zip::{CompressionMethod, ZipArchive};

use super::heap::Heap;
use super::{Checkpoint, Fault, MAX_PICKLE_BYTES, pickle, state_dict};
use crate::error::shorten;
use crate::weights::tensor::Layout;

type Archive<'a> = ZipArchive<Cursor<&'a [u8]>>;

pub(super) fn read(bytes: &[u8]) -> Result<Vec<(String, Layout)>, Fault> {
    let mut archive: Archive<'_> = ZipArchive::new(Cursor::new(bytes)).map_err(|error| {
        Fault::File(format!("is cut off, or no PyTorch checkpoint: its zip directory: {error}"))
    })?;
    let folder = find_folder(&archive)?;
    check_byte_order(&mut archive, &folder)?;
    let program = entry(&mut archive, &format!("{folder}/data.pkl"), MAX_PICKLE_BYTES)?
        .ok_or_else(|| Fault::File("has no data.pkl".to_owned()))?;
    let mut heap = Heap::default();
    let (root, _) = pickle::run(&program, &mut heap)?;
    let locate = Box::new(move |key: &str| {
        locate(&mut archive, &format!("{folder}/data/{key}"), bytes.len())
    });
    state_dict::tensors(Checkpoint { heap, root, locate, file_bytes: bytes.len() })
}

/// The folder that holds `data.pkl`.
fn find_folder(archive: &Archive<'_>) -> Result<String, Fault> {
    let mut found = None;
    for name in archive.file_names_raw() {
        let Some(folder) = name.strip_suffix(b"/data.pkl") else { continue };
        if folder.contains(&b'/') {
            continue;
        }
        let folder = std::str::from_utf8(folder).map_err(|_| {
            Fault::File("names its data.pkl in other letters than UTF-8".to_owned())
        })?;
        if found.replace(folder.to_owned()).is_some() {
            return Err(Fault::File("has several data.pkl".to_owned()));
        }
    }
    found
        .ok_or_else(|| Fault::File("is a zip file without the data.pkl of a checkpoint".to_owned()))
}

fn check_byte_order(archive: &mut Archive<'_>, folder: &str) -> Result<(), Fault> {
    match entry(archive, &format!("{folder}/byteorder"), 16)?.as_deref() {
        None | Some(b"little") => Ok(()),
        Some(other) => Err(Fault::File(format!(
            "has byte order {:?}, only \"little\" is supported",
            shorten(&String::from_utf8_lossy(other))
        ))),
    }
}

/// The content of an entry of at most `max_bytes` bytes.
fn entry(
    archive: &mut Archive<'_>,
    name: &str,
    max_bytes: usize,
) -> Result<Option<Vec<u8>>, Fault> {
    let Some(idx) = archive.index_for_name(name) else { return Ok(None) };
    let broken = |error: &dyn std::fmt::Display| {
        Fault::File(format!("entry {:?} can't be read: {error}", shorten(name)))
    };
    let entry = archive.by_index(idx).map_err(|error| broken(&error))?;
    let mut content = Vec::new();
    entry.take(max_bytes as u64 + 1).read_to_end(&mut content).map_err(|error| broken(&error))?;
    match content.len() > max_bytes {
        true => Err(broken(&format!("it holds more than {max_bytes} bytes, the limit"))),
        false => Ok(Some(content)),
    }
}

/// Where a stored entry lies in the file.
fn locate(
    archive: &mut Archive<'_>,
    name: &str,
    file_bytes: usize,
) -> Result<Range<usize>, String> {
    let missing = || format!("its storage {:?} is not in the file", shorten(name));
    let idx = archive.index_for_name(name).ok_or_else(missing)?;
    let entry = archive
        .by_index_raw(idx)
        .map_err(|error| format!("its storage {:?} can't be read: {error}", shorten(name)))?;
    if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
        return Err(format!(
            "its storage {:?} is packed, only plain data can be mapped; save the checkpoint again",
            shorten(name)
        ));
    }
    let start = entry.data_start().and_then(|start| usize::try_from(start).ok());
    let bytes = usize::try_from(entry.compressed_size()).ok();
    start
        .zip(bytes)
        .and_then(|(start, bytes)| Some(start..start.checked_add(bytes)?))
        .filter(|range| range.end <= file_bytes)
        .ok_or_else(|| format!("its storage {:?} goes beyond the end of the file", shorten(name)))
}
