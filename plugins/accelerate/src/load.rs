//! Canonical weights to tensors on the device.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor};
use drivetrain_engine::{EngineError, ErrorKind, Services};
use drivetrain_execution::{Runs, model_error};
use drivetrain_transformer::{
    Architecture, Attention, AttentionPositions, CanonicalTensor, CanonicalWeights,
    EmbeddedPositions, FeedForward, FeedForwardForm, Layer, Norm, Norms, Rotary, Scratch, Stack,
    TransformerError,
};
use rayon::prelude::*;

use crate::adapters::Additions;
use crate::attention::Scoring;
use crate::distances::Distances;
use crate::error;
use crate::executor::Executor;
use crate::feed_forward::{Experts, FeedForwardLayer, Network};
use crate::file_rows::Reads;
use crate::forms::Forms;
use crate::kernels::PositionBias;
use crate::layer::{BranchNorms, CrossAttention, LayerWeights, SelfAttention};
use crate::linear::Linear;
use crate::matrix::{Buffer, Compute, Matrix};
use crate::memory::HEAD_PIECE;
use crate::norm::NormLayer;
use crate::placing::{Home, StackHomes};
use crate::stack::{
    EmbeddingWeights, LayerHome, PlacedLayer, PositionRows, StackWeights, TokenTable,
};

mod matrices;

const STAGE: &str = "loading weights";

/// Up to this many values of a tensor are made for a form: norms, biases and tables of positions.
const HOLLOW_VALUES: usize = 1 << 16;

/// What all readers of a model's weights share.
pub(crate) struct Source<'a> {
    pub(crate) weights: &'a CanonicalWeights<'a>,
    forms: Forms<'a, 'a>,
    services: &'a Services,
    /// The hidden size.
    dim: usize,
    done: AtomicU64,
    total: u64,
    /// Tables that may be tied, by the executor they are for and the name they were first read under.
    tables: Mutex<HashMap<(usize, String), Tensor>>,
    /// The same of matrices.
    matrices: Mutex<HashMap<(usize, String), Matrix>>,
    scratches: Mutex<Vec<Scratch>>,
    /// Buffers of weights that are no longer needed, to be filled again.
    spare: Mutex<Spare>,
    /// What matrices that stay in their file share.
    pub(crate) reads: Arc<Reads>,
}

/// Memory to be filled again, by the type of what it held.
#[derive(Debug, Default)]
struct Spare {
    floats: Vec<Vec<f32>>,
    halves: Vec<Vec<u16>>,
    bytes: Vec<Vec<u8>>,
}

impl Spare {
    fn clear(&mut self) {
        *self = Self::default();
    }
}

impl<'a> Source<'a> {
    pub(crate) fn new(
        architecture: &Architecture,
        forms: Forms<'a, 'a>,
        services: &'a Services,
    ) -> Self {
        Self {
            weights: forms.weights,
            forms,
            services,
            dim: architecture.dim as usize,
            done: AtomicU64::new(0),
            total: forms.weights.total_bytes(),
            tables: Mutex::default(),
            matrices: Mutex::default(),
            scratches: Mutex::default(),
            spare: Mutex::default(),
            reads: Arc::default(),
        }
    }

    /// Takes a buffer back.
    pub(crate) fn reuse(&self, buffer: Buffer) {
        if let Ok(mut spare) = self.spare.lock() {
            match buffer {
                Buffer::Floats(values) => spare.floats.push(values),
                Buffer::Halves(bits) => spare.halves.push(bits),
                Buffer::Bytes(bytes) => spare.bytes.push(bytes),
            }
        }
    }

    /// `n` values to be written over: a buffer that came back, or a new one. Where none that came back
    /// fits a large tensor they are of another shape than what is read from now on, and go first.
    fn buffer<T: Clone + Default>(
        &self,
        n: usize,
        kind: impl Fn(&mut Spare) -> &mut Vec<Vec<T>>,
    ) -> Vec<T> {
        if let Ok(mut spare) = self.spare.lock() {
            let own = kind(&mut spare);
            if let Some(at) = own.iter().position(|buffer| buffer.len() == n) {
                return own.swap_remove(at);
            }
            if (n * size_of::<T>()) as u64 > HEAD_PIECE {
                spare.clear();
            }
        }
        vec![T::default(); n]
    }
}

