//! Attention of each sequence's queries over its own keys and values.
//!
//! Keys and values come in blocks `[n_kv_heads, capacity, head_dim]`. A few queries on the CPU go
//! through a kernel that reads the blocks in place. Many queries, and other devices, go through
//! matrix products: one for each block, softmax over all of them, one for each block again.

use candle_core::{
    CpuStorage, D, Device, InplaceOp1, Layout, Result, Storage, StorageRef, Tensor, bail,
};
use drivetrain_transformer::Attention;
use rayon::prelude::*;

use crate::distances::Distances;
use crate::kernels::{self, AttendKeys, PositionBias, Scores};
use crate::rows::{contiguous, contiguous_mut, has_kernels, values};

/// Up to this many queries of a sequence go through the kernel.
const FEW_QUERIES: usize = 4;
/// Most queries whose scores are held at once, and most scores.
const QUERY_TILE: usize = 256;
pub(crate) const SCORES_TILE: usize = 1 << 24;

/// Keys and values of some consecutive tokens: tensors `[n_kv_heads, capacity, head_dim]`, the
/// first `len` of each head in use.
#[derive(Clone, Debug)]
pub(crate) struct KeyValues {
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
    pub(crate) len: usize,
}

/// The queries of one sequence.
#[derive(Debug)]
pub(crate) struct Queries {
    /// Row of the first one.
    pub(crate) first_row: usize,
    pub(crate) n: usize,
    /// Position of the first one.
    pub(crate) position: usize,
    /// What they look at, from position 0 on.
    pub(crate) blocks: Vec<KeyValues>,
}

impl Queries {
    fn n_keys(&self) -> usize {
        self.blocks.iter().map(|block| block.len).sum()
    }

    fn scores<'a>(&self, rule: &'a Scoring) -> Scores<'a> {
        let spec = &rule.spec;
        Scores {
            n_keys: self.n_keys(),
            first_key: 0,
            n_queries: self.n,
            first_position: self.position,
            causal: spec.causal,
            window: spec.window.map(|window| window as usize),
            scale: spec.scale as f32,
            soft_cap: spec.soft_cap,
            bias: &rule.bias,
        }
    }
}

/// How an attention scores its keys.
#[derive(Clone, Debug)]
pub(crate) struct Scoring {
    pub(crate) spec: Attention,
    /// What positions add.
    pub(crate) bias: PositionBias,
    /// Embedded distances that contents are scored with.
    pub(crate) distances: Option<Distances>,
}

impl Scoring {
    /// The same on `device`.
    pub(crate) fn on(&self, device: &Device) -> Result<Self> {
        let distances = self.distances.as_ref().map(|table| table.on(device)).transpose()?;
        Ok(Self { spec: self.spec.clone(), bias: self.bias.clone(), distances })
    }
}

/// Attention of all `queries`, whose rows in `q` `[n_rows, n_heads * head_dim]` follow one another
/// and are all there are. The same shape comes back.
pub(crate) fn attend(q: &Tensor, queries: &[Queries], rule: &Scoring) -> Result<Tensor> {
    let (n_rows, width) = q.dims2()?;
    if !has_kernels(q) {
        let parts: Result<Vec<_>> =
            queries.iter().map(|queries| by_products(q, queries, rule)).collect();
        return Tensor::cat(&parts?, 0);
    }
    let mut out = vec![0.0f32; n_rows * width];
    let few = if rule.distances.is_some() { 0 } else { FEW_QUERIES };
    if few > 0 {
        attend_few(q, queries, rule, &mut out)?;
    }
    for queries in queries.iter().filter(|queries| queries.n > few) {
        let part = by_products(q, queries, rule)?;
        let rows = queries.first_row * width..(queries.first_row + queries.n) * width;
        let (storage, layout) = part.storage_and_layout();
        let (Storage::Cpu(storage), Some(out)) = (&*storage, out.get_mut(rows)) else {
            bail!("attention left the CPU");
        };
        out.copy_from_slice(contiguous(storage, layout)?);
    }
    Tensor::from_vec(out, (n_rows, width), q.device())
}

