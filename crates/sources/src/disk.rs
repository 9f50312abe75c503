//! Whether there is room.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::download::{Object, PART_SUFFIX, with_suffix};
use crate::error::SourceError;
use crate::options::Limits;

/// Left free beside what is downloaded.
const SPARE_BYTES: u64 = 16 << 20;

/// Checks that the disk has room for what is missing of `objects`.
pub(crate) fn check(place: &str, objects: &[Object], limits: &Limits) -> Result<(), SourceError> {
    let Some(dir) = objects.iter().find_map(|object| object.blob.parent()) else { return Ok(()) };
    fs::create_dir_all(dir).map_err(SourceError::io(dir, "make the directory"))?;
    let needed = objects.iter().map(|object| object.size.saturating_sub(begun(&object.blob)));
    let needed = needed.fold(0, u64::saturating_add);
    let Some(free) = free(dir) else { return Ok(()) };
    match needed.saturating_add(SPARE_BYTES) > free {
        false => Ok(()),
        true => Err(SourceError::NoSpace {
            place: place.to_owned(),
            needed,
            free,
            dir: dir.to_owned(),
            setting: limits.place_setting,
        }),
    }
}

/// Bytes that the beginning of a file takes on the disk; its holes take none.
fn begun(blob: &Path) -> u64 {
    fs::metadata(with_suffix(blob, PART_SUFFIX)).map_or(0, |metadata| metadata.blocks() * 512)
}

/// Bytes that this user may still write; `None` where the system does not say.
fn free(dir: &Path) -> Option<u64> {
    let system = rustix::fs::statvfs(dir).ok()?;
    system.f_bavail.checked_mul(system.f_frsize)
}
