//! GGUF files: a whole model in one file, or in numbered parts.
//!
//! The rest of the crate sees what it would see of a Hugging Face directory: tensors under that
//! family's names and in its layouts, a `config.json`, a tokenizer. [`find()`] says which files a
//! model has, [`Header`](header::Header) reads their metadata, [`architectures`] knows what GGUF
//! calls things.
//!
//! Source: the format's description, `ggml/docs/gguf.md`; names and layouts as `llama.cpp`'s
//! converters write them and `transformers` 5.24 reads them (`modeling_gguf_pytorch_utils.py`).

mod architectures;
mod config;
mod find;
mod header;
mod metadata;
mod rope;
mod tensors;
mod tokenizer;

use std::path::PathBuf;

pub(crate) use config::{config_json, tokenizer_config, unread_metadata};
pub(crate) use find::{find, is_gguf};
pub(crate) use tensors::{FoundTensor, read_tensors};
pub(crate) use tokenizer::definition;

use crate::error::ArtifactError;
use crate::mapping::MappedFile;

/// Maps the parts of a model.
fn open(paths: &[PathBuf]) -> Result<Vec<MappedFile>, ArtifactError> {
    paths.iter().map(|path| MappedFile::open(path)).collect()
}
