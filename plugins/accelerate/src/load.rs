//! Canonical weights to tensors on the device.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{Device, Tensor};
use drivetrain_engine::{EngineError, ErrorKind, Services};
use drivetrain_execution::{Runs, model_error};
use drivetrain_transformer::{
    Architecture, Attention, AttentionPositions, CanonicalWeights, EmbeddedPositions, FeedForward,
    FeedForwardForm, Layer, Norm, Norms, Rotary, Stack, TransformerError,
};
use rayon::prelude::*;

use crate::adapters::Additions;
use crate::attention::Scoring;
use crate::distances::Distances;
use crate::error;
use crate::feed_forward::{Experts, FeedForwardLayer, Network};
use crate::kernels::PositionBias;
use crate::layer::{BranchNorms, CrossAttention, LayerWeights, SelfAttention};
use crate::linear::Linear;
use crate::norm::NormLayer;
use crate::stack::{EmbeddingWeights, PositionRows, StackWeights};

const STAGE: &str = "loading weights";

/// Reads tensors, several at a time, and tells the host how far it is.
pub(crate) struct Loader<'a> {
    pub(crate) weights: &'a CanonicalWeights<'a>,
    pub(crate) device: &'a Device,
    pub(crate) services: &'a Services,
    /// The hidden size.
    dim: usize,
    done: AtomicU64,
    total: u64,
    /// Tables that may be tied, by the name they were first read under.
    tables: Mutex<HashMap<String, Tensor>>,
}

/// What the layers of a stack share.
struct Shared<'a> {
    rotary_idx: Option<usize>,
    /// Embedded distances, normed.
    distances: Option<&'a Tensor>,
}

type Loaded<T> = Result<T, EngineError>;

impl<'a> Loader<'a> {
    pub(crate) fn new(
        architecture: &Architecture,
        weights: &'a CanonicalWeights<'a>,
        device: &'a Device,
        services: &'a Services,
    ) -> Self {
        Self {
            weights,
            device,
            services,
            dim: architecture.dim as usize,
            done: AtomicU64::new(0),
            total: weights.total_bytes(),
            tables: Mutex::new(HashMap::new()),
        }
    }

