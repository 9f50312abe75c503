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
    #[error("{}: model_type = {found:?}: no such architecture here; known are {known}", file.display())]
    UnknownFamily {
        /// The config file.
        file: PathBuf,
        /// What it says.
        found: String,
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
    /// A tensor that the description calls for is in none of the files.
    #[error("{files}: tensor {name} is missing, which should have shape {shape:?} ({keys})")]
    MissingTensor {
        /// The files that were searched.
        files: String,
        /// Its name in a checkpoint, with alternatives.
        name: String,
        /// The shape it should have.
        shape: Vec<usize>,
        /// The config keys that the shape follows from.
        keys: String,
    },
    /// A tensor has another shape than the config calls for.
    #[error("{}: tensor {name} has shape {found:?}, but config.json calls for {expected:?} ({keys})", file.display())]
    ShapeMismatch {
        /// The file that holds the tensor.
        file: PathBuf,
        /// Its name in the checkpoint.
        name: String,
        /// The shape it has.
        found: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
        /// The config keys that the shape follows from.
        keys: String,
    },
    /// A tensor has a data type that weights can't have.
    #[error("{}: tensor {name} has data type {found}, but weights are floating-point numbers", file.display())]
    NotFloat {
        /// The file that holds the tensor.
        file: PathBuf,
        /// Its name in the checkpoint.
        name: String,
        /// Its data type.
        found: String,
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
