//! The cache, laid out as `huggingface_hub` does: `models--org--name/{blobs,refs,snapshots}`.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::select;

/// Largest list of shards.
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Deepest directory, and most files, of a snapshot that is looked at.
const MAX_DEPTH: usize = 8;
const MAX_FILES: usize = 100_000;

/// One repository in the cache.
#[derive(Debug)]
pub(super) struct Repository {
    dir: PathBuf,
    locks: PathBuf,
}

impl Repository {
    pub(super) fn new(cache: &Path, id: &str) -> Self {
        let folder = format!("models--{}", id.replace('/', "--"));
        Self { locks: cache.join(".locks").join(&folder), dir: cache.join(folder) }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn blobs(&self) -> PathBuf {
        self.dir.join("blobs")
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.dir.join("snapshots").join(commit)
    }

    /// The lock on a blob, where Python's client has it, too.
    pub(super) fn lock(&self, etag: &str) -> PathBuf {
        self.locks.join(format!("{etag}.lock"))
    }

    /// Notes which commit a branch or a tag was. A cache that can't be written to serves all the
    /// same, so a failure is logged and nothing more.
    pub(super) fn set_ref(&self, revision: &str, commit: &str) {
        if revision == commit {
            return;
        }
        let path = self.dir.join("refs").join(revision);
        if fs::read_to_string(&path).is_ok_and(|known| known.trim() == commit) {
            return;
        }
        if let Err(error) = crate::snapshot::write(&path, commit.as_bytes()) {
            tracing::warn!(path = %path.display(), %error, "the revision could not be noted");
        }
    }

    /// The snapshot of a revision, if it has all that a model needs.
    pub(super) fn complete(&self, revision: &str) -> Option<PathBuf> {
        let commit = match fs::read_to_string(self.dir.join("refs").join(revision)) {
            Ok(commit) => commit.trim().to_owned(),
            Err(_) => revision.to_owned(),
        };
        if commit.is_empty() || commit.contains(['/', '\0']) || commit.starts_with('.') {
            return None;
        }
        let dir = self.snapshot(&commit);
        let mut files = Vec::new();
        list(&dir, "", 0, &mut files);
        let chosen = select::choose("", &files).ok()?;
        let is_whole = |name: &String| !name.ends_with(".index.json") || has_shards(&dir, name);
        chosen.iter().all(is_whole).then_some(dir)
    }
}

/// Whether a revision is a commit by its whole name.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The files under a directory whose content is there, by their names in it.
fn list(dir: &Path, under: &str, depth: usize, files: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let (Some(name), Ok(metadata)) = (name.to_str(), fs::metadata(entry.path())) else {
            continue;
        };
        let name = format!("{under}{name}");
        if metadata.is_file() && files.len() < MAX_FILES {
            files.push(name);
        } else if metadata.is_dir() && depth < MAX_DEPTH {
            list(&entry.path(), &format!("{name}/"), depth + 1, files);
        }
    }
}

/// Whether every shard that an index names is there.
fn has_shards(dir: &Path, index: &str) -> bool {
    let mut text = Vec::new();
    let read = fs::File::open(dir.join(index))
        .and_then(|file| file.take(MAX_INDEX_BYTES).read_to_end(&mut text));
    let index: Option<Value> = read.ok().and_then(|_| serde_json::from_slice(&text).ok());
    let shards = index.as_ref().and_then(|index| index.get("weight_map")?.as_object());
    shards.is_some_and(|shards| {
        let mut names: Vec<&str> = shards.values().filter_map(Value::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names.iter().all(|name| dir.join(name).is_file())
    })
}