/// Reads tensors to one place, and tells the host how far it is.
#[derive(Clone, Copy)]
pub(crate) struct Loader<'s, 'a> {
    pub(crate) source: &'s Source<'a>,
    pub(crate) device: &'s Device,
    /// What multiplies with the matrices that are no f32.
    compute: &'s Arc<Compute>,
    /// The number of the executor whose device this is.
    executor: usize,
    /// Whether what is read is read again whenever it is needed.
    is_streaming: bool,
    /// Whether only the form is made, with small values of zero and without large ones.
    is_hollow: bool,
    /// Where matrices stay in their file.
    reads: Option<&'s Arc<Reads>>,
}

/// What the layers of a stack share.
pub(crate) struct Shared {
    /// The distinct rotations.
    rotaries: Vec<Rotary>,
    /// Which of them each layer has.
    rotary_of: Vec<Option<usize>>,
    /// Embedded distances, normed.
    distances: Option<Tensor>,
}

type Loaded<T> = Result<T, EngineError>;

/// The distinct rotations of a stack, and which of them each layer has.
fn rotaries(stack: &Stack) -> (Vec<Rotary>, Vec<Option<usize>>) {
    let mut rotaries: Vec<Rotary> = Vec::new();
    let of = stack.layers.iter().map(|layer| match &layer.self_attention.positions {
        AttentionPositions::Rotary(rotary) => {
            let known = rotaries.iter().position(|known| known == rotary);
            Some(known.unwrap_or_else(|| {
                rotaries.push(rotary.clone());
                rotaries.len() - 1
            }))
        }
        _ => None,
    });
    let of = of.collect();
    (rotaries, of)
}

impl<'s, 'a> Loader<'s, 'a> {
    /// A reader for the executor of this number.
    pub(crate) fn new(source: &'s Source<'a>, number: usize, executor: &'s Executor) -> Self {
        Self {
            source,
            device: &executor.device,
            compute: &executor.compute,
            executor: number,
            is_streaming: false,
            is_hollow: false,
            reads: None,
        }
    }

    /// The same for what is read again and again.
    pub(crate) fn streaming(self) -> Self {
        Self { is_streaming: true, ..self }
    }

    /// The same that leaves matrices in their file.
    pub(crate) fn in_file(self) -> Self {
        Self { reads: Some(&self.source.reads), ..self }
    }

    /// The same that makes the form only.
    fn hollow(self) -> Self {
        Self { is_hollow: true, ..self }
    }

