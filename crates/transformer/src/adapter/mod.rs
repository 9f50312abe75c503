//! Low-rank adapters (LoRA, arXiv 2106.09685) as PEFT saves them.
//!
//! An adapter adds `scale * B (A x)` to what a matrix makes of `x`. It is used in one of two ways:
//! added to the weights when these are read ([`CanonicalWeights::with_adapter`]), or computed beside
//! them, so that each sequence of a batch may have another one ([`Adapter::read`]). Its names are
//! those of transformers' modules; here they are the description's, and a matrix that is fused in the
//! checkpoint gives each of its parts the rows that belong to it.
//!
//! [`CanonicalWeights::with_adapter`]: crate::CanonicalWeights::with_adapter

mod low_rank;
mod names;
mod settings;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use drivetrain_artifacts::{ModelDir, Tensor, UnpackOptions, Weights};

use crate::architecture::Architecture;
use crate::error::TransformerError;
use crate::weights::Described;
pub use low_rank::LowRank;
use names::{Part, Targets};
use settings::Settings;

/// The files of an adapter, opened; not yet held against a model.
#[derive(Debug)]
pub struct AdapterFiles {
    settings: Settings,
    weights: Weights,
}

impl AdapterFiles {
    /// Whether `dir` holds an adapter.
    pub fn is_in(dir: &ModelDir) -> bool {
        matches!(dir.file(settings::CONFIG), Ok(Some(_)))
    }

    /// Opens the adapter in `dir`: `adapter_config.json` with `adapter_model.safetensors` or
    /// `adapter_model.bin`.
    ///
    /// # Errors
    /// A file is missing or broken, or the adapter is of a kind that is not described here; the
    /// error names file and key.
    pub fn open(dir: &Path) -> Result<Self, TransformerError> {
        let dir = ModelDir::open(dir, &UnpackOptions::default())?;
        Ok(Self { settings: Settings::read(&dir)?, weights: Weights::open_adapter(&dir)? })
    }

    /// The tensors.
    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The low-rank parts by canonical module, and the names of the tensors that are none.
    fn parts(&self, model: Described<'_>) -> Result<Parts, TransformerError> {
        let targets = Targets::of(model);
        let mut raw: BTreeMap<&str, RawModule<'_>> = BTreeMap::new();
        let mut others = Vec::new();
        for name in self.weights.names() {
            let Some(tensor) = self.weights.get(name) else { continue };
            match names::part(name) {
                (module, Some(part)) => raw.entry(module).or_default().set(part, tensor),
                (own, None) => others.push((names::own_name(own), tensor.name().to_owned())),
            }
        }
        let mut parts = Parts { modules: BTreeMap::new(), others };
        let mut unknown = Vec::new();
        for (module, raw) in raw {
            let found = targets.get(module);
            if found.is_empty() {
                unknown.push(module.to_owned());
                continue;
            }
            let matrices = raw.matrices(self, module)?;
            for target in found {
                let change = matrices.of(self, module, target)?;
                parts.modules.insert(target.module.clone(), change);
            }
        }
        if unknown.is_empty() {
            return Ok(parts);
        }
        Err(self.bad(format!(
            "it adapts {}: the model (model_type {}) has no such matrices",
            names::list(&unknown),
            model.architecture.family
        )))
    }

    fn bad(&self, what: String) -> TransformerError {
        TransformerError::Adapter { file: self.settings.json.path().to_owned(), what }
    }
}

/// What an adapter does to a matrix.
#[derive(Debug)]
pub(crate) struct Change {
    low_rank: LowRank,
    /// Norms of the rows after the change: DoRA (arXiv 2402.09353).
    magnitude: Option<Vec<f32>>,
}

impl Change {
    /// Adds the change to `data`, the matrix `[n_out, n_in]`.
    pub(crate) fn apply(&self, data: &mut [f32]) {
        self.low_rank.add_to(data);
        let Some(magnitude) = &self.magnitude else { return };
        for (row, wanted) in data.chunks_exact_mut(self.low_rank.n_in()).zip(magnitude) {
            let norm = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            let factor = (f64::from(*wanted) / norm) as f32;
            row.iter_mut().for_each(|x| *x *= factor);
        }
    }
}

