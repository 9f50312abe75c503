//! A model's files, from a directory, an archive or a GGUF file.

use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::archive;
use crate::error::{ArtifactError, shorten};
use crate::file::check_regular;
use crate::gguf::is_gguf;

/// Where archives are unpacked and how much they may hold.
#[derive(Clone, Debug)]
pub struct UnpackOptions {
    /// The directory that holds unpacked archives, each in a directory of its own. Made if absent.
    pub into: PathBuf,
    /// Most bytes that an archive may unpack to.
    pub max_bytes: u64,
    /// Most entries, files and directories, of an archive.
    pub max_entries: u64,
    /// Most bytes unpacked for each byte of the archive, once more than 64 MiB were unpacked.
    pub max_ratio: u64,
}

impl Default for UnpackOptions {
    /// `drivetrain` in the system's directory for temporary files, 512 GiB, 100,000 entries, 100
    /// bytes for one.
    fn default() -> Self {
        Self {
            into: std::env::temp_dir().join("drivetrain"),
            max_bytes: 512 << 30,
            max_entries: 100_000,
            max_ratio: 100,
        }
    }
}

/// The directory that holds a model's files.
#[derive(Clone, Debug)]
pub struct ModelDir {
    root: PathBuf,
    source: PathBuf,
    links: Links,
    /// The name of the GGUF file that was opened as the model.
    lone_file: Option<String>,
    /// Where files are looked for that are not here.
    base: Option<Box<ModelDir>>,
}

/// Whether a file of the model may be a link that leads out of its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Links {
    /// The operator's own directory: the hub's cache, for one, links snapshots to blobs.
    Follow,
    /// An unpacked archive.
    Refuse,
}

impl ModelDir {
    /// Opens a directory, or unpacks an archive: .tar.gz, .tgz, .tar, .zip, .mar. Where the root
    /// holds one visible entry and that is a directory, this is the model; a directory that holds
    /// nothing but a .zip stands for that. A GGUF file is a model by itself; what lies beside it
    /// belongs to it, save other weights and their config.json.
    ///
    /// An archive is unpacked once: while its path, size and time of change stay the same, the
    /// unpacked copy is used again, by other processes, too.
    ///
    /// # Errors
    /// There is nothing at `path`, it can't be read, or the archive is refused; an archive that is
    /// refused leaves nothing behind.
    pub fn open(path: &Path, unpack: &UnpackOptions) -> Result<Self, ArtifactError> {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(ArtifactError::NoModel { path: path.to_owned() });
            }
            Err(source) => {
                return Err(ArtifactError::Io { path: path.to_owned(), action: "open", source });
            }
        };
        if metadata.is_dir() {
            let root = match only_visible_entry(path)? {
                Some(nested) if nested.is_dir() => nested,
                Some(packed) if is_zip(&packed) => return Self::open(&packed, unpack),
                _ => path.to_owned(),
            };
            return Ok(Self::of(root, path, Links::Follow));
        }
        if let Some(name) = path.file_name().and_then(|n| n.to_str()).filter(|n| is_gguf(n)) {
            let root = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let mut dir = Self::of(root.unwrap_or(Path::new(".")).to_owned(), path, Links::Follow);
            dir.lone_file = Some(name.to_owned());
            return Ok(dir);
        }
        let unpacked = archive::unpack(path, unpack)?;
        let root = nested_directory(&unpacked)?.unwrap_or(unpacked);
        Ok(Self::of(root, path, Links::Refuse))
    }

    fn of(root: PathBuf, source: &Path, links: Links) -> Self {
        Self { root, source: source.to_owned(), links, lone_file: None, base: None }
    }

    /// This directory's files, and where it has none of a name, `base`'s.
    #[must_use]
    pub fn over(self, base: &ModelDir) -> Self {
        Self { base: Some(Box::new(base.clone())), ..self }
    }

    /// The root of the model's files.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// What gives the same model when it is opened again: its root, or its GGUF file.
    pub fn location(&self) -> &Path {
        match self.lone_file {
            Some(_) => &self.source,
            None => &self.root,
        }
    }

    /// The name of the GGUF file that was opened as the model, in [`Self::path`].
    pub(crate) fn lone_file(&self) -> Option<&str> {
        self.lone_file.as_deref()
    }

    /// What was opened: the directory, the archive or the GGUF file.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// A regular file of the model, or `None` where there is none of this name.
    ///
    /// # Errors
    /// `relative` leads out of the model, by its spelling or, in an unpacked archive, through a
    /// link; or what stands there is no regular file.
    pub fn file(&self, relative: &str) -> Result<Option<PathBuf>, ArtifactError> {
        let escape =
            || ArtifactError::Escape { dir: self.root.clone(), relative: shorten(relative) };
        let inside =
            Path::new(relative).components().all(|part| matches!(part, Component::Normal(_)));
        if relative.is_empty() || relative.contains('\0') || !inside {
            return Err(escape());
        }
        let path = self.root.join(relative);
        let io = |source| ArtifactError::Io { path: path.clone(), action: "open", source };
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if is_absent(&error) => {
                return self.base.as_ref().map_or(Ok(None), |base| base.file(relative));
            }
            Err(error) => return Err(io(error)),
        };
        if self.links == Links::Refuse {
            let root = self.root.canonicalize().map_err(io)?;
            if !path.canonicalize().map_err(io)?.starts_with(root) {
                return Err(escape());
            }
        }
        check_regular(&path, &metadata)?;
        Ok(Some(path))
    }
}

fn is_absent(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

/// The only visible entry of `root`, if that is a directory.
fn nested_directory(root: &Path) -> Result<Option<PathBuf>, ArtifactError> {
    Ok(only_visible_entry(root)?.filter(|entry| entry.is_dir()))
}

fn is_zip(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("zip"))
        && path.is_file()
}

fn only_visible_entry(root: &Path) -> Result<Option<PathBuf>, ArtifactError> {
    let io = |source| ArtifactError::Io { path: root.to_owned(), action: "list", source };
    let mut only = None;
    for entry in fs::read_dir(root).map_err(io)? {
        let entry = entry.map_err(io)?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if only.replace(entry.path()).is_some() {
            return Ok(None);
        }
    }
    Ok(only)
}
