//! Keys and values of sequences: which blocks are whose, and the blocks of each layer.

use drivetrain_engine::{EngineError, SeqId, TokenModelInfo};
use drivetrain_execution::{BlockTables, Capacity, Copied, Planned, Sequences};
use drivetrain_kernels::{KvCache, KvPrecision, KvShape, Segment, TOKENS_PER_BLOCK};
use drivetrain_transformer::{Architecture, Attention, Stack};

use crate::step::{compute, recycle};

/// What the sequences of a model hold: the same blocks on each rank.
#[derive(Debug)]
pub(crate) struct Caches {
    pub(crate) tables: BlockTables,
    pub(crate) cross_tables: BlockTables,
    /// Blocks of an encoder's keys, in order.
    in_order: Vec<u32>,
    /// Blocks that a batch copies first.
    copied: Vec<Copied>,
    spare: [Vec<Segment<'static>>; 2],
}

/// The blocks of each layer, with the heads of one rank.
#[derive(Debug)]
pub(crate) struct Stores {
    /// The decoder's own keys, a cache a layer.
    pub(crate) own: Vec<KvCache>,
    /// What it keeps of its encoder's output, a cache a layer with cross-attention.
    pub(crate) cross: Vec<KvCache>,
    /// An encoder's keys, for as long as a layer runs: one of each shape.
    pub(crate) passing: Vec<KvCache>,
}

/// The shapes of a stack's self-attentions, and which of them each layer has.
pub(crate) fn shapes(stack: &Stack) -> (Vec<(u32, u32)>, Vec<usize>) {
    let mut shapes: Vec<(u32, u32)> = Vec::new();
    let of = |layer: &drivetrain_transformer::Layer| {
        let attention = &layer.self_attention;
        let shape = (attention.n_kv_heads, attention.head_dim);
        shapes.iter().position(|known| *known == shape).unwrap_or_else(|| {
            shapes.push(shape);
            shapes.len() - 1
        })
    };
    let of_layers = stack.layers.iter().map(of).collect();
    (shapes, of_layers)
}

impl Stores {
    /// For the heads of `architecture`, which are those of one rank.
    pub(crate) fn new(
        architecture: &Architecture,
        caches: &Caches,
        precision: KvPrecision,
    ) -> Result<Self, EngineError> {
        let cache = |n_blocks: usize, (n_kv_heads, head_dim): (u32, u32), precision| {
            // A rank without heads has the smallest blocks there are, so that their numbers hold.
            let head_dim = if n_kv_heads == 0 { 1 } else { head_dim as usize };
            let shape = KvShape { n_blocks, n_kv_heads: n_kv_heads.max(1) as usize, head_dim };
            KvCache::new(shape, precision).map_err(compute)
        };
        let of = |n_blocks: usize, attention: &Attention| {
            cache(n_blocks, (attention.n_kv_heads, attention.head_dim), precision)
        };
        let layers = architecture.decoder.iter().flat_map(|stack| &stack.layers);
        let n_blocks = caches.tables.n_blocks();
        let own = layers.clone().map(|layer| of(n_blocks, &layer.self_attention));
        let crosses = layers.filter_map(|layer| layer.cross_attention.as_ref());
        let n_blocks = caches.cross_tables.n_blocks();
        let cross = crosses.map(|attention| of(n_blocks, attention));
        let passing = architecture.encoder.iter().flat_map(|stack| shapes(stack).0);
        let passing = passing.map(|shape| cache(caches.in_order.len(), shape, KvPrecision::F32));
        Ok(Self {
            own: own.collect::<Result<_, _>>()?,
            cross: cross.collect::<Result<_, _>>()?,
            passing: passing.collect::<Result<_, _>>()?,
        })
    }

