//! Where a model's files come from and what they say.
//!
//! [`ModelDir`] opens a directory or an archive; [`ModelConfig`] and [`GenerationConfig`] read its
//! JSON, [`Tokenizer`] its vocabulary, and [`Weights`] maps its tensors. Everything here comes from
//! outside and is believed only after it was checked: sizes before memory is taken, paths before
//! they are opened, offsets before they are followed. Nothing in a file is executed.
#![deny(unsafe_code)]

mod adapter;
mod archive;
mod chat_template;
mod error;
mod file;
mod generation;
mod gguf;
mod json;
mod key_record;
mod mapping;
mod model_config;
mod model_dir;
mod tokenizer;

mod weights;

pub use adapter::AdapterBase;
pub use archive::unpack;
pub use chat_template::ChatTemplates;
pub use error::ArtifactError;
pub use generation::{EarlyStopping, GenerationConfig};
pub use json::JsonFile;
pub use key_record::KeyRecord;
pub use model_config::ModelConfig;
pub use model_dir::{ModelDir, UnpackOptions};
pub use tokenizer::{DecodeSpecial, DecodeStream, Encoding, SpecialTokens, Tokenizer};
pub use weights::{
    DType, Groups, HeldTensor, QuantizationConfig, QuantizationMethod, RowOrder, Tensor, Weights,
};
