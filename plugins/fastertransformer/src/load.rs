//! Canonical weights to the forms that kernels multiply.

use drivetrain_artifacts::{DType, RowOrder};
use drivetrain_engine::{EngineError, ErrorKind, Services};
use drivetrain_execution::model_error;
use drivetrain_kernels::{
    BlockFormat, BlockMatrix, Cpu, Epilogue, Matrix, Precision, RotaryPairs, Scratch, Source,
};
use drivetrain_transformer::{
    Architecture, Attention, AttentionPositions, CanonicalTensor, CanonicalWeights,
    EmbeddedPositions, FeedForward, FeedForwardForm, Layer, Norm, Norms, Stack, TransformerError,
    sinusoidal,
};
use half::{bf16, f16};

use crate::adapters::Additions;
use crate::arena::rotations;
use crate::attention::{CrossAttention, Projections, Scoring, SelfAttention};
use crate::cache::shapes;
use crate::distances::Distances;
use crate::embedding::{EmbeddingWeights, PositionTable, Table, TableValues};
use crate::feed_forward::{Experts, FeedForwardLayer, Network, Up};
use crate::layer::{BranchNorms, LayerWeights};
use crate::linear::{Linear, Weights, activation};
use crate::norm::NormLayer;
use crate::options::WeightForm;
use crate::stack::StackWeights;
use crate::step::compute;

const STAGE: &str = "loading weights";

/// Makes weights of tensors, and tells the host how far it is.
pub(crate) struct Loader<'a, 'l> {
    pub(crate) weights: &'l CanonicalWeights<'a>,
    pub(crate) cpu: Cpu<'l>,
    pub(crate) form: WeightForm,
    pub(crate) services: &'l Services,
    /// The hidden size.
    pub(crate) dim: usize,
    pub(crate) done: std::cell::Cell<u64>,
}

/// What the layers of a stack share.
struct Shared<'s> {
    stack: &'s Stack,
    rotary_idx: Option<usize>,
    cache_idx: usize,
    /// Embedded distances, normed: `[n_rows, dim]`.
    distances: Option<&'s [f32]>,
}

type Loaded<T> = Result<T, EngineError>;

/// A tensor's values, where they can be multiplied or packed from.
enum Values<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
    Own(Vec<f32>),
}

impl Values<'_> {
    fn source(&self) -> Source<'_> {
        match self {
            Self::F32(values) => Source::F32(values),
            Self::F16(values) => Source::F16(values),
            Self::Bf16(values) => Source::Bf16(values),
            Self::Own(values) => Source::F32(values),
        }
    }
}

/// The kernels' name for a type of blocks.
fn block_format(dtype: DType) -> Option<BlockFormat> {
    Some(match dtype {
        DType::Q8_0 => BlockFormat::Q8Zero,
        DType::Q4_0 => BlockFormat::Q4Zero,
        DType::Q4_1 => BlockFormat::Q4One,
        DType::Q5_0 => BlockFormat::Q5Zero,
        DType::Q5_1 => BlockFormat::Q5One,
        DType::Q4K => BlockFormat::Q4K,
        DType::Q5K => BlockFormat::Q5K,
        DType::Q6K => BlockFormat::Q6K,
        _ => return None,
    })
}