/// The rows of sequences with few queries, through the kernel.
fn attend_few(q: &Tensor, queries: &[Queries], rule: &Scoring, out: &mut [f32]) -> Result<()> {
    let spec = &rule.spec;
    let few: Vec<&Queries> = queries.iter().filter(|queries| queries.n <= FEW_QUERIES).collect();
    if few.is_empty() {
        return Ok(());
    }
    let guards: Vec<Vec<[(StorageRef<'_>, &Layout); 2]>> = few
        .iter()
        .map(|queries| {
            let guard = |block| -> [_; 2] { storages(block) };
            queries.blocks.iter().map(guard).collect()
        })
        .collect();
    let mut blocks: Vec<Vec<AttendKeys<'_>>> = Vec::with_capacity(few.len());
    for (queries, guards) in few.iter().zip(&guards) {
        let mut next = 0;
        let of_sequence: Result<Vec<_>> = queries
            .blocks
            .iter()
            .zip(guards)
            .map(|(block, [keys, values])| {
                let capacity = block.keys.dim(1)?;
                let first = next;
                next += block.len;
                Ok(AttendKeys {
                    keys: cpu(keys)?,
                    values: cpu(values)?,
                    capacity,
                    first,
                    len: block.len,
                })
            })
            .collect();
        blocks.push(of_sequence?);
    }
    let (q_storage, q_layout) = q.storage_and_layout();
    let Storage::Cpu(q_storage) = &*q_storage else { bail!("queries left the CPU") };
    let (q_values, q_stride) = (values(q_storage, q_layout)?, q_layout.stride()[0]);
    let head_dim = spec.head_dim as usize;
    let group = head_dim * (spec.n_heads / spec.n_kv_heads) as usize;
    let width = spec.q_width();

    // One task for each row and key-value head; rows of other sequences have none.
    let mut row_queries: Vec<Option<usize>> = vec![None; out.len() / width];
    for (idx, queries) in few.iter().enumerate() {
        let rows = row_queries.get_mut(queries.first_row..queries.first_row + queries.n);
        rows.into_iter().flatten().for_each(|slot| *slot = Some(idx));
    }
    let task = |(task_idx, out): (usize, &mut [f32])| {
        let (row, kv_head) = (task_idx * group / width, task_idx * group % width / group);
        let Some(idx) = row_queries[row] else { return };
        let queries = few[idx];
        let offset = row * q_stride + kv_head * group;
        let mut meaning = queries.scores(rule);
        meaning.first_position += row - queries.first_row;
        meaning.n_queries = 1;
        let q = &q_values[offset..offset + group];
        kernels::attend(q, &blocks[idx], kv_head, head_dim, &meaning, out);
    };
    let work: usize = few.iter().map(|queries| queries.n * queries.n_keys() * width).sum();
    if work < 1 << 15 {
        out.chunks_exact_mut(group).enumerate().for_each(task);
    } else {
        out.par_chunks_exact_mut(group).enumerate().for_each(task);
    }
    Ok(())
}

fn storages(block: &KeyValues) -> [(StorageRef<'_>, &Layout); 2] {
    [block.keys.storage_and_layout(), block.values.storage_and_layout()]
}

fn cpu<'a>((storage, layout): &'a (StorageRef<'_>, &Layout)) -> Result<&'a [f32]> {
    match &**storage {
        Storage::Cpu(storage) => contiguous(storage, layout),
        _ => bail!("keys and values left the CPU"),
    }
}

/// The rows of one sequence, through matrix products: `[n, n_heads * head_dim]`.
fn by_products(q: &Tensor, queries: &Queries, rule: &Scoring) -> Result<Tensor> {
    let scores_of_one = queries.n_keys() * rule.spec.n_heads as usize;
    let tile_len = (SCORES_TILE / scores_of_one.max(1)).clamp(16, QUERY_TILE);
    let mut tiles = Vec::with_capacity(queries.n.div_ceil(tile_len));
    for start in (0..queries.n).step_by(tile_len) {
        let n = tile_len.min(queries.n - start);
        let q = q.narrow(0, queries.first_row + start, n)?;
        tiles.push(tile(&q, queries, start, n, rule)?);
    }
    if tiles.len() == 1 { Ok(tiles.swap_remove(0)) } else { Tensor::cat(&tiles, 0) }
}

/// Queries `start..start + n` of one sequence, in `q` `[n, n_heads * head_dim]`.
fn tile(q: &Tensor, queries: &Queries, start: usize, n: usize, rule: &Scoring) -> Result<Tensor> {
    let spec = &rule.spec;
    let (n_kv, head_dim) = (spec.n_kv_heads as usize, spec.head_dim as usize);
    let group = spec.n_heads as usize / n_kv;
    // Heads of a group look at the same keys: they become further rows of one product.
    let q = q
        .reshape((n, n_kv, group, head_dim))?
        .permute((1, 2, 0, 3))?
        .contiguous()?
        .reshape((n_kv, group * n, head_dim))?;
    let position = queries.position + start;
    let mut meaning = Scores { n_queries: n, first_position: position, ..queries.scores(rule) };
    if spec.causal {
        meaning.n_keys = meaning.n_keys.min(position + n);
    }
    let mut used = Vec::with_capacity(queries.blocks.len());
    let mut left = meaning.n_keys;
    for block in &queries.blocks {
        let len = block.len.min(left);
        if len > 0 {
            used.push((block, len));
        }
        left -= len;
    }
    let scores: Result<Vec<_>> = used
        .iter()
        .map(|(block, len)| q.matmul(&block.keys.narrow(1, 0, *len)?.transpose(1, 2)?))
        .collect();
    let mut scores = scores?;
    let mut scores =
        if scores.len() == 1 { scores.swap_remove(0) } else { Tensor::cat(&scores, D::Minus1)? };
    if let Some(distances) = &rule.distances {
        let keys: Result<Vec<_>> =
            used.iter().map(|(block, len)| block.keys.narrow(1, 0, *len)).collect();
        scores = distances.add(scores, &q, &Tensor::cat(&keys?, 1)?, position)?;
    }
    let probabilities = softmax(scores, &meaning)?;
    let mut sum: Option<Tensor> = None;
    let mut first = 0;
    for (block, len) in used {
        let part = probabilities.narrow(2, first, len)?;
        let part = part.matmul(&block.values.narrow(1, 0, len)?)?;
        sum = Some(match sum {
            Some(sum) => (sum + part)?,
            None => part,
        });
        first += len;
    }
    let Some(sum) = sum else { bail!("queries without keys") };
    sum.reshape((n_kv, group, n, head_dim))?
        .permute((2, 0, 1, 3))?
        .contiguous()?
        .reshape((n, n_kv * group * head_dim))
}

/// Scores `[n_kv_heads, group * n_queries, n_keys]` to probabilities.
fn softmax(scores: Tensor, meaning: &Scores<'_>) -> Result<Tensor> {
    if has_kernels(&scores) {
        scores.inplace_op1(&MaskedSoftmax(*meaning))?;
        return Ok(scores);
    }
    let mut scores = (scores * f64::from(meaning.scale))?;
    if let Some(cap) = meaning.soft_cap {
        scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
    }
    let (n_kv_heads, n_rows, n_keys) = scores.dims3()?;
    let mut mask = vec![f32::MIN; n_kv_heads * n_rows * n_keys];
    for (idx, row) in mask.chunks_exact_mut(n_keys.max(1)).enumerate() {
        let visible = meaning.visible(idx);
        let (head, query) = (idx / meaning.n_queries, idx % meaning.n_queries);
        let (position, first_key) = (meaning.first_position + query, meaning.first_key);
        let Some(seen) = row.get_mut(visible.clone()) else { continue };
        seen.fill(0.0);
        meaning.bias.add(seen, head, position, first_key + visible.start);
    }
    let mask = Tensor::from_vec(mask, (n_kv_heads, n_rows, n_keys), scores.device())?;
    candle_nn::ops::softmax_last_dim(&(scores + mask)?)
}

struct MaskedSoftmax<'a>(Scores<'a>);

impl InplaceOp1 for MaskedSoftmax<'_> {
    fn name(&self) -> &'static str {
        "masked-softmax"
    }

    fn cpu_fwd(&self, scores: &mut CpuStorage, layout: &Layout) -> Result<()> {
        kernels::masked_softmax(contiguous_mut(scores, layout)?, &self.0);
        Ok(())
    }
}
