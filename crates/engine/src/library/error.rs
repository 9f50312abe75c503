//! Why a file did not become an engine.

use std::env::consts::ARCH;
use std::io;
use std::path::{Path, PathBuf};

use crate::version::AbiVersion;

/// The version of the crate to rebuild a library with.
const CRATE_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why a file in the plugin folder did not become an engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenEngineError {
    /// The file can't be read.
    #[error("{}: the file can't be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is something else, or cut short.
    #[error("{}: not a library: found {found}, expected a shared library for {ARCH}", path.display())]
    NotALibrary {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// The library is for another kind of machine.
    #[error("{}: built for {found}, this host is {ARCH}; rebuild it for {ARCH}", path.display())]
    Architecture {
        /// The file.
        path: PathBuf,
        /// What it is for.
        found: String,
    },
    /// The system's loader refused it: a library that it needs, or a symbol, is missing.
    #[error("{}: a library for this machine, but the system's loader can't load it", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the loader says.
        source: libloading::Error,
    },
    /// A library, but not of an engine.
    #[error(
        "{}: a library without an engine: it does not export what drivetrain-engine \
         {CRATE_VERSION}'s export_engine! writes", path.display()
    )]
    MissingSymbol {
        /// The file.
        path: PathBuf,
    },
    /// Built with another version of abi_stable.
    #[error(
        "{}: built with abi_stable {found}, this host with abi_stable {host}; rebuild it with \
         drivetrain-engine {CRATE_VERSION}", path.display()
    )]
    AbiStable {
        /// The file.
        path: PathBuf,
        /// The library's version.
        found: String,
        /// The host's version.
        host: String,
    },
    /// Speaks another version of the engine ABI.
    #[error(
        "{}: speaks engine ABI {found}, this host {host}; rebuild it with drivetrain-engine \
         {CRATE_VERSION}", path.display()
    )]
    Abi {
        /// The file.
        path: PathBuf,
        /// The library's version.
        found: AbiVersion,
        /// The host's version.
        host: AbiVersion,
    },
    /// States the host's version, but its types are laid out in another way.
    #[error(
        "{}: its types differ from this host's engine ABI ({tail}); rebuild it with \
         drivetrain-engine {CRATE_VERSION}", path.display()
    )]
    Layout {
        /// The file.
        path: PathBuf,
        /// The end of the comparison, which names the first difference.
        tail: String,
        /// The whole comparison of all types, hundreds of lines long.
        details: String,
    },
    /// The engine panicked while it was made or asked for its name.
    #[error("{}: panicked while starting: {message}", path.display())]
    Panicked {
        /// The file.
        path: PathBuf,
        /// What the panic said.
        message: String,
    },
    /// Another process that opened the file first, as a trial, did not survive it.
    #[error(
        "{}: ended the process that tried it ({how}): the file is damaged; build it or copy it again",
        path.display()
    )]
    Crashed {
        /// The file.
        path: PathBuf,
        /// How the process ended.
        how: String,
    },
}

impl OpenEngineError {
    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Read { path, .. }
            | Self::NotALibrary { path, .. }
            | Self::Architecture { path, .. }
            | Self::Open { path, .. }
            | Self::MissingSymbol { path }
            | Self::AbiStable { path, .. }
            | Self::Abi { path, .. }
            | Self::Layout { path, .. }
            | Self::Panicked { path, .. }
            | Self::Crashed { path, .. } => path,
        }
    }

    /// A text too long for a message, for the debug log: the whole comparison of types.
    pub fn details(&self) -> Option<&str> {
        match self {
            Self::Layout { details, .. } => Some(details),
            _ => None,
        }
    }
}

/// The difference that abi_stable's report ends with, after both types in full, on one line.
pub(super) fn tail(details: &str) -> String {
    const MAX_CHARS: usize = 400;
    let last = details.rfind("Error:").map_or(details, |start| &details[start + "Error:".len()..]);
    let words: Vec<&str> = last.split_whitespace().collect();
    let mut line = words.join(" ");
    if let Some((end, _)) = line.char_indices().nth(MAX_CHARS) {
        line.truncate(end);
        line.push_str(" ...");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_error_on_one_line() {
        let report = "Error:outer\n  both types\n\nError:mismatched type\nExpected:\n    u32\nFound:\n    u64\n";
        assert_eq!(tail(report), "mismatched type Expected: u32 Found: u64");
        assert_eq!(tail("no such word"), "no such word");
        assert_eq!(tail(&"ä".repeat(500)).chars().count(), 404);
    }
}