impl<'a> Loader<'a, '_> {
    /// Whether the model has the tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.weights.contains(name)
    }

    fn get(&self, name: &str) -> Loaded<&CanonicalTensor<'a>> {
        self.weights.get(name).ok_or_else(|| {
            let error = TransformerError::NoSuchTensor { name: name.to_owned() };
            EngineError::wrap(ErrorKind::Internal, "loading the weights", &error)
        })
    }

    /// Counts a tensor that is done, and stops if nobody waits for the rest.
    fn count(&self, tensor: &CanonicalTensor<'_>) -> Loaded<()> {
        if self.services.cancelled() {
            return Err(EngineError::new(ErrorKind::Cancelled, "loading was cancelled"));
        }
        self.done.set(self.done.get() + tensor.bytes());
        let total = self.weights.total_bytes();
        self.services.progress(STAGE, self.done.get().min(total), total);
        Ok(())
    }

    /// The values of a tensor as f32.
    fn values(&self, name: &str) -> Loaded<Vec<f32>> {
        let tensor = self.get(name)?;
        let mut values = vec![0.0; tensor.n_elements()];
        self.weights.read_f32(name, &mut values).map_err(|error| model_error(&error))?;
        tensor.source().release_pages();
        self.count(tensor)?;
        Ok(values)
    }

    /// Whether the file's tensor is the canonical one, row by row.
    fn is_as_stored(&self, name: &str, tensor: &CanonicalTensor<'_>) -> bool {
        tensor.rows().is_all()
            && !tensor.is_transposed()
            && !self.weights.is_changed(name)
            && tensor.source().value_offset() == 0.0
    }

    /// The values of a matrix where they lie, if kernels can read them there.
    fn in_place(&self, name: &str) -> Loaded<Values<'a>> {
        let tensor = self.get(name)?;
        let source = tensor.source();
        if self.is_as_stored(name, tensor) && source.is_contiguous() {
            let bytes = source.bytes();
            let found = match source.dtype() {
                DType::F32 => bytemuck::try_cast_slice(bytes).ok().map(Values::F32),
                DType::F16 => bytemuck::try_cast_slice(bytes).ok().map(Values::F16),
                DType::BF16 => bytemuck::try_cast_slice(bytes).ok().map(Values::Bf16),
                _ => None,
            };
            if let Some(found) = found.filter(|_| cfg!(target_endian = "little")) {
                self.count(tensor)?;
                return Ok(found);
            }
        }
        self.values(name).map(Values::Own)
    }

    /// The blocks of a matrix in the mapped file, if it is kept as such.
    fn blocks(&self, name: &str, order: RowOrder) -> Loaded<Option<BlockMatrix<'a>>> {
        let tensor = self.get(name)?;
        let source = tensor.source();
        let format = block_format(source.dtype());
        let (Some(format), WeightForm::AsStored) = (format, self.form) else { return Ok(None) };
        let n_in = tensor.shape().last().copied().unwrap_or(0);
        if !self.is_as_stored(name, tensor) || source.row_order() != order {
            return Ok(None);
        }
        self.count(tensor)?;
        Ok(BlockMatrix::new(format, source.bytes(), n_in).ok())
    }

    /// How matrices of these tensors are held.
    fn precision(&self, names: &[String]) -> Loaded<Precision> {
        match self.form {
            // Rounding what the head reads to 127 steps costs as much as all other matrices together:
            // half of the added perplexity of SmolLM2-135M.
            WeightForm::Packed(Precision::Int8) if names == ["head.weight"] => {
                return Ok(Precision::F16);
            }
            // It decides for all others, and is small.
            _ if names.iter().all(|name| name.ends_with(".router.weight")) => {
                return Ok(Precision::F32);
            }
            WeightForm::Packed(precision) => return Ok(precision),
            WeightForm::Encoded(_) | WeightForm::AsStored => {}
        }
        let mut dtypes = Vec::new();
        for name in names {
            dtypes.push(self.get(name)?.source().dtype());
        }
        let all = |dtype: DType| dtypes.iter().all(|found| *found == dtype);
        let changed = names.iter().any(|name| self.weights.is_changed(name));
        Ok(match () {
            () if all(DType::F16) && !changed => Precision::F16,
            () if all(DType::BF16) && !changed => Precision::Bf16,
            () => Precision::F32,
        })
    }

    /// The biases of `parts`, one after the other; zeros for a part without one if another has one.
    fn bias(&self, path: &str, parts: &[&str], rows: &[usize]) -> Loaded<Option<Vec<f32>>> {
        let names: Vec<String> =
            parts.iter().map(|part| join(path, &format!("{part}.bias"))).collect();
        if !names.iter().any(|name| self.has(name)) {
            return Ok(None);
        }
        let mut bias = Vec::with_capacity(rows.iter().sum());
        for (name, rows) in names.iter().zip(rows) {
            let has = self.has(name);
            bias.extend(if has { self.values(name)? } else { vec![0.0; *rows] });
        }
        Ok(Some(bias))
    }

    /// Names, rows and canonical modules of `parts`.
    fn parts(&self, path: &str, parts: &[&str]) -> Loaded<(Vec<String>, Vec<usize>)> {
        let names: Vec<String> =
            parts.iter().map(|part| join(path, &format!("{part}.weight"))).collect();
        let rows: Loaded<Vec<usize>> =
            names.iter().map(|name| Ok(self.get(name)?.shape()[0])).collect();
        Ok((names, rows?))
    }

    /// Matrices of one input as one product, whose outputs follow one another in a row.
    fn fused(&self, path: &str, parts: &[&str]) -> Loaded<Linear<'a>> {
        self.product(path, parts, RowOrder::Plain)
    }

    fn product(&self, path: &str, parts: &[&str], order: RowOrder) -> Loaded<Linear<'a>> {
        let (names, rows) = self.parts(path, parts)?;
        let bias = self.bias(path, parts, &rows)?;
        let modules = parts.iter().map(|part| join(path, part)).zip(rows).collect();
        if let [name] = names.as_slice()
            && let Some(blocks) = self.blocks(name, order)?
        {
            return Ok(Linear::new(Weights::Blocks(blocks), bias, modules));
        }
        let mut values = Vec::new();
        for name in &names {
            values.push(self.in_place(name)?);
        }
        let sources: Vec<Source<'_>> = values.iter().map(Values::source).collect();
        let n_in = self.get(&names[0])?.shape().last().copied().unwrap_or(1);
        let weights = match self.encoding(&names, n_in)? {
            Some(format) => {
                let matrix = BlockMatrix::encode(format, self.cpu.pool, &sources, n_in);
                Weights::Blocks(matrix.map_err(compute)?)
            }
            None => {
                let precision = self.precision(&names)?;
                let matrix = Matrix::pack(self.cpu, &sources, n_in, precision);
                Weights::Packed(matrix.map_err(compute)?)
            }
        };
        self.release(&names)?;
        Ok(Linear::new(weights, bias, modules))
    }

    /// Gives back the file's pages of tensors that were packed: weights are in memory once.
    fn release(&self, names: &[String]) -> Loaded<()> {
        for name in names {
            self.get(name)?.source().release_pages();
        }
        Ok(())
    }

    /// The blocks that matrices of these tensors are encoded to, if they are.
    fn encoding(&self, names: &[String], n_in: usize) -> Loaded<Option<BlockFormat>> {
        let WeightForm::Encoded(format) = self.form else { return Ok(None) };
        if names.iter().all(|name| name.ends_with(".router.weight")) {
            return Ok(None);
        }
        if !n_in.is_multiple_of(format.block_len()) {
            let (name, len) = (names.join(" and "), format.block_len());
            return Err(EngineError::unsupported(format!(
                "option.quantize: {name} has {n_in} columns, which blocks of {len} don't divide; use \
                 int8 or int8-weight-only, which take any number"
            )));
        }
        // Rounding the head's matrix to 4 bits costs as much as all others together.
        let is_head = names == ["head.weight"];
        Ok(Some(if is_head { BlockFormat::Q8Zero } else { format }))
    }

    /// Whether a matrix stays in the blocks of its file.
    fn stays_in_blocks(&self, path: &str, part: &str, order: RowOrder) -> bool {
        let name = join(path, &format!("{part}.weight"));
        let Some(tensor) = self.weights.get(&name) else { return false };
        self.form == WeightForm::AsStored
            && block_format(tensor.source().dtype()).is_some()
            && self.is_as_stored(&name, tensor)
            && tensor.source().row_order() == order
    }

    /// The pooler, the head, or a part of it.
    pub(crate) fn linear(&self, path: &str) -> Loaded<Linear<'a>> {
        let (parent, part) = path.rsplit_once('.').unwrap_or(("", path));
        self.fused(parent, &[part])
    }

    /// Rows of a table, in the file where they can be read there.
    fn table(&self, name: &str) -> Loaded<Table<'a>> {
        let tensor = self.get(name)?;
        let width = tensor.shape().last().copied().unwrap_or(1);
        let in_rows = !matches!(tensor.source().row_order(), RowOrder::Transposed);
        let values = if in_rows && self.is_as_stored(name, tensor) {
            // Whether it can be read at all.
            tensor.source().read_f32_at(0, &mut []).map_err(|error| model_error(&error))?;
            self.count(tensor)?;
            TableValues::Mapped(tensor.clone())
        } else {
            TableValues::Own(self.values(name)?)
        };
        Ok(Table { values, width })
    }

    /// A stack.
    pub(crate) fn stack(&self, stack: &Stack) -> Loaded<StackWeights<'a>> {
        let (rotaries, rotary_of) = rotations(stack);
        let (_, shape_of) = shapes(stack);
        let distances = self.distance_rows(stack)?;
        let mut layers = Vec::with_capacity(stack.layers.len());
        for (idx, layer) in stack.layers.iter().enumerate() {
            let shared = Shared {
                stack,
                rotary_idx: rotary_of[idx],
                cache_idx: if stack.name == "decoder" { idx } else { shape_of[idx] },
                distances: distances.as_deref(),
            };
            layers.push(self.layer(&format!("{}.layers.{idx}", stack.name), layer, &shared)?);
        }
        let with_frequencies = rotaries.into_iter().map(|rotary| {
            let frequencies = rotary.inv_freq(1);
            (rotary, frequencies)
        });
        Ok(StackWeights {
            name: stack.name,
            embedding: self.embedding(stack)?,
            layers,
            final_norm: self.norm(&format!("{}.final_norm", stack.name), stack.final_norm)?,
            output_projection: stack
                .output_projection
                .map(|_| self.fused(stack.name, &["output_projection"]))
                .transpose()?,
            rotaries: with_frequencies.collect(),
        })
    }

    fn embedding(&self, stack: &Stack) -> Loaded<EmbeddingWeights<'a>> {
        let embedding = &stack.embedding;
        let path = |part: &str| format!("{}.embedding.{part}", stack.name);
        let name = format!("{}.weight", path("positions"));
        let positions = match embedding.positions {
            EmbeddedPositions::None => None,
            EmbeddedPositions::Learned { offset, skipped, .. } => {
                Some(PositionTable { table: self.table(&name)?, offset, skipped })
            }
            EmbeddedPositions::Sinusoidal { .. } if self.has(&name) => {
                Some(PositionTable { table: self.table(&name)?, offset: 0, skipped: None })
            }
            EmbeddedPositions::Sinusoidal { .. } => {
                let mut values = vec![0.0; stack.max_positions as usize * self.dim];
                for (position, row) in values.chunks_exact_mut(self.dim).enumerate() {
                    sinusoidal(position as u32, row);
                }
                let table = Table { values: TableValues::Own(values), width: self.dim };
                Some(PositionTable { table, offset: 0, skipped: None })
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
            scale: embedding.scale as f32,
            positions,
            token_types,
            norm: self.norm(&path("norm"), embedding.norm)?,
            dim: self.dim,
        })
    }

    /// The stack's table of distances, normed: `[n_rows, dim]`.
    fn distance_rows(&self, stack: &Stack) -> Loaded<Option<Vec<f32>>> {
        let Some(table) = &stack.relative_table else { return Ok(None) };
        let name = format!("{}.relative", stack.name);
        let mut rows = self.values(&format!("{name}.weight"))?;
        if let Some(norm) = self.norm(&format!("{name}.norm"), table.norm)? {
            let columns = (0, norm.dim());
            norm.apply_heads(self.cpu, &mut rows, norm.dim(), columns).map_err(compute)?;
        }
        Ok(Some(rows))
    }

    fn layer(&self, path: &str, layer: &Layer, shared: &Shared<'_>) -> Loaded<LayerWeights<'a>> {
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
    ) -> Loaded<SelfAttention<'a>> {
        let qk_norms = match spec.qk_norm {
            None => None,
            norm => self
                .norm(&format!("{branch}.q_norm"), norm)?
                .zip(self.norm(&format!("{branch}.k_norm"), norm)?),
        };
        let (projections, pairs) = self.projections(branch, spec, qk_norms.is_some())?;
        Ok(SelfAttention {
            scoring: self.scoring(branch, spec, shared)?,
            projections,
            out: self.fused(branch, &["o"])?,
            qk_norms,
            rotary: shared.rotary_idx.zip(pairs),
            cache_idx: shared.cache_idx,
        })
    }

    /// The matrices of queries, keys and values, and which of a head's elements turn together.
    ///
    /// A GGUF file has the rows of a head that turns by halves in such an order that neighbours turn.
    /// Queries and keys that lie alike score alike, so its blocks are multiplied as they are.
    fn projections(
        &self,
        branch: &str,
        spec: &Attention,
        has_norms: bool,
    ) -> Loaded<(Projections<'a>, Option<RotaryPairs>)> {
        let names = ["q", "k", "v"];
        let AttentionPositions::Rotary(rotary) = &spec.positions else {
            let in_blocks =
                names.iter().any(|part| self.stays_in_blocks(branch, part, RowOrder::Plain));
            return Ok((self.three(branch, in_blocks, RowOrder::Plain)?, None));
        };
        let pairs = match rotary.pairs {
            drivetrain_transformer::RotaryPairs::Halves => RotaryPairs::HalfSplit,
            drivetrain_transformer::RotaryPairs::Interleaved => RotaryPairs::Interleaved,
        };
        let turned = RowOrder::Rotary { head_rows: spec.head_dim as usize };
        let has_bias = ["q", "k"].iter().any(|p| self.has(&join(branch, &format!("{p}.bias"))));
        let can_turn = pairs == RotaryPairs::HalfSplit
            && rotary.dim == spec.head_dim
            && !has_norms
            && !has_bias
            && ["q", "k"].iter().all(|part| self.stays_in_blocks(branch, part, turned));
        if can_turn {
            return Ok((self.three(branch, true, turned)?, Some(RotaryPairs::Interleaved)));
        }
        let in_blocks =
            names.iter().any(|part| self.stays_in_blocks(branch, part, RowOrder::Plain));
        Ok((self.three(branch, in_blocks, RowOrder::Plain)?, Some(pairs)))
    }

    /// Queries, keys and values as one product, or as three with queries and keys in `order`.
    fn three(&self, branch: &str, split: bool, order: RowOrder) -> Loaded<Projections<'a>> {
        if !split {
            return Ok(Projections::Fused(self.fused(branch, &["q", "k", "v"])?));
        }
        Ok(Projections::Split([
            self.product(branch, &["q"], order)?,
            self.product(branch, &["k"], order)?,
            self.fused(branch, &["v"])?,
        ]))
    }

    /// What positions do to the scores of an attention.
    fn scoring(&self, branch: &str, spec: &Attention, shared: &Shared<'_>) -> Loaded<Scoring> {
        let max_positions = shared.stack.max_positions;
        let buckets = match &spec.positions {
            AttentionPositions::RelativeBuckets(_) => {
                Some(self.values(&format!("{branch}.relative_bias.weight"))?)
            }
            _ => None,
        };
        let distances = match (&spec.positions, shared.distances) {
            (AttentionPositions::Disentangled(kind), Some(table)) => {
                let of = |wanted: bool, own: &str, part: &str| {
                    let part = if kind.shared_projections { part } else { own };
                    wanted.then(|| self.by_head(branch, part, table, spec)).transpose()
                };
                let keys = of(kind.content_to_position, "relative_k", "k")?;
                let queries = of(kind.position_to_content, "relative_q", "q")?;
                Some(Distances::new(*kind, max_positions, keys, queries))
            }
            _ => None,
        };
        Ok(Scoring::new(spec, buckets.as_deref(), distances, max_positions))
    }

    /// Rows of `table` `[n_table, dim]` through a projection, a matrix `[n_table, head_dim]` for each
    /// head.
    fn by_head(
        &self,
        branch: &str,
        part: &str,
        table: &[f32],
        spec: &Attention,
    ) -> Loaded<Vec<Matrix>> {
        let name = join(branch, &format!("{part}.weight"));
        let values = self.values(&name)?;
        let n_table = table.len() / self.dim;
        let pack = |values: &[f32], n_in| {
            Matrix::pack(self.cpu, &[Source::F32(values)], n_in, Precision::F32).map_err(compute)
        };
        let matrix = pack(&values, self.dim)?;
        let width = matrix.n_out();
        let bias = self.bias(branch, &[part], &[width])?;
        let mut projected = vec![0.0; n_table * width];
        let mut scratch =
            Scratch::with_capacity(matrix.scratch_bytes(n_table, self.cpu.pool.n_threads()));
        let epilogue = Epilogue { bias: bias.as_deref(), ..Epilogue::default() };
        matrix
            .multiply(self.cpu.pool, table, &mut projected, &epilogue, &mut scratch)
            .map_err(compute)?;
        let head_dim = spec.head_dim as usize;
        let of_head = |head: usize| {
            let rows = projected.chunks_exact(width);
            let values: Vec<f32> = rows
                .flat_map(|row| &row[head * head_dim..(head + 1) * head_dim])
                .copied()
                .collect();
            pack(&values, head_dim)
        };
        (0..spec.n_heads as usize).map(of_head).collect()
    }

    fn feed_forward(&self, path: &str, spec: FeedForward) -> Loaded<FeedForwardLayer<'a>> {
        let network = |path: &str, gated: bool| -> Loaded<Network<'a>> {
            Ok(Network {
                activation: activation(spec.activation),
                up: if gated { self.gated(path)? } else { Up::Plain(self.fused(path, &["up"])?) },
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

    /// A gate and the matrix beside it.
    fn gated(&self, path: &str) -> Loaded<Up<'a>> {
        let parts = ["gate", "up"];
        let is_encoded = matches!(self.form, WeightForm::Encoded(_));
        let stays = |part: &&str| self.stays_in_blocks(path, part, RowOrder::Plain);
        if is_encoded || parts.iter().any(stays) {
            let [gate, up] = parts.map(|part| self.fused(path, &[part]));
            return Ok(Up::Split { gate: gate?, up: up? });
        }
        let (names, rows) = self.parts(path, &parts)?;
        let (gate, up) = (self.in_place(&names[0])?, self.in_place(&names[1])?);
        let n_in = self.get(&names[0])?.shape().last().copied().unwrap_or(1);
        let form = (n_in, self.precision(&names)?);
        let matrix = Matrix::pack_gated(self.cpu, gate.source(), up.source(), form);
        let bias = self.bias(path, &parts, &rows)?;
        let modules = parts.iter().map(|part| join(path, part)).zip(rows).collect();
        let weights = Weights::Packed(matrix.map_err(compute)?);
        self.release(&names)?;
        Ok(Up::Gated(Linear::new(weights, bias, modules)))
    }

    fn cross_attention(
        &self,
        path: &str,
        spec: &Attention,
        norms: Norms,
    ) -> Loaded<(CrossAttention<'a>, BranchNorms)> {
        let branch = format!("{path}.cross_attention");
        let attention = CrossAttention {
            scoring: Scoring::new(spec, None, None, 0),
            q: self.fused(&branch, &["q"])?,
            kv: [self.fused(&branch, &["k"])?, self.fused(&branch, &["v"])?],
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
        let bias = norm.bias.then(|| self.values(&format!("{path}.bias"))).transpose()?;
        let weight = match norm.weight {
            true => self.values(&format!("{path}.weight"))?,
            false => vec![1.0; self.dim],
        };
        Ok(Some(NormLayer::new(norm, weight, bias)))
    }
}

/// `path.part`, or `part` alone.
fn join(path: &str, part: &str) -> String {
    if path.is_empty() { part.to_owned() } else { format!("{path}.{part}") }
}

/// Bytes that the weights of `architecture` will occupy in `form`, tied ones twice where the table is
/// read from the file as well.
pub(crate) fn planned_bytes(
    architecture: &Architecture,
    weights: &CanonicalWeights<'_>,
    form: WeightForm,
) -> u64 {
    let _ = architecture;
    let of = |tensor: &CanonicalTensor<'_>| {
        let is_table = tensor.name().contains(".embedding.");
        let n = tensor.n_elements() as u64;
        match form {
            _ if is_table => 0,
            _ if tensor.shape().len() < 2 => n * 4,
            WeightForm::Packed(Precision::F32) => n * 4,
            WeightForm::Packed(Precision::Int8) if tensor.name() != "head.weight" => n,
            WeightForm::Packed(Precision::Int8Weights) => n,
            WeightForm::Encoded(format) => {
                n / format.block_len() as u64 * format.block_bytes() as u64
            }
            WeightForm::Packed(_) => n * 2,
            WeightForm::AsStored => match tensor.source().dtype() {
                DType::F16 | DType::BF16 => n * 2,
                dtype if block_format(dtype).is_some() => 0,
                _ => n * 4,
            },
        }
    };
    weights.iter().map(of).sum()
}
