//! What can be wrong with a model's files.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

/// Why a model's files could not be used. Each message names the file, and the key, entry or
/// tensor in it, what was found and what is wanted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// The operating system refused.
    #[error("{}: can't {action}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The model is not where it should be.
    #[error("{}: there is no such directory or archive", path.display())]
    NoModel {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// A directory, pipe, socket or device stands where a file should.
    #[error("{}: is {found}, expected a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What stands there.
        found: &'static str,
    },
    /// The model lacks files that it can't be used without.
    #[error("{}: has no {wanted}", dir.display())]
    MissingFile {
        /// The model directory.
        dir: PathBuf,
        /// The file or the choice of files.
        wanted: String,
    },
    /// A path written in a file leads out of the model.
    #[error("{}: {relative:?} leads out of the model: expected a path inside it", dir.display())]
    Escape {
        /// The model directory.
        dir: PathBuf,
        /// The path as written.
        relative: String,
    },
    /// A file is larger than any honest one of its kind.
    #[error("{}: holds {found} bytes, at most {limit} are allowed", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size, in bytes.
        found: u64,
        /// The largest size, in bytes.
        limit: u64,
    },
    /// A file that should be JSON is not.
    #[error("{}: is not valid JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, column and what the parser wanted.
        source: serde_json::Error,
    },
    /// A JSON file holds another kind of value than the whole should be.
    #[error("{}: holds {found}: expected {wanted}", path.display())]
    JsonShape {
        /// The file.
        path: PathBuf,
        /// The value, shortened.
        found: String,
        /// What the file should hold.
        wanted: &'static str,
    },
    /// A key's value is impossible.
    #[error("{}: {key} = {found}: expected {wanted}", path.display())]
    InvalidKey {
        /// The file.
        path: PathBuf,
        /// The key, dotted where it is nested.
        key: String,
        /// The value, shortened.
        found: String,
        /// What is allowed.
        wanted: String,
    },
    /// A key that has no default is absent.
    #[error("{}: {key} is missing: expected {wanted}", path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key, or the spellings any of which would do.
        key: String,
        /// What is allowed.
        wanted: String,
    },
    /// A file is no archive of a kind that can be unpacked.
    #[error("{}: {found}: expected a directory, .tar.gz, .tgz, .tar, .zip or .mar", path.display())]
    NotAnArchive {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        found: &'static str,
    },
    /// An archive's entry was refused, and with it the archive.
    #[error("{}: entry {entry:?} {reason}; nothing was unpacked", archive.display())]
    ArchiveEntry {
        /// The archive.
        archive: PathBuf,
        /// The entry's name, shortened.
        entry: String,
        /// Why it was refused.
        reason: String,
    },
    /// An archive is broken or breaks a limit as a whole.
    #[error("{}: {reason}; nothing was unpacked", archive.display())]
    Archive {
        /// The archive.
        archive: PathBuf,
        /// What is wrong.
        reason: String,
        /// What the decompressor or archive reader said, if it was its finding.
        #[source]
        source: Option<io::Error>,
    },
    /// A weight file breaks its format.
    #[error("{}: {reason}", path.display())]
    WeightFile {
        /// The file.
        path: PathBuf,
        /// What was found, and what is allowed.
        reason: String,
    },
    /// One tensor of a weight file is impossible.
    #[error("{}: tensor {tensor:?}: {reason}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name, shortened.
        tensor: String,
        /// What was found, and what is allowed.
        reason: String,
    },
    /// A pickle asks for something other than a tensor.
    #[error(
        "{}: refuses {global}: only tensors are read and nothing is executed; convert the file to \
         safetensors", path.display()
    )]
    PickleRefused {
        /// The file.
        path: PathBuf,
        /// `module.name`, or the opcode, that was asked for.
        global: String,
    },
    /// A pickle is broken.
    #[error("{}: is not a PyTorch checkpoint: {reason} (byte {offset} of its pickle)", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// Where in the pickle, in bytes.
        offset: usize,
        /// What was found.
        reason: String,
    },
    /// A tokenizer could not be made from a file.
    #[error("{}: no tokenizer can be made from it", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What the tokenizer library said.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A text is in a language that the tokenizer has no token for.
    #[error("{}: has no token for the language {language:?}: expected one of {known}", path.display())]
    UnknownLanguage {
        /// The tokenizer's file.
        path: PathBuf,
        /// The code that was asked for, shortened.
        language: String,
        /// The codes that there are, or the first of them.
        known: String,
    },
    /// A text could not be encoded, or ids could not be decoded.
    #[error("{}: can't {action}", path.display())]
    Tokenize {
        /// The tokenizer's file.
        path: PathBuf,
        /// `encode the text` or `decode the tokens`.
        action: &'static str,
        /// What the tokenizer library said.
        source: Box<dyn StdError + Send + Sync>,
    },
}

/// The first part of a text that came from outside, fit for one line of a message.
pub(crate) fn shorten(text: &str) -> String {
    const LONGEST: usize = 80;
    let mut short: String =
        text.chars().take(LONGEST).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(LONGEST).is_some() {
        short.push('…');
    }
    short
}
