//! Why a model's files can't be described or read.

use std::path::PathBuf;

use drivetrain_artifacts::ArtifactError;

/// Why a model's files can't be described or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransformerError {
    /// A file is unreadable, or a value in it is missing or impossible.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// `model_type` is no family that is known here.
    #[error("{}: model_type = {found:?}: no such architecture here; the nearest by name is {nearest}, known are {known}", file.display())]
    UnknownFamily {
        /// The config file.
        file: PathBuf,
        /// What it says.
        found: String,
        /// The known family with the most similar name.
        nearest: &'static str,
        /// What it could say.
        known: String,
    },
    /// A key has a value that the description can't express.
    #[error("{}: {key} = {found}: not supported for {family} models; supported: {wanted}", file.display())]
    ConfigUnsupported {
        /// The config file.
        file: PathBuf,
        /// The family.
        family: &'static str,
        /// The key.
        key: String,
        /// Its value, as JSON.
        found: String,
        /// What it could be.
        wanted: String,
    },
    /// Tensors are missing, or not as the config calls for.
    #[error("{files}: {}", list(.problems, .unused))]
    Tensors {
        /// The files that were searched.
        files: String,
        /// What is wrong, in the order of the modules.
        problems: Vec<TensorProblem>,
        /// Names of tensors in the files that the description has no use for.
        unused: Vec<String>,
    },
    /// There is no adapter where one was expected.
    #[error("{}: adapter_config.json is missing, which says how the adapter is applied", dir.display())]
    NoAdapter {
        /// The directory.
        dir: PathBuf,
    },
    /// An adapter does not fit the model, or its tensors don't fit each other.
    #[error("{}: {what}", file.display())]
    Adapter {
        /// The adapter's config file.
        file: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// An adapter is of a kind that can't be used, or not in this way.
    #[error("{}: {what}: not supported; supported: {wanted}", file.display())]
    AdapterUnsupported {
        /// The adapter's config file.
        file: PathBuf,
        /// What it asks for.
        what: String,
        /// What it could.
        wanted: String,
    },
    /// A caller's buffer does not fit the tensor.
    #[error("a buffer of {found} values was given for tensor {name}, which has {expected}")]
    BufferSize {
        /// The tensor's canonical name.
        name: String,
        /// Values the buffer holds.
        found: usize,
        /// Values the tensor has.
        expected: usize,
    },
    /// A caller asked for a tensor that this model does not have.
    #[error("this model has no tensor {name}")]
    NoSuchTensor {
        /// The canonical name asked for.
        name: String,
    },
}

/// What is wrong with a tensor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorProblem {
    /// It is in none of the files.
    #[error("tensor {name} is missing, which should have shape {shape:?} ({keys})")]
    Missing {
        /// Its name in a checkpoint, with alternatives.
        name: String,
        /// The shape it should have.
        shape: Vec<usize>,
        /// The config keys that the shape follows from.
        keys: String,
    },
    /// It has another shape than the config calls for.
    #[error("tensor {name} has shape {found:?}, but config.json calls for {expected:?} ({keys})")]
    Shape {
        /// Its name in the checkpoint.
        name: String,
        /// The shape it has.
        found: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
        /// The config keys that the shape follows from.
        keys: String,
    },
    /// It has a data type that weights can't have.
    #[error("tensor {name} has data type {found}, but weights are floating-point numbers")]
    NotFloat {
        /// Its name in the checkpoint.
        name: String,
        /// Its data type.
        found: String,
    },
}

/// Most problems, and most unused tensors, that a message names.
const LISTED: usize = 24;

fn list(problems: &[TensorProblem], unused: &[String]) -> String {
    let more =
        |n: usize| if n > LISTED { format!("; and {} more", n - LISTED) } else { String::new() };
    let lines: Vec<String> = problems.iter().take(LISTED).map(ToString::to_string).collect();
    let mut text = lines.join("; ") + &more(problems.len());
    if !unused.is_empty() {
        let names: Vec<&str> = unused.iter().take(LISTED).map(String::as_str).collect();
        text += &format!("; not used: {}{}", names.join(", "), more(unused.len()));
    }
    text
}
