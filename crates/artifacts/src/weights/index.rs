//! `*.index.json`: which shard holds which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::error::{ArtifactError, shorten};
use crate::json::JsonFile;
use crate::model_dir::ModelDir;

/// Largest index file, in bytes. That of a model of 50,000 tensors has about 5 MB.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// A sharded checkpoint's files.
pub(super) struct ShardIndex {
    path: PathBuf,
    /// Tensor name to file name.
    weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    pub(super) fn read(path: &Path) -> Result<Self, ArtifactError> {
        let json = JsonFile::read(path, MAX_INDEX_BYTES)?;
        const WANTED: &str = "an object of tensor names and the files that hold them";
        let map = json
            .get("weight_map")?
            .and_then(|value| value.as_object())
            .filter(|map| !map.is_empty())
            .ok_or_else(|| json.invalid("weight_map", WANTED))?;
        let mut weight_map = BTreeMap::new();
        for (tensor, file) in map {
            let Some(file) = file.as_str() else {
                return Err(ArtifactError::Tensor {
                    path: path.to_owned(),
                    tensor: shorten(tensor),
                    reason: "its weight_map entry is not a file name".to_owned(),
                });
            };
            weight_map.insert(tensor.clone(), file.to_owned());
        }
        Ok(Self { path: path.to_owned(), weight_map })
    }

    /// The shards' paths with their names, each once. All must be there and lie inside the model.
    pub(super) fn shards(&self, dir: &ModelDir) -> Result<Vec<(String, PathBuf)>, ArtifactError> {
        let names: BTreeSet<&String> = self.weight_map.values().collect();
        let mut shards = Vec::with_capacity(names.len());
        for name in names {
            let path = dir.file(name)?.ok_or_else(|| ArtifactError::WeightFile {
                path: self.path.clone(),
                reason: format!(
                    "names the shard {:?}, which is not in the model's directory",
                    shorten(name)
                ),
            })?;
            shards.push((name.clone(), path));
        }
        Ok(shards)
    }

    /// The file that should hold `tensor`.
    pub(super) fn shard_of(&self, tensor: &str) -> Option<&str> {
        self.weight_map.get(tensor).map(String::as_str)
    }

    /// Checks that every tensor of the index was found in some shard.
    pub(super) fn check_complete(&self, found: impl Fn(&str) -> bool) -> Result<(), ArtifactError> {
        match self.weight_map.iter().find(|(tensor, _)| !found(tensor)) {
            None => Ok(()),
            Some((tensor, shard)) => Err(ArtifactError::Tensor {
                path: self.path.clone(),
                tensor: shorten(tensor),
                reason: format!("is not in {:?}, where the index puts it", shorten(shard)),
            }),
        }
    }
}
