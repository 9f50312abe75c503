//! Which files hold a model's weights.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::index::ShardIndex;
use super::tensor::Layout;
use super::{Place, QuantizationConfig, Weights, groups, safetensors, torch};
use crate::error::{ArtifactError, shorten};
use crate::gguf;
use crate::mapping::MappedFile;
use crate::model_config::config_json;
use crate::model_dir::ModelDir;

/// How the tensors of one file are found.
type ReadHeader = fn(&MappedFile) -> Result<Vec<(String, Layout)>, ArtifactError>;

/// The usual files, the preferred first.
const CHECKPOINTS: [(&str, ReadHeader); 2] =
    [("model.safetensors", safetensors::read_header), ("pytorch_model.bin", torch::read_header)];

pub(super) fn open(dir: &ModelDir) -> Result<Weights, ArtifactError> {
    if let Some(parts) = gguf::find(dir)? {
        return open_gguf(parts);
    }
    let mut weights = open_checkpoint(dir)?;
    let config = config_json(dir)?;
    let quantization = config.as_ref().map(QuantizationConfig::read).transpose()?.flatten();
    if let Some(quantization) = quantization {
        groups::join(&mut weights, &quantization)?;
        weights.quantization = Some(quantization);
    }
    Ok(weights)
}

fn open_checkpoint(dir: &ModelDir) -> Result<Weights, ArtifactError> {
    for (name, read_header) in CHECKPOINTS {
        if let Some(path) = dir.file(name)? {
            return collect(vec![(name.to_owned(), path)], None, read_header);
        }
        if let Some(path) = dir.file(&format!("{name}.index.json"))? {
            let index = ShardIndex::read(&path)?;
            return collect(index.shards(dir)?, Some(&index), read_header);
        }
    }
    let (name, path) = only_safetensors(dir)?;
    collect(vec![(name, path)], None, safetensors::read_header)
}

/// The files of an adapter's weights, the preferred first.
const ADAPTERS: [(&str, ReadHeader); 2] = [
    ("adapter_model.safetensors", safetensors::read_header),
    ("adapter_model.bin", torch::read_header),
];

pub(super) fn open_adapter(dir: &ModelDir) -> Result<Weights, ArtifactError> {
    for (name, read_header) in ADAPTERS {
        if let Some(path) = dir.file(name)? {
            return collect(vec![(name.to_owned(), path)], None, read_header);
        }
    }
    let wanted = "the adapter's weights: expected adapter_model.safetensors or adapter_model.bin";
    Err(ArtifactError::MissingFile { dir: dir.path().to_owned(), wanted: wanted.to_owned() })
}

/// Whether the directory holds files that weights are read from rather than from a GGUF model.
pub(crate) fn has_hugging_face_weights(dir: &ModelDir) -> Result<bool, ArtifactError> {
    for (name, _) in CHECKPOINTS {
        if dir.file(name)?.is_some() || dir.file(&format!("{name}.index.json"))?.is_some() {
            return Ok(true);
        }
    }
    Ok(!list_safetensors(dir)?.is_empty())
}

/// Maps the parts of a GGUF model. The first has the metadata.
fn open_gguf(paths: Vec<PathBuf>) -> Result<Weights, ArtifactError> {
    let files: Vec<MappedFile> =
        paths.iter().map(|path| MappedFile::open(path)).collect::<Result<_, _>>()?;
    let mut tensors = BTreeMap::new();
    for found in gguf::read_tensors(&files)? {
        let gguf::FoundTensor { name, file_idx, layout } = found;
        match tensors.entry(name) {
            Entry::Vacant(slot) => drop(slot.insert(Place { file_idx, layout })),
            Entry::Occupied(slot) => return Err(duplicate(&paths[file_idx], slot.key())),
        }
    }
    let files = files.into_iter().map(Arc::new).collect();
    Ok(Weights { files, paths, tensors, quantization: None })
}

/// Maps `files` and puts their tensors into one map.
fn collect(
    files: Vec<(String, PathBuf)>,
    index: Option<&ShardIndex>,
    read_header: ReadHeader,
) -> Result<Weights, ArtifactError> {
    let mut weights = Weights {
        files: Vec::new(),
        paths: Vec::new(),
        tensors: BTreeMap::new(),
        quantization: None,
    };
    for (file_idx, (shard, path)) in files.into_iter().enumerate() {
        let file = MappedFile::open(&path)?;
        for (name, layout) in read_header(&file)? {
            let owner = index.and_then(|index| index.shard_of(&name));
            match weights.tensors.entry(name) {
                Entry::Vacant(slot) => {
                    // The index says where a tensor that is in two shards is to be read from.
                    if owner.is_none_or(|owner| owner == shard) {
                        slot.insert(Place { file_idx, layout });
                    }
                }
                Entry::Occupied(slot) => {
                    if owner.is_none() {
                        return Err(duplicate(&path, slot.key()));
                    }
                    if owner == Some(shard.as_str()) {
                        *slot.into_mut() = Place { file_idx, layout };
                    }
                }
            }
        }
        weights.files.push(Arc::new(file));
        weights.paths.push(path);
    }
    if let Some(index) = index {
        index.check_complete(|tensor| weights.contains(tensor))?;
    }
    Ok(weights)
}

fn duplicate(path: &Path, tensor: &str) -> ArtifactError {
    ArtifactError::Tensor {
        path: path.to_owned(),
        tensor: shorten(tensor),
        reason: "is there twice, and nothing says which to read".to_owned(),
    }
}

/// The only `*.safetensors` file of the directory.
fn only_safetensors(dir: &ModelDir) -> Result<(String, PathBuf), ArtifactError> {
    let missing = |wanted| ArtifactError::MissingFile { dir: dir.path().to_owned(), wanted };
    let found = list_safetensors(dir)?;
    match found.as_slice() {
        [] => Err(missing(
            "weights: expected model.safetensors, pytorch_model.bin, shards with their \
             .index.json, or a .gguf file"
                .to_owned(),
        )),
        [name] => match dir.file(name)? {
            Some(path) => Ok((name.clone(), path)),
            None => Err(missing(format!("weights: {name:?} leads nowhere"))),
        },
        several => Err(missing(format!(
            "model.safetensors.index.json that says which of its {} .safetensors files holds what \
             ({}, …)",
            several.len(),
            several.iter().take(3).map(|name| shorten(name)).collect::<Vec<_>>().join(", ")
        ))),
    }
}

/// The names of the directory's visible `*.safetensors` files, sorted.
fn list_safetensors(dir: &ModelDir) -> Result<Vec<String>, ArtifactError> {
    let io = |source| ArtifactError::Io { path: dir.path().to_owned(), action: "list", source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir.path()).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let Some(name) = name.to_str() else { continue };
        let is_adapter = ADAPTERS.iter().any(|(adapter, _)| *adapter == name);
        if name.ends_with(".safetensors") && !name.starts_with('.') && !is_adapter {
            found.push(name.to_owned());
        }
    }
    found.sort();
    Ok(found)
}
