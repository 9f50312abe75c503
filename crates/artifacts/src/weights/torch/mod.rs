//! PyTorch checkpoints, `pytorch_model.bin`, read without executing anything.
//!
//! A checkpoint is a pickle, that is a program for a small stack machine, and the data its tensors
//! refer to. [`pickle`] runs the program on a machine that has containers, numbers, strings and
//! tensors, and nothing else: whatever else the program names is refused by name. [`zipped`] (since
//! PyTorch 1.6) and [`legacy`] know where the data lie; they stay there and are mapped.

mod globals;
mod heap;
mod legacy;
mod pickle;
mod reader;
mod state_dict;
mod zipped;

use std::ops::Range;

use super::tensor::Layout;
use crate::error::ArtifactError;
use crate::mapping::MappedFile;
use heap::{Heap, Value};

/// Largest pickle, in bytes. A tensor takes about 150.
const MAX_PICKLE_BYTES: usize = 16 << 20;

/// The tensors of one file.
pub(super) fn read_header(file: &MappedFile) -> Result<Vec<(String, Layout)>, ArtifactError> {
    let tensors = match file.bytes().starts_with(b"PK\x03\x04") {
        true => zipped::read(file.bytes()),
        false => legacy::read(file.bytes()),
    };
    tensors.map_err(|fault| fault.at(file))
}

/// Finds the data of a storage in the file, by its key.
type Locate<'a> = Box<dyn FnMut(&str) -> Result<Range<usize>, String> + 'a>;

/// A pickle that was run: what it left and where its storages' data are.
struct Checkpoint<'a> {
    heap: Heap,
    root: Value,
    locate: Locate<'a>,
    file_bytes: usize,
}

/// What stopped the reading of a checkpoint.
enum Fault {
    /// It names something that is not needed for tensors.
    Refused(String),
    /// Its pickle is broken at this byte.
    Pickle { offset: usize, reason: String },
    /// The file around the pickle is broken.
    File(String),
    /// One tensor is impossible.
    Tensor { tensor: String, reason: String },
}

impl Fault {
    fn at(self, file: &MappedFile) -> ArtifactError {
        let path = file.path().to_owned();
        match self {
            Self::Refused(global) => ArtifactError::PickleRefused { path, global },
            Self::Pickle { offset, reason } => ArtifactError::Pickle { path, offset, reason },
            Self::File(reason) => ArtifactError::WeightFile { path, reason },
            Self::Tensor { tensor, reason } => ArtifactError::Tensor { path, tensor, reason },
        }
    }
}
