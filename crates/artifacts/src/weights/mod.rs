//! A model's tensors, mapped from safetensors, PyTorch or GGUF files.

mod blocks;
mod dtype;
mod groups;
mod index;
mod open;
mod order;
mod safetensors;
mod tensor;
mod torch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

pub use dtype::DType;
pub use groups::{Groups, QuantizationConfig, QuantizationMethod};
pub(crate) use open::has_hugging_face_weights;
pub use order::RowOrder;
pub use tensor::{HeldTensor, Tensor};

use crate::error::ArtifactError;
use crate::mapping::MappedFile;
use crate::model_dir::ModelDir;
pub(crate) use tensor::{Layout, row_major};

/// All tensors of a model. Opening reads the headers only; data are read when they are touched.
#[derive(Debug)]
pub struct Weights {
    files: Vec<Arc<MappedFile>>,
    paths: Vec<PathBuf>,
    tensors: BTreeMap<String, Place>,
    quantization: Option<QuantizationConfig>,
}

/// A tensor's file, by its place in [`Weights::files`], and where it lies in it.
#[derive(Debug)]
struct Place {
    file_idx: usize,
    layout: Layout,
}

impl Weights {
    /// Maps the weights of a model. The first of these that is there is read: `model.safetensors`,
    /// `model.safetensors.index.json` and its shards, `pytorch_model.bin`,
    /// `pytorch_model.bin.index.json` and its shards, the only `*.safetensors` file, the only GGUF
    /// model. A GGUF file that was opened as the model itself goes before all.
    ///
    /// Matrices that GPTQ or AWQ packed (`config.json`: `quantization_config`) are tensors as any other,
    /// under the names that they have unpacked.
    ///
    /// # Errors
    /// There are no weights, a shard is missing or lies outside the model, or a file breaks its
    /// format; the error names the file and the tensor. Or matrices are packed in a way that can't be
    /// read; the error names the key.
    pub fn open(dir: &ModelDir) -> Result<Self, ArtifactError> {
        open::open(dir)
    }

    /// Maps the weights of an adapter as PEFT saves it: `adapter_model.safetensors`, else
    /// `adapter_model.bin`.
    ///
    /// # Errors
    /// Neither is there, or the file breaks its format; the error names file and tensor.
    pub fn open_adapter(dir: &ModelDir) -> Result<Self, ArtifactError> {
        open::open_adapter(dir)
    }

    /// How matrices are packed, if some are.
    pub fn quantization(&self) -> Option<&QuantizationConfig> {
        self.quantization.as_ref()
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<Tensor<'_>> {
        let (name, place) = self.tensors.get_key_value(name)?;
        let file = self.files.get(place.file_idx)?;
        let bytes = file.bytes().get(place.layout.span.clone())?;
        Some(Tensor { name, layout: &place.layout, bytes, beside: None, file })
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Bytes of all tensors; data that several tensors share count once.
    pub fn total_bytes(&self) -> u64 {
        self.distinct().map(|layout| layout.dtype.bytes_for(layout.n_elements) as u64).sum()
    }

    /// Elements of all tensors; data that several tensors share count once.
    pub fn n_parameters(&self) -> u64 {
        self.distinct().map(|layout| layout.n_elements as u64).sum()
    }

    /// How many elements there are of each type; data that several tensors share count once.
    pub fn dtypes(&self) -> BTreeMap<DType, u64> {
        let mut histogram = BTreeMap::new();
        for layout in self.distinct() {
            *histogram.entry(layout.dtype).or_default() += layout.n_elements as u64;
        }
        histogram
    }

    /// The files that hold the tensors.
    pub fn files(&self) -> &[PathBuf] {
        &self.paths
    }

    fn distinct(&self) -> impl Iterator<Item = &Layout> {
        let mut seen = BTreeSet::new();
        self.tensors
            .values()
            .filter(move |place| {
                let span = &place.layout.span;
                seen.insert((place.file_idx, span.start, span.end)) || span.is_empty()
            })
            .map(|place| &place.layout)
    }
}
