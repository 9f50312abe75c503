//! Keys and values of sequences, in blocks that forks share.
//!
//! A block holds [`BLOCK_TOKENS`] tokens of every layer. A sequence owns a list of blocks; a fork
//! shares them, and whoever writes into a shared block first copies it. So a fork costs at most one
//! partial block, when it or its origin goes on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Tensor};
use drivetrain_engine::{EngineError, SeqId};
use drivetrain_execution::{Capacity, Planned, Sequences};

use crate::attention::KeyValues;
use crate::error;
use crate::rows::{contiguous_mut, has_kernels, values};
use crate::stack::{PlacedLayer, StackWeights};

/// Tokens of a block.
pub(crate) const BLOCK_TOKENS: usize = 64;

/// What the sequences of a model hold.
#[derive(Debug)]
pub(crate) struct Cache {
    layers: Vec<LayerShape>,
    sequences: HashMap<SeqId, Sequence>,
    limits: Capacity,
}

/// Where and how large the keys of a layer are.
#[derive(Clone, Debug)]
struct LayerShape {
    n_kv_heads: usize,
    head_dim: usize,
    device: Device,
}

/// One sequence.
#[derive(Clone, Debug, Default)]
struct Sequence {
    len: usize,
    /// At least enough for `len` tokens.
    blocks: Vec<Arc<Block>>,
    cross: Option<Arc<CrossKeyValues>>,
}

/// Tokens of all layers: tensors `[n_kv_heads, BLOCK_TOKENS, head_dim]`.
#[derive(Debug)]
struct Block {
    layers: Vec<(Tensor, Tensor)>,
}

/// Keys and values of an encoder's output for each decoder layer.
#[derive(Debug)]
pub(crate) struct CrossKeyValues {
    pub(crate) layers: Vec<KeyValues>,
    pub(crate) len: usize,
}

impl Cache {
    /// An empty cache for the layers of `decoder`, each where it runs.
    pub(crate) fn new(decoder: Option<&StackWeights>, limits: Capacity) -> Self {
        let shape = |layer: &PlacedLayer| {
            let spec = &layer.weights.form().self_attention.scoring.spec;
            LayerShape {
                n_kv_heads: spec.n_kv_heads as usize,
                head_dim: spec.head_dim as usize,
                device: layer.executor.device.clone(),
            }
        };
        let layers = decoder.iter().flat_map(|stack| &stack.layers).map(shape).collect();
        Self { layers, sequences: HashMap::new(), limits }
    }

    pub(crate) fn n_sequences(&self) -> usize {
        self.sequences.len()
    }

    /// Makes room for `planned` tokens: sequences at position 0 are born, blocks are added, shared
    /// ones that will be written are copied. Lengths stay until [`Self::commit`].
    pub(crate) fn reserve(&mut self, planned: &[Planned]) -> Result<(), EngineError> {
        self.check_room(planned)?;
        for segment in planned {
            let sequence = self.sequences.entry(segment.sequence).or_default();
            let first = sequence.len / BLOCK_TOKENS;
            if let Some(block) = sequence.blocks.get_mut(first)
                && Arc::strong_count(block) > 1
            {
                *block = Arc::new(block.copy().map_err(error::compute)?);
            }
            let n_blocks = (sequence.len + segment.n).div_ceil(BLOCK_TOKENS);
            while sequence.blocks.len() < n_blocks {
                let block = Block::new(&self.layers).map_err(error::compute)?;
                sequence.blocks.push(Arc::new(block));
            }
        }
        Ok(())
    }

    /// The tokens that [`Self::reserve`] made room for are there.
    pub(crate) fn commit(&mut self, planned: &[Planned]) {
        for segment in planned {
            if let Some(sequence) = self.sequences.get_mut(&segment.sequence) {
                sequence.len += segment.n;
            }
        }
    }

    /// Undoes [`Self::reserve`].
    pub(crate) fn roll_back(&mut self, planned: &[Planned]) {
        for segment in planned {
            let Some(sequence) = self.sequences.get_mut(&segment.sequence) else { continue };
            sequence.blocks.truncate(sequence.len.div_ceil(BLOCK_TOKENS));
            if segment.newborn {
                self.sequences.remove(&segment.sequence);
            }
        }
    }