    /// Copies blocks of the decoder's own keys.
    pub(crate) fn copy(&mut self, blocks: &[Copied]) {
        for block in blocks {
            for cache in &mut self.own {
                cache.copy_block(block.from, block.to);
            }
        }
    }
}

/// What a pass looks up in the caches: the lists of both, the blocks of an encoder's keys, and lists to be
/// filled.
pub(crate) type Lists<'c> =
    (&'c BlockTables, &'c BlockTables, &'c [u32], &'c mut [Vec<Segment<'static>>; 2]);

impl Caches {
    pub(crate) fn new(
        architecture: &Architecture,
        info: &TokenModelInfo,
        capacity: Capacity,
    ) -> Self {
        let n_sequences = capacity.sequences;
        // An encoder alone keeps nothing, whatever its capacity.
        let of_decoder = |tokens: u64| if architecture.decoder.is_some() { tokens } else { 0 };
        let tables = |tokens: u64, longest: u32| {
            BlockTables::new(TOKENS_PER_BLOCK, of_decoder(tokens), n_sequences, longest as usize)
        };
        // Each segment of a batch may leave a block unfilled.
        let n_passing = if architecture.encoder.is_some() { info.max_batch_tokens } else { 0 };
        Self {
            tables: tables(capacity.tokens, info.max_positions),
            cross_tables: tables(capacity.cross_tokens, info.max_encoder_positions),
            in_order: (0..n_passing).collect(),
            copied: Vec::new(),
            spare: [Vec::new(), Vec::new()],
        }
    }

    /// Makes room for `planned` tokens of the decoder; returns the blocks that are to be copied since they
    /// are written into.
    pub(crate) fn reserve(&mut self, planned: &[Planned]) -> Result<&[Copied], EngineError> {
        self.tables.reserve(planned, &mut self.copied)?;
        Ok(&self.copied)
    }

    /// Makes room for `planned` encoder tokens.
    pub(crate) fn reserve_cross(&mut self, planned: &[Planned]) -> Result<(), EngineError> {
        self.cross_tables.reserve(planned, &mut self.copied)
    }

    /// As [`TokenModel::fork`](drivetrain_engine::TokenModel::fork).
    pub(crate) fn fork(&mut self, from: SeqId, to: SeqId, len: usize) -> Result<(), EngineError> {
        self.tables.fork(from, to, len)?;
        match self.cross_tables.len_of(from) {
            Some(len) => self.cross_tables.fork(from, to, len),
            None => Ok(()),
        }
    }

    pub(crate) fn release(&mut self, sequence: SeqId) {
        self.tables.release(sequence);
        self.cross_tables.release(sequence);
    }

    /// Two lists to be filled with [`Segment`]s; give them back to [`Self::give_back`].
    pub(crate) fn lists<'a>(spare: &mut [Vec<Segment<'static>>; 2]) -> [Vec<Segment<'a>>; 2] {
        let [own, cross] = spare;
        [recycle(std::mem::take(own)), recycle(std::mem::take(cross))]
    }

    /// The parts of it that a pass uses at once.
    pub(crate) fn split(&mut self) -> Lists<'_> {
        (&self.tables, &self.cross_tables, &self.in_order, &mut self.spare)
    }
}

/// Puts the memory of lists by for the next pass.
pub(crate) fn give_back(spare: &mut [Vec<Segment<'static>>; 2], lists: [Vec<Segment<'_>>; 2]) {
    let [own, cross] = lists;
    *spare = [recycle(own), recycle(cross)];
}

/// The rows of `planned` with the blocks of their own keys.
pub(crate) fn own_segments<'a>(
    to: &mut Vec<Segment<'a>>,
    planned: &[Planned],
    tables: &'a BlockTables,
) {
    let n_keys = |planned: &Planned| planned.position + planned.n;
    to.extend(planned.iter().map(|planned| segment(planned, n_keys(planned), tables)));
}

/// The rows of `planned` with the blocks of their encoder's output.
pub(crate) fn cross_segments<'a>(
    to: &mut Vec<Segment<'a>>,
    planned: &[Planned],
    tables: &'a BlockTables,
) {
    let n_keys = |planned: &Planned| tables.len_of(planned.sequence).unwrap_or(0);
    to.extend(planned.iter().map(|planned| segment(planned, n_keys(planned), tables)));
}

fn segment<'a>(planned: &Planned, n_keys: usize, tables: &'a BlockTables) -> Segment<'a> {
    Segment {
        first_row: planned.first_row,
        n_rows: planned.n,
        first_position: planned.position,
        n_keys,
        blocks: tables.blocks(planned.sequence),
    }
}

/// Whole inputs, whose keys are kept no longer than a layer.
pub(crate) fn passing_segments<'a>(
    to: &mut Vec<Segment<'a>>,
    planned: &[Planned],
    in_order: &'a [u32],
) {
    let mut next = 0;
    to.extend(planned.iter().map(|segment| {
        let n_blocks = segment.n.div_ceil(TOKENS_PER_BLOCK);
        next += n_blocks;
        Segment {
            first_row: segment.first_row,
            n_rows: segment.n,
            first_position: 0,
            n_keys: segment.n,
            blocks: &in_order[next - n_blocks..next],
        }
    }));
}