/// An adapter's parts.
struct Parts {
    /// By canonical module.
    modules: BTreeMap<String, Change>,
    /// Tensors that stand for the model's own: their names as the model says them, and as the file
    /// does.
    others: Vec<(String, String)>,
}

/// An adapter that is computed beside the model's weights.
#[derive(Debug)]
pub struct Adapter {
    modules: BTreeMap<String, LowRank>,
}

impl Adapter {
    /// Reads the low-rank matrices of `files` for the modules of `architecture`.
    ///
    /// # Errors
    /// A tensor is missing, has a shape that does not fit the model, or is for a module that the model
    /// does not have; or the adapter replaces weights, which can only be merged.
    pub fn read(
        files: &AdapterFiles,
        architecture: &Architecture,
    ) -> Result<Self, TransformerError> {
        let parts = files.parts(Described::new(architecture)?)?;
        let merge = "merge it instead: put it into the model's directory, or name it by \
                     option.model_id";
        if !parts.others.is_empty() {
            let names: Vec<String> = parts.others.into_iter().map(|(name, _)| name).collect();
            return Err(TransformerError::AdapterUnsupported {
                file: files.settings.json.path().to_owned(),
                what: format!("it replaces {} (modules_to_save, bias)", names::list(&names)),
                wanted: format!("low-rank parts alone beside other adapters; {merge}"),
            });
        }
        let mut modules = BTreeMap::new();
        for (module, change) in parts.modules {
            if change.magnitude.is_some() {
                return Err(TransformerError::AdapterUnsupported {
                    file: files.settings.json.path().to_owned(),
                    what: "use_dora = true".to_owned(),
                    wanted: format!("low-rank parts alone beside other adapters; {merge}"),
                });
            }
            modules.insert(module, change.low_rank);
        }
        Ok(Self { modules })
    }

    /// What it adds to the matrix, or the table, of a canonical module.
    pub fn get(&self, module: &str) -> Option<&LowRank> {
        self.modules.get(module)
    }

    /// The canonical modules that it changes.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.modules.keys().map(String::as_str)
    }

    /// The highest rank of its matrices.
    pub fn max_rank(&self) -> usize {
        self.modules.values().map(LowRank::rank).max().unwrap_or(0)
    }

    /// Bytes of its matrices.
    pub fn bytes(&self) -> u64 {
        self.modules.values().map(LowRank::bytes).sum()
    }
}

/// An adapter that becomes a part of the weights as they are read.
#[derive(Debug, Default)]
pub(crate) struct Merge {
    /// By canonical module.
    changes: BTreeMap<String, Change>,
    /// Names of tensors in the adapter's file by the names that the model has for them.
    replaced: BTreeMap<String, String>,
}

impl Merge {
    pub(crate) fn new(
        files: &AdapterFiles,
        model: Described<'_>,
    ) -> Result<Self, TransformerError> {
        let parts = files.parts(model)?;
        Ok(Self { changes: parts.modules, replaced: parts.others.into_iter().collect() })
    }

    /// What happens to a canonical module's matrix.
    pub(crate) fn change(&self, module: &str) -> Option<&Change> {
        self.changes.get(module)
    }

    /// The name in the adapter's file of the tensor that stands for the model's `name`.
    pub(crate) fn replacement(&self, name: &str) -> Option<&str> {
        self.replaced.get(name).map(String::as_str)
    }

    /// Names of the model's tensors that the adapter has others for.
    pub(crate) fn replaced(&self) -> impl Iterator<Item = &str> {
        self.replaced.keys().map(String::as_str)
    }
}

/// The tensors of one of PEFT's modules.
#[derive(Default)]
struct RawModule<'a> {
    down: Option<Tensor<'a>>,
    up: Option<Tensor<'a>>,
    magnitude: Option<Tensor<'a>>,
    is_table: bool,
}