    /// Writes rows of `keys` and `values` `[n_rows, n_kv_heads * head_dim]`, `planned`'s own, behind
    /// what its sequence has.
    pub(crate) fn write(
        &self,
        planned: &Planned,
        layer_idx: usize,
        keys: &Tensor,
        values: &Tensor,
    ) -> candle_core::Result<()> {
        let Some(sequence) = self.sequences.get(&planned.sequence) else { return Ok(()) };
        let (mut position, mut row) = (planned.position, planned.first_row);
        let end = planned.first_row + planned.n;
        while row < end {
            let (block_idx, slot) = (position / BLOCK_TOKENS, position % BLOCK_TOKENS);
            let n = (BLOCK_TOKENS - slot).min(end - row);
            let block = sequence.blocks.get(block_idx).and_then(|b| b.layers.get(layer_idx));
            if let Some((block_keys, block_values)) = block {
                write_rows(block_keys, slot, &keys.narrow(0, row, n)?)?;
                write_rows(block_values, slot, &values.narrow(0, row, n)?)?;
            }
            (position, row) = (position + n, row + n);
        }
        Ok(())
    }

    /// The first `len` tokens of a sequence in one layer.
    pub(crate) fn blocks(&self, sequence: SeqId, layer_idx: usize, len: usize) -> Vec<KeyValues> {
        let Some(sequence) = self.sequences.get(&sequence) else { return Vec::new() };
        let lens = (0..len).step_by(BLOCK_TOKENS).map(|first| BLOCK_TOKENS.min(len - first));
        let layers = sequence.blocks.iter().filter_map(|block| block.layers.get(layer_idx));
        layers
            .zip(lens)
            .map(|((keys, values), len)| KeyValues {
                keys: keys.clone(),
                values: values.clone(),
                len,
            })
            .collect()
    }

    /// What a sequence keeps of its encoder input, in one decoder layer.
    pub(crate) fn cross(&self, sequence: SeqId, layer_idx: usize) -> Option<KeyValues> {
        self.sequences.get(&sequence)?.cross.as_ref()?.layers.get(layer_idx).cloned()
    }

    /// Adds sequences with what they keep of their encoder input.
    pub(crate) fn insert(&mut self, born: Vec<(SeqId, CrossKeyValues)>) {
        for (id, cross) in born {
            let cross = Some(Arc::new(cross));
            self.sequences.insert(id, Sequence { cross, ..Sequence::default() });
        }
    }

    /// As [`TokenModel::fork`](drivetrain_engine::TokenModel::fork).
    pub(crate) fn fork(&mut self, from: SeqId, to: SeqId, len: usize) -> Result<(), EngineError> {
        if self.sequences.contains_key(&to) {
            return Err(EngineError::bad_input(format!(
                "fork to sequence {}: there is one of this name already",
                to.0
            )));
        }
        let origin = self.known(from, len)?;
        let blocks = origin.blocks.get(..len.div_ceil(BLOCK_TOKENS)).unwrap_or_default().to_vec();
        let fork = Sequence { len, blocks, cross: origin.cross.clone() };
        self.check_sequences(1)?;
        self.sequences.insert(to, fork);
        Ok(())
    }

    /// As [`TokenModel::truncate`](drivetrain_engine::TokenModel::truncate).
    pub(crate) fn truncate(&mut self, sequence: SeqId, len: usize) -> Result<(), EngineError> {
        self.known(sequence, len)?;
        if let Some(sequence) = self.sequences.get_mut(&sequence) {
            sequence.len = len;
            sequence.blocks.truncate(len.div_ceil(BLOCK_TOKENS));
        }
        Ok(())
    }

    pub(crate) fn release(&mut self, sequence: SeqId) {
        self.sequences.remove(&sequence);
    }

    /// Whether `n` more sequences may live.
    pub(crate) fn check_sequences(&self, n: usize) -> Result<(), EngineError> {
        if self.sequences.len() + n <= self.limits.sequences {
            return Ok(());
        }
        Err(EngineError::out_of_memory(format!(
            "{n} more sequences beside {} alive: at most {} may live at once \
             (option.max_rolling_batch_size)",
            self.sequences.len(),
            self.limits.sequences
        )))
    }

    /// Whether `n` more encoder tokens fit.
    pub(crate) fn check_cross_room(&self, n: usize) -> Result<(), EngineError> {
        let mut seen = HashSet::new();
        let used: usize = self
            .sequences
            .values()
            .filter_map(|sequence| sequence.cross.as_ref())
            .filter(|cross| seen.insert(Arc::as_ptr(cross)))
            .map(|cross| cross.len)
            .sum();
        if (used + n) as u64 <= self.limits.cross_tokens {
            return Ok(());
        }
        Err(EngineError::out_of_memory(format!(
            "{n} more encoder tokens beside {used}: the cross-attention cache holds {}",
            self.limits.cross_tokens
        )))
    }