    /// Whether the model has the tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.source.weights.contains(name)
    }

    /// What the layers of `stack` share.
    pub(crate) fn shared(&self, stack: &Stack) -> Loaded<Shared> {
        let (rotaries, rotary_of) = rotaries(stack);
        Ok(Shared { rotaries, rotary_of, distances: self.distances(stack)? })
    }

    /// A stack. `self` is for what is around its layers.
    pub(crate) fn stack(
        &self,
        stack: &Stack,
        homes: &StackHomes,
        executors: &'s [Arc<Executor>],
    ) -> Loaded<StackWeights> {
        let name = format!("{}.embedding.tokens.weight", stack.name);
        let tokens = match homes.tokens {
            Home::Disk => TokenTable::Streamed,
            Home::File => TokenTable::Resident(self.in_file().shared_matrix(&name)?),
            Home::On(_) | Home::Lent => {
                let number = homes.tokens.executor().unwrap_or(0);
                let own = executors.get(number).map(|e| Self::new(self.source, number, e));
                TokenTable::Resident(own.unwrap_or(*self).shared_matrix(&name)?)
            }
        };
        let embedding = self.embedding(stack, tokens)?;
        let shared = self.shared(stack)?;
        let placed = |idx: usize| -> Loaded<PlacedLayer> {
            let home = homes.layers.get(idx).copied().unwrap_or(Home::On(self.executor));
            let number = home.executor().unwrap_or(self.executor);
            let executor = executors.get(number).ok_or_else(|| {
                EngineError::internal(format!("layer {idx} is placed on executor {number}"))
            })?;
            let own = Self::new(self.source, number, executor);
            let weights = match home {
                Home::On(_) => LayerHome::Resident(own.layer(stack, idx, &shared)?),
                Home::File => LayerHome::InFile(own.in_file().layer(stack, idx, &shared)?),
                Home::Disk => LayerHome::Streamed(own.hollow().layer(stack, idx, &shared)?),
                Home::Lent => {
                    let cpu = executors.first().unwrap_or(executor);
                    let lender = Self::new(self.source, 0, cpu);
                    let layer = lender.layer(stack, idx, &lender.shared(stack)?)?;
                    let form = own.hollow().layer(stack, idx, &shared)?;
                    LayerHome::Lent { layer: Arc::new(layer), form }
                }
            };
            Ok(PlacedLayer { executor: Arc::clone(executor), weights })
        };
        let layers: Loaded<Vec<PlacedLayer>> =
            (0..stack.layers.len()).into_par_iter().map(placed).collect();
        let final_norm = self.norm(&format!("{}.final_norm", stack.name), stack.final_norm)?;
        let output_projection = stack
            .output_projection
            .map(|_| self.fused(stack.name, &["output_projection"]))
            .transpose()?;
        Ok(StackWeights {
            name: stack.name,
            device: self.device.clone(),
            embedding,
            layers: layers?,
            final_norm,
            output_projection,
            rotaries: shared.rotaries,
        })
    }

    fn embedding(&self, stack: &Stack, tokens: TokenTable) -> Loaded<EmbeddingWeights> {
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
            tokens,
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

    /// Layer `idx` of `stack`.
    pub(crate) fn layer(&self, stack: &Stack, idx: usize, shared: &Shared) -> Loaded<LayerWeights> {
        let path = format!("{}.layers.{idx}", stack.name);
        let Some(layer) = stack.layers.get(idx) else {
            return Err(EngineError::internal(format!("there is no {path}")));
        };
        let own = (shared.rotary_of.get(idx).copied().flatten(), shared.distances.as_ref());
        self.layer_at(&path, layer, own)
    }

    fn layer_at(
        &self,
        path: &str,
        layer: &Layer,
        (rotary_idx, distances): (Option<usize>, Option<&Tensor>),
    ) -> Loaded<LayerWeights> {
        let branch = format!("{path}.self_attention");
        let cross_attention = layer
            .cross_attention
            .as_ref()
            .map(|spec| self.cross_attention(path, spec, layer.cross_attention_norms))
            .transpose()?;
        let feed_forward = format!("{path}.feed_forward");
        Ok(LayerWeights {
            self_attention: self.self_attention(
                &branch,
                &layer.self_attention,
                (rotary_idx, distances),
            )?,
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
        (rotary_idx, distances): (Option<usize>, Option<&Tensor>),
    ) -> Loaded<SelfAttention> {
        let qk_norms = match spec.qk_norm {
            None => None,
            norm => self
                .norm(&format!("{branch}.q_norm"), norm)?
                .zip(self.norm(&format!("{branch}.k_norm"), norm)?),
        };
        let rotary = match (&spec.positions, rotary_idx) {
            (AttentionPositions::Rotary(rotary), Some(idx)) => Some((idx, rotary.pairs)),
            _ => None,
        };
        Ok(SelfAttention {
            qkv: self.fused(branch, &["q", "k", "v"])?,
            out: self.fused(branch, &["o"])?,
            scoring: self.scoring(branch, spec, distances)?,
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
            (AttentionPositions::Disentangled(kind), Some(table)) if !self.is_hollow => {
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
            kv: self.cross_keys_values(path)?,
            out: self.fused(&branch, &["o"])?,
        };
        Ok((attention, self.norms(&branch, norms)?))
    }

    /// What makes keys and values of the encoder's output, in the layer at `path`.
    pub(crate) fn cross_keys_values(&self, path: &str) -> Loaded<Linear> {
        self.fused(&format!("{path}.cross_attention"), &["k", "v"])
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
            false => vec![1.0; self.source.dim],
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
        let rows: Loaded<Vec<usize>> =
            weights.iter().map(|name| Ok(self.get(name)?.shape()[0])).collect();
        let rows = rows?;
        let matrices = (self.matrices(&weights)?, self.device);
        let modules = parts.iter().map(|part| format!("{path}.{part}"));
        let modules = modules.zip(rows.iter().copied()).collect();
        let biases = names("bias");
        if !biases.iter().any(|name| self.has(name)) {
            return Ok(Linear::new(matrices, None, modules));
        }
        let mut bias = Vec::with_capacity(rows.iter().sum());
        for (name, rows) in biases.into_iter().zip(rows) {
            let has = self.has(&name);
            bias.extend(if has { self.values(&[name])? } else { vec![0.0; rows] });
        }
        let n = bias.len();
        Ok(Linear::new(matrices, Some(self.tensor(bias, &[n])?), modules))
    }

    /// A matrix that is only read, with its bias if it has one: the pooler.
    pub(crate) fn linear(&self, path: &str) -> Loaded<Linear> {
        let (parent, part) = path.rsplit_once('.').unwrap_or(("", path));
        if parent.is_empty() {
            let name = format!("{part}.weight");
            let n_out = self.get(&name)?.shape().first().copied().unwrap_or(0);
            let weight = vec![self.shared_matrix(&name)?];
            let name = format!("{part}.bias");
            let bias = self.has(&name).then(|| self.table(&name)).transpose()?;
            return Ok(Linear::new((weight, self.device), bias, vec![(part.to_owned(), n_out)]));
        }
        self.fused(parent, &[part])
    }

    /// A tensor that may be tied to one that was read before.
    pub(crate) fn table(&self, name: &str) -> Loaded<Tensor> {
        let first = self.source.weights.first_name(name).unwrap_or_else(|| name.to_owned());
        let first = (self.executor, first);
        let tables = &self.source.tables;
        if let Some(table) = tables.lock().ok().and_then(|tables| tables.get(&first).cloned()) {
            return Ok(table);
        }
        let shape = self.get(name)?.shape().to_vec();
        let table = self.tensor(self.values(&[name.to_owned()])?, &shape)?;
        if let Ok(mut tables) = tables.lock() {
            tables.insert(first, table.clone());
        }
        Ok(table)
    }

    /// A matrix like [`Self::linear`], but without its numbers: its rows come in pieces.
    pub(crate) fn hollow_linear(&self, path: &str) -> Loaded<Linear> {
        let rows = self.get(&format!("{path}.weight"))?.shape().first().copied().unwrap_or(0);
        let name = format!("{path}.bias");
        let bias = self.has(&name).then(|| self.table(&name)).transpose()?;
        Ok(Linear::new((Vec::new(), self.device), bias, vec![(path.to_owned(), rows)]))
    }

    /// The rows `ids` of a table, one after the other.
    pub(crate) fn gathered(&self, name: &str, ids: &[u32]) -> Loaded<Vec<f32>> {
        let tensor = self.get(name)?;
        let columns = tensor.shape().last().copied().unwrap_or(1);
        let mut data = vec![0.0; ids.len() * columns];
        self.with_scratch(|scratch| {
            let mut rows = ids.iter().zip(data.chunks_exact_mut(columns.max(1)));
            rows.try_for_each(|(id, row)| tensor.fetch_rows_f32(*id as usize, scratch, row))
        })?;
        Ok(data)
    }

    fn with_scratch<T>(
        &self,
        work: impl FnOnce(&mut Scratch) -> Result<T, TransformerError>,
    ) -> Loaded<T> {
        let scratches = &self.source.scratches;
        let mut scratch = scratches.lock().ok().and_then(|mut s| s.pop()).unwrap_or_default();
        let done = work(&mut scratch);
        if let Ok(mut scratches) = scratches.lock() {
            scratches.push(scratch);
        }
        done.map_err(|error| model_error(&error))
    }

    fn get(&self, name: &str) -> Loaded<&'s CanonicalTensor<'a>> {
        self.source.weights.get(name).ok_or_else(|| {
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
        if self.is_hollow {
            return Ok(vec![0.0; if n <= HOLLOW_VALUES { n } else { 0 }]);
        }
        let mut data = self.source.buffer(n, |spare| &mut spare.floats);
        let mut rest = data.as_mut_slice();
        for name in names {
            self.check_cancelled()?;
            let tensor = self.get(name)?;
            let (part, after) = rest.split_at_mut(tensor.n_elements());
            self.with_scratch(|scratch| self.source.weights.fetch_f32(name, scratch, part))?;
            rest = after;
            self.tell(tensor.bytes());
        }
        Ok(data)
    }

    fn check_cancelled(&self) -> Loaded<()> {
        match self.source.services.cancelled() {
            true => Err(EngineError::new(ErrorKind::Cancelled, "loading was cancelled")),
            false => Ok(()),
        }
    }

    /// Tells the host that `bytes` more are there.
    fn tell(&self, bytes: u64) {
        let done = self.source.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.source.services.progress(STAGE, done.min(self.source.total), self.source.total);
    }

    fn tensor(&self, data: Vec<f32>, shape: &[usize]) -> Loaded<Tensor> {
        Tensor::from_vec(data, shape, self.device).map_err(error::compute)
    }
}
