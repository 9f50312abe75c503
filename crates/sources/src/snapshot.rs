//! A directory of links to whole files: what a model is loaded from.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::download::{JOURNAL_SUFFIX, PART_SUFFIX};
use crate::error::SourceError;
use crate::lock;

/// Links each name in `dir` to its blob, by relative paths, so that the whole may be moved. The
/// blobs lie in `../../blobs` of `dir`.
pub(crate) fn link(dir: &Path, links: &[(String, PathBuf)]) -> Result<(), SourceError> {
    fs::create_dir_all(dir).map_err(SourceError::io(dir, "make the directory"))?;
    for (name, blob) in links {
        let at = dir.join(name);
        if let Some(parent) = at.parent() {
            fs::create_dir_all(parent).map_err(SourceError::io(parent, "make the directory"))?;
        }
        let mut target = PathBuf::from("../".repeat(name.matches('/').count() + 2));
        target.push("blobs");
        target.push(blob.file_name().unwrap_or_default());
        if fs::read_link(&at).is_ok_and(|known| known == target) {
            continue;
        }
        // A link can't be made in place of what is there, but one can be given its name.
        let fresh = fresh(&at);
        symlink(&target, &fresh)
            .and_then(|()| fs::rename(&fresh, &at))
            .map_err(SourceError::io(&at, "make the link"))?;
    }
    Ok(())
}

/// Writes a small file whole or not at all.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), SourceError> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(SourceError::io(dir, "make the directory"))?;
    }
    let fresh = fresh(path);
    let written = fs::File::create(&fresh)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&fresh, path));
    written.map_err(SourceError::io(path, "write"))
}

/// Removes what is left of files that were begun and are no longer wanted: those whose lock is free.
pub(crate) fn clean(blobs: &Path, lock_of: impl Fn(&str) -> PathBuf) {
    let Ok(entries) = fs::read_dir(blobs) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let Some(name) = path.file_name().and_then(OsStr::to_str) else { continue };
        let ends = [PART_SUFFIX, JOURNAL_SUFFIX];
        let Some(blob) = ends.iter().find_map(|end| name.strip_suffix(end)) else { continue };
        if let Ok(Some(_lock)) = lock::try_take(&lock_of(blob)) {
            let _ = fs::remove_file(&path);
        }
    }
}

/// A name beside `path` that nobody else uses.
fn fresh(path: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}-{number}.new", std::process::id()));
    name.into()
}