    fn check_room(&self, planned: &[Planned]) -> Result<(), EngineError> {
        self.check_sequences(planned.iter().filter(|segment| segment.newborn).count())?;
        let added: usize = planned.iter().map(|segment| segment.n).sum();
        let upper = added + self.sequences.values().map(|sequence| sequence.len).sum::<usize>();
        if upper as u64 <= self.limits.tokens {
            return Ok(());
        }
        let used = self.used_tokens();
        if (used + added) as u64 <= self.limits.tokens {
            return Ok(());
        }
        Err(EngineError::out_of_memory(format!(
            "{added} more tokens beside {used} cached: the KV cache holds {}",
            self.limits.tokens
        )))
    }

    /// Cached tokens; a whole block that sequences share counts once.
    fn used_tokens(&self) -> usize {
        let mut seen = HashSet::new();
        let mut used = 0;
        for sequence in self.sequences.values() {
            let whole = sequence.len / BLOCK_TOKENS;
            let blocks = sequence.blocks.iter().take(whole);
            let own = blocks.filter(|block| seen.insert(Arc::as_ptr(block))).count();
            used += own * BLOCK_TOKENS + sequence.len % BLOCK_TOKENS;
        }
        used
    }

    fn known(&self, sequence: SeqId, len: usize) -> Result<&Sequence, EngineError> {
        match self.sequences.get(&sequence) {
            Some(known) if len <= known.len => Ok(known),
            Some(known) => Err(EngineError::bad_input(format!(
                "sequence {} has {} tokens, not {len}",
                sequence.0, known.len
            ))),
            None => Err(EngineError::bad_input(format!("there is no sequence {}", sequence.0))),
        }
    }
}

impl Sequences for Cache {
    fn len_of(&self, sequence: SeqId) -> Option<usize> {
        self.sequences.get(&sequence).map(|sequence| sequence.len)
    }
}

impl Block {
    fn new(layers: &[LayerShape]) -> candle_core::Result<Self> {
        let layer = |shape: &LayerShape| -> candle_core::Result<(Tensor, Tensor)> {
            let dims = (shape.n_kv_heads, BLOCK_TOKENS, shape.head_dim);
            let zeros = || Tensor::zeros(dims, DType::F32, &shape.device);
            Ok((zeros()?, zeros()?))
        };
        Ok(Self { layers: layers.iter().map(layer).collect::<candle_core::Result<_>>()? })
    }

    fn copy(&self) -> candle_core::Result<Self> {
        let layer = |(keys, values): &(Tensor, Tensor)| Ok((keys.copy()?, values.copy()?));
        Ok(Self { layers: self.layers.iter().map(layer).collect::<candle_core::Result<_>>()? })
    }
}

/// Rows `[n, n_kv_heads * head_dim]` as keys or values of their own: `[n_kv_heads, n, head_dim]`.
pub(crate) fn by_heads(rows: &Tensor, n_kv_heads: usize) -> candle_core::Result<Tensor> {
    let (n, width) = rows.dims2()?;
    rows.reshape((n, n_kv_heads, width / n_kv_heads))?.transpose(0, 1)?.contiguous()
}

/// Writes `rows` `[n, n_kv_heads * head_dim]` to slots `slot..slot + n` of `block`
/// `[n_kv_heads, BLOCK_TOKENS, head_dim]`.
fn write_rows(block: &Tensor, slot: usize, rows: &Tensor) -> candle_core::Result<()> {
    if has_kernels(block) {
        return block.inplace_op2(rows, &WriteRows { slot });
    }
    block.slice_set(&by_heads(rows, block.dim(0)?)?, 1, slot)
}

struct WriteRows {
    slot: usize,
}

impl InplaceOp2 for WriteRows {
    fn name(&self) -> &'static str {
        "write-rows"
    }

    fn cpu_fwd(
        &self,
        block: &mut CpuStorage,
        block_layout: &Layout,
        rows: &CpuStorage,
        rows_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (_, capacity, head_dim) = block_layout.shape().dims3()?;
        let (n, _) = rows_layout.shape().dims2()?;
        let stride = rows_layout.stride()[0];
        let rows = values(rows, rows_layout)?;
        let block = contiguous_mut(block, block_layout)?;
        for (head, slots) in block.chunks_exact_mut(capacity * head_dim).enumerate() {
            let slots = slots.chunks_exact_mut(head_dim).skip(self.slot).take(n);
            for (row, slot) in slots.enumerate() {
                let start = row * stride + head * head_dim;
                slot.copy_from_slice(&rows[start..start + head_dim]);
            }
        }
        Ok(())
    }
}