    /// Whether the model has the tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.weights.contains(name)
    }

    /// A stack.
    pub(crate) fn stack(&self, stack: &Stack) -> Loaded<StackWeights> {
        let mut rotaries: Vec<Rotary> = Vec::new();
        let rotary_of: Vec<Option<usize>> = stack
            .layers
            .iter()
            .map(|layer| match &layer.self_attention.positions {
                AttentionPositions::Rotary(rotary) => {
                    let known = rotaries.iter().position(|known| known == rotary);
                    Some(known.unwrap_or_else(|| {
                        rotaries.push(rotary.clone());
                        rotaries.len() - 1
                    }))
                }
                _ => None,
            })
            .collect();
        let embedding = self.embedding(stack)?;
        let distances = self.distances(stack)?;
        let layers: Loaded<Vec<LayerWeights>> = stack
            .layers
            .par_iter()
            .zip(rotary_of)
            .enumerate()
            .map(|(idx, (layer, rotary_idx))| {
                let shared = Shared { rotary_idx, distances: distances.as_ref() };
                self.layer(&format!("{}.layers.{idx}", stack.name), layer, &shared)
            })
            .collect();
        let final_norm = self.norm(&format!("{}.final_norm", stack.name), stack.final_norm)?;
        let output_projection = stack
            .output_projection
            .map(|_| self.fused(stack.name, &["output_projection"]))
            .transpose()?;
        Ok(StackWeights { embedding, layers: layers?, final_norm, output_projection, rotaries })
    }

    fn embedding(&self, stack: &Stack) -> Loaded<EmbeddingWeights> {
        let embedding = &stack.embedding;
        let path = |part: &str| format!("{}.embedding.{part}", stack.name);
        let positions = match embedding.positions {
            EmbeddedPositions::None => PositionRows::None,
            EmbeddedPositions::Learned { offset, skipped, .. } => {
                let table = self.table(&format!("{}.weight", path("positions")))?;
                PositionRows::Table { table, offset, skipped }
            }
            EmbeddedPositions::Sinusoidal { .. } => {
                let name = format!("{}.weight", path("positions"));
                if self.has(&name) {
                    let table = self.table(&name)?;
                    PositionRows::Table { table, offset: 0, skipped: None }
                } else {
                    PositionRows::Sinusoidal
                }
            }
        };
        let token_types = (embedding.n_token_types > 0)
            .then(|| self.table(&format!("{}.weight", path("token_types"))))
            .transpose()?;
        let projection = embedding
            .projection
            .then(|| self.fused(&format!("{}.embedding", stack.name), &["projection"]))
            .transpose()?;
        Ok(EmbeddingWeights {
            tokens: self.table(&format!("{}.weight", path("tokens")))?,
            additions: Additions::default(),
            projection,
            scale: embedding.scale,
            positions,
            token_types,
            norm: self.norm(&path("norm"), embedding.norm)?,
        })
    }

    /// The stack's table of distances, normed: `[n_rows, dim]`.
    fn distances(&self, stack: &Stack) -> Loaded<Option<Tensor>> {
        let Some(table) = &stack.relative_table else { return Ok(None) };
        let name = format!("{}.relative", stack.name);
        let rows = self.table(&format!("{name}.weight"))?;
        match self.norm(&format!("{name}.norm"), table.norm)? {
            Some(norm) => norm.forward(&rows).map(Some).map_err(error::compute),
            None => Ok(Some(rows)),
        }
    }

    fn layer(&self, path: &str, layer: &Layer, shared: &Shared<'_>) -> Loaded<LayerWeights> {
        let branch = format!("{path}.self_attention");
        let cross_attention = layer
            .cross_attention
            .as_ref()
            .map(|spec| self.cross_attention(path, spec, layer.cross_attention_norms))
            .transpose()?;
        let feed_forward = format!("{path}.feed_forward");
        Ok(LayerWeights {
            self_attention: self.self_attention(&branch, &layer.self_attention, shared)?,
            self_attention_norms: self.norms(&branch, layer.self_attention_norms)?,
            cross_attention,
            feed_forward: self.feed_forward(&feed_forward, layer.feed_forward)?,
            feed_forward_norms: self.norms(&feed_forward, layer.feed_forward_norms)?,
            residual: layer.residual,
        })
    }

    fn self_attention(
        &self,
        branch: &str,
        spec: &Attention,
        shared: &Shared<'_>,
    ) -> Loaded<SelfAttention> {
        let qk_norms = match spec.qk_norm {
            None => None,
            norm => self
                .norm(&format!("{branch}.q_norm"), norm)?
                .zip(self.norm(&format!("{branch}.k_norm"), norm)?),
        };
        let rotary = match (&spec.positions, shared.rotary_idx) {
            (AttentionPositions::Rotary(rotary), Some(idx)) => Some((idx, rotary.pairs)),
            _ => None,
        };
        Ok(SelfAttention {
            qkv: self.fused(branch, &["q", "k", "v"])?,
            out: self.fused(branch, &["o"])?,
            scoring: self.scoring(branch, spec, shared.distances)?,
            qk_norms,
            rotary,
        })
    }

    /// What positions do to the scores of an attention.
    fn scoring(&self, branch: &str, spec: &Attention, table: Option<&Tensor>) -> Loaded<Scoring> {
        let n_heads = spec.n_heads;
        let bias = match &spec.positions {
            AttentionPositions::Alibi(alibi) => PositionBias::alibi(*alibi, n_heads),
            AttentionPositions::RelativeBuckets(buckets) => {
                let values = self.values(&[format!("{branch}.relative_bias.weight")])?;
                PositionBias::buckets(buckets, &values, n_heads as usize)
            }
            _ => PositionBias::None,
        };
        let distances = match (&spec.positions, table) {
            (AttentionPositions::Disentangled(kind), Some(table)) => {
                let of = |wanted: bool, own: &str, part: &str| {
                    let part = if kind.shared_projections { part } else { own };
                    wanted.then(|| self.by_head(branch, part, table, n_heads as usize)).transpose()
                };
                Some(Distances {
                    spec: *kind,
                    keys: of(kind.content_to_position, "relative_k", "k")?,
                    queries: of(kind.position_to_content, "relative_q", "q")?,
                })
            }
            _ => None,
        };
        Ok(Scoring { spec: spec.clone(), bias, distances })
    }

    /// Rows of `table` `[n_rows, dim]` through a projection: `[n_heads, head_dim, n_rows]`.
    fn by_head(&self, branch: &str, part: &str, table: &Tensor, n_heads: usize) -> Loaded<Tensor> {
        let projected = self.fused(branch, &[part])?.forward(table, &Runs::default());
        let by_head = projected.and_then(|rows| {
            let (n_rows, width) = rows.dims2()?;
            let heads = rows.reshape((n_rows, n_heads, width / n_heads))?;
            heads.permute((1, 2, 0))?.contiguous()
        });
        by_head.map_err(error::compute)
    }

    fn feed_forward(&self, path: &str, spec: FeedForward) -> Loaded<FeedForwardLayer> {
        let network = |path: &str, gated: bool| -> Loaded<Network> {
            let up: &[&str] = if gated { &["gate", "up"] } else { &["up"] };
            Ok(Network {
                activation: spec.activation,
                gated,
                up: self.fused(path, up)?,
                down: self.fused(path, &["down"])?,
            })
        };
        Ok(match spec.form {
            FeedForwardForm::Plain => FeedForwardLayer::Dense(network(path, false)?),
            FeedForwardForm::Gated => FeedForwardLayer::Dense(network(path, true)?),
            FeedForwardForm::Experts { n_experts, n_active } => {
                let networks =
                    (0..n_experts).map(|idx| network(&format!("{path}.experts.{idx}"), true));
                FeedForwardLayer::Experts(Experts {
                    router: self.fused(path, &["router"])?,
                    networks: networks.collect::<Loaded<_>>()?,
                    n_active: n_active as usize,
                })
            }
        })
    }

    fn cross_attention(
        &self,
        path: &str,
        spec: &Attention,
        norms: Norms,
    ) -> Loaded<(CrossAttention, BranchNorms)> {
        let branch = format!("{path}.cross_attention");
        let attention = CrossAttention {
            scoring: self.scoring(&branch, spec, None)?,
            q: self.fused(&branch, &["q"])?,
            kv: self.fused(&branch, &["k", "v"])?,
            out: self.fused(&branch, &["o"])?,
        };
        Ok((attention, self.norms(&branch, norms)?))
    }

    fn norms(&self, branch: &str, norms: Norms) -> Loaded<BranchNorms> {
        Ok(BranchNorms {
            before: self.norm(&format!("{branch}.norm_before"), norms.before)?,
            branch_out: self.norm(&format!("{branch}.norm_branch"), norms.branch_out)?,
            after: self.norm(&format!("{branch}.norm_after"), norms.after)?,
        })
    }

    pub(crate) fn norm(&self, path: &str, norm: Option<Norm>) -> Loaded<Option<NormLayer>> {
        let Some(norm) = norm else { return Ok(None) };
        let mut bias = if norm.bias { self.values(&[format!("{path}.bias")])? } else { Vec::new() };
        let mut weight = match norm.weight {
            true => self.values(&[format!("{path}.weight")])?,
            false => vec![1.0; self.dim],
        };
        weight.iter_mut().for_each(|w| *w += norm.weight_offset);
        bias.resize(weight.len(), 0.0);
        let n = weight.len();
        Ok(Some(NormLayer {
            kind: norm.kind,
            eps: norm.eps as f32,
            weight: self.tensor(weight, &[n])?,
            bias: self.tensor(bias, &[n])?,
        }))
    }

    /// Matrices of one input stacked into one: their outputs follow one another in a row. A part
    /// without a bias gets zeros if another part has one.
    fn fused(&self, path: &str, parts: &[&str]) -> Loaded<Linear> {
        let names = |what: &str| -> Vec<String> {
            parts.iter().map(|part| format!("{path}.{part}.{what}")).collect()
        };
        let weights = names("weight");
        let data = self.values(&weights)?;
        let inputs = self.get(&weights[0])?.shape().last().copied().unwrap_or(1);
        let rows: Loaded<Vec<usize>> =
            weights.iter().map(|name| Ok(self.get(name)?.shape()[0])).collect();
        let rows = rows?;
        let weight = self.tensor(data, &[rows.iter().sum(), inputs])?;
        let modules = parts.iter().map(|part| format!("{path}.{part}"));
        let modules = modules.zip(rows.iter().copied()).collect();
        let biases = names("bias");
        if !biases.iter().any(|name| self.has(name)) {
            return Ok(Linear::new(weight, None, modules));
        }
        let mut bias = Vec::with_capacity(rows.iter().sum());
        for (name, rows) in biases.into_iter().zip(rows) {
            let has = self.has(&name);
            bias.extend(if has { self.values(&[name])? } else { vec![0.0; rows] });
        }
        let n = bias.len();
        Ok(Linear::new(weight, Some(self.tensor(bias, &[n])?), modules))
    }

    /// A matrix that is only read, with its bias if it has one: the pooler.
    pub(crate) fn linear(&self, path: &str) -> Loaded<Linear> {
        let (parent, part) = path.rsplit_once('.').unwrap_or(("", path));
        if parent.is_empty() {
            let weight = self.table(&format!("{part}.weight"))?;
            let name = format!("{part}.bias");
            let bias = self.has(&name).then(|| self.table(&name)).transpose()?;
            let parts = vec![(part.to_owned(), weight.dim(0).map_err(error::compute)?)];
            return Ok(Linear::new(weight, bias, parts));
        }
        self.fused(parent, &[part])
    }

    /// A tensor that may be tied to one that was read before.
    pub(crate) fn table(&self, name: &str) -> Loaded<Tensor> {
        let first = self.weights.first_name(name).unwrap_or_else(|| name.to_owned());
        let known = |tables: &HashMap<String, Tensor>| tables.get(&first).cloned();
        if let Some(table) = self.tables.lock().ok().and_then(|tables| known(&tables)) {
            return Ok(table);
        }
        let shape = self.get(name)?.shape().to_vec();
        let table = self.tensor(self.values(&[name.to_owned()])?, &shape)?;
        if let Ok(mut tables) = self.tables.lock() {
            tables.insert(first, table.clone());
        }
        Ok(table)
    }

    fn get(&self, name: &str) -> Loaded<&drivetrain_transformer::CanonicalTensor<'a>> {
        self.weights.get(name).ok_or_else(|| {
            let error = TransformerError::NoSuchTensor { name: name.to_owned() };
            EngineError::wrap(ErrorKind::Internal, "loading the weights", &error)
        })
    }

    /// The values of tensors one after the other.
    fn values(&self, names: &[String]) -> Loaded<Vec<f32>> {
        let mut n = 0;
        for name in names {
            n += self.get(name)?.n_elements();
        }
        let mut data = vec![0.0f32; n];
        let mut rest = data.as_mut_slice();
        for name in names {
            if self.services.cancelled() {
                return Err(EngineError::new(ErrorKind::Cancelled, "loading was cancelled"));
            }
            let tensor = self.get(name)?;
            let (part, after) = rest.split_at_mut(tensor.n_elements());
            self.weights.read_f32(name, part).map_err(|error| model_error(&error))?;
            rest = after;
            let done = self.done.fetch_add(tensor.bytes(), Ordering::Relaxed) + tensor.bytes();
            self.services.progress(STAGE, done.min(self.total), self.total);
        }
        Ok(data)
    }

    fn tensor(&self, data: Vec<f32>, shape: &[usize]) -> Loaded<Tensor> {
        Tensor::from_vec(data, shape, self.device).map_err(error::compute)
    }
}