impl<'a> RawModule<'a> {
    fn set(&mut self, part: Part, tensor: Tensor<'a>) {
        let slot = match part {
            Part::Down => &mut self.down,
            Part::Up => &mut self.up,
            // A table's factors come in the order of a matrix that is turned round.
            Part::TableUp => {
                self.is_table = true;
                &mut self.up
            }
            Part::TableDown => {
                self.is_table = true;
                &mut self.down
            }
            Part::Magnitude => &mut self.magnitude,
        };
        *slot = Some(tensor);
    }

    /// Both factors, of the same rank.
    fn matrices(self, files: &AdapterFiles, module: &str) -> Result<Matrices, TransformerError> {
        let (Some(down), Some(up)) = (self.down, self.up) else {
            return Err(files.bad(format!("{module} has one matrix of two, lora_A and lora_B")));
        };
        let shape = |tensor: &Tensor<'_>| match *tensor.shape() {
            [rows, cols] => Ok((rows, cols)),
            _ => Err(files.bad(format!(
                "{} has shape {:?}; a matrix was expected",
                tensor.name(),
                tensor.shape()
            ))),
        };
        let (mut a, mut b) = (shape(&down)?, shape(&up)?);
        let (mut down_values, mut up_values) = (down.to_f32_vec()?, up.to_f32_vec()?);
        if self.is_table {
            // lora_embedding_A is [rank, rows], lora_embedding_B [dim, rank].
            (down_values, up_values) =
                (low_rank::transposed(&down_values, a), low_rank::transposed(&up_values, b));
            (a, b) = ((a.1, a.0), (b.1, b.0));
        }
        let ((rank, n_in), (n_out, up_rank)) = (a, b);
        if rank != up_rank || rank == 0 {
            return Err(files.bad(format!(
                "{module}: lora_A and lora_B have ranks {rank} and {up_rank}; one above 0 was expected"
            )));
        }
        let scale = files.settings.scale(module, rank);
        up_values.iter_mut().for_each(|x| *x *= scale);
        let magnitude = self.magnitude.map(|tensor| tensor.to_f32_vec()).transpose()?;
        if self.is_table && magnitude.is_some() {
            return Err(files.bad(format!("{module}: use_dora is not supported for tables")));
        }
        Ok(Matrices { down: down_values.into(), up: up_values, rank, n_in, n_out, magnitude })
    }
}

/// The factors of a module of PEFT's, which may be several of the description's.
struct Matrices {
    down: Arc<[f32]>,
    up: Vec<f32>,
    rank: usize,
    n_in: usize,
    n_out: usize,
    magnitude: Option<Vec<f32>>,
}

impl Matrices {
    /// The part for one canonical module.
    fn of(
        &self,
        files: &AdapterFiles,
        module: &str,
        target: &names::Target,
    ) -> Result<Change, TransformerError> {
        let (rows, [n_out, n_in]) = (target.rows, target.shape);
        let rows_of_all = if rows.is_all() { n_out } else { rows.total };
        if self.n_in != n_in || self.n_out != rows_of_all {
            return Err(files.bad(format!(
                "{module} is for a matrix of {} by {}; the model's is {rows_of_all} by {n_in}",
                self.n_out, self.n_in
            )));
        }
        let cut = |data: &[f32], width: usize| -> Vec<f32> {
            let blocks = rows.starts().flat_map(|start| {
                data.get(start * width..(start + rows.block) * width).unwrap_or_default()
            });
            blocks.copied().collect()
        };
        let magnitude = match &self.magnitude {
            Some(all) if all.len() == self.n_out => Some(cut(all, 1)),
            Some(_) => {
                return Err(
                    files.bad(format!("{module}: lora_magnitude_vector has a wrong length"))
                );
            }
            None => None,
        };
        let low_rank = LowRank::new(Arc::clone(&self.down), cut(&self.up, self.rank), self.rank);
        Ok(Change { low_rank, magnitude })
    }
}

#[cfg(test)]
mod tests;
