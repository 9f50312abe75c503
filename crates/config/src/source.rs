//! A value together with where it was set, which is what errors, logs and `inspect` show.

use std::fmt;
use std::path::PathBuf;

/// A value and where it was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sourced<T> {
    /// The checked value.
    pub value: T,
    /// Where it came from.
    pub source: Source,
}

impl<T> Sourced<T> {
    /// A value that was set at `source`.
    pub fn new(value: T, source: Source) -> Self {
        Self { value, source }
    }

    /// A value nobody set.
    pub fn built_in(value: T) -> Self {
        Self { value, source: Source::Default }
    }

    /// The same origin with another value.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Sourced<U> {
        Sourced { value: change(self.value), source: self.source }
    }
}

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// Nobody set it: the built-in default.
    Default,
    /// A line of a properties file.
    File {
        /// The file.
        path: PathBuf,
        /// The line the key starts on, from 1.
        line: u32,
    },
    /// An environment variable.
    Env {
        /// The variable's name.
        variable: String,
    },
    /// An option of the command line.
    CommandLine {
        /// The option as the user types it, `--port` for example.
        flag: &'static str,
    },
    /// A parameter of the model's registration: a management request, or the model's entry in
    /// `load_models`.
    Request {
        /// The parameter's name.
        parameter: String,
    },
    /// Found by looking at the machine or at the model's files.
    Found {
        /// What was looked at.
        path: PathBuf,
    },
}

impl Source {
    /// Whether the value is the built-in default.
    pub fn is_default(&self) -> bool {
        matches!(self, Self::Default)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env { variable } => write!(f, "environment {variable}"),
            Self::CommandLine { flag } => write!(f, "command line {flag}"),
            Self::Request { parameter } => write!(f, "registration parameter {parameter}"),
            Self::Found { path } => write!(f, "{}", path.display()),
        }
    }
}
