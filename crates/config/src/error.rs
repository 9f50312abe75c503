//! What stops a configuration, and what is merely worth a line in the log.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::secret;
use crate::source::Source;

/// The most characters of a value that a message repeats.
const SHOWN_CHARS: usize = 120;

/// Why a configuration was refused. Every variant names the place and what is allowed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A value is not one of those its key allows.
    #[error("{at}: {key}={}: expected {wanted}", shown(key, value))]
    Value {
        /// Where the value was set.
        at: Source,
        /// The key as it was spelled.
        key: String,
        /// The value found.
        value: String,
        /// What is allowed.
        wanted: String,
    },
    /// Two settings that must agree do not.
    #[error("{at}: {key}={}: {problem}", shown(key, value))]
    Conflict {
        /// Where the value that loses was set.
        at: Source,
        /// The key as it was spelled.
        key: String,
        /// The value found.
        value: String,
        /// What it disagrees with, and what to do.
        problem: String,
    },
    /// A properties file breaks the syntax.
    #[error("{}:{line}: {found}: expected {wanted}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u32,
        /// What is there.
        found: String,
        /// What is allowed there.
        wanted: &'static str,
    },
    /// A properties file is larger than any real one.
    #[error("{}: {bytes} bytes: expected a properties file of at most {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The most that is read.
        limit: u64,
    },
    /// The model store is there and can't be listed.
    #[error("{at}: model_store={}: can't be listed; check its permissions", path.display())]
    ModelStore {
        /// Where the store was set.
        at: Source,
        /// The store.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Something that does not stop the server but that an operator should read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Where it was found.
    pub at: Source,
    /// What was found and what was done about it: lower case, no full stop.
    pub message: String,
}

impl Warning {
    pub(crate) fn new(at: Source, message: impl Into<String>) -> Self {
        Self { at, message: message.into() }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Source::Default => f.write_str(&self.message),
            _ => write!(f, "{}: {}", self.at, self.message),
        }
    }
}

/// The value as a message repeats it: masked if the key is a secret's, without control characters,
/// cut off when long.
pub(crate) fn shown(key: &str, value: &str) -> String {
    if secret::is_secret(key) {
        return secret::MASK.to_owned();
    }
    let mut text: String = value.chars().take(SHOWN_CHARS).flat_map(printable).collect();
    if value.chars().nth(SHOWN_CHARS).is_some() {
        text.push('…');
    }
    if value.ends_with(' ') || value.starts_with(' ') { format!("\"{text}\"") } else { text }
}

fn printable(c: char) -> impl Iterator<Item = char> {
    let escape = c.is_control().then(|| c.escape_default());
    let plain = if escape.is_none() { Some(c) } else { None };
    escape.into_iter().flatten().chain(plain)
}
