//! Mixed batches against plain loops, for every precision and instruction set.

use std::num::NonZeroUsize;

use half::{bf16, f16};

use crate::attention_reference::{self as reference, Sequence};
use crate::matmul_reference::bytes;
use crate::random::Random;
use drivetrain_kernels::{
    Attention, Cpu, HeadGroups, Heads, Isa, KvCache, KvPrecision, KvShape, Mask, Pool,
    PositionBias, Segment,
};

/// Rows that a segment asks for, and keys of its sequence.
const SEGMENTS: [(usize, usize); 5] = [(1, 1), (70, 70), (1, 130), (5, 37), (33, 100)];

struct Batch {
    n_heads: usize,
    shape: KvShape,
    queries: Vec<f32>,
    /// Of each sequence, `[n_keys, n_kv_heads, head_dim]`.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    tables: Vec<Vec<u32>>,
}

const PADDING: usize = 3;

impl Batch {
    fn new(random: &mut Random, n_heads: usize, n_kv_heads: usize, head_dim: usize) -> Self {
        let width = n_kv_heads * head_dim;
        let n_rows: usize = SEGMENTS.iter().map(|(n_rows, _)| n_rows).sum();
        let queries = random.floats(n_rows * (n_heads * head_dim + PADDING));
        // Neighbouring blocks belong to different sequences.
        let (mut next, mut tables) = (0, Vec::new());
        for (_, n_keys) in SEGMENTS {
            let n = (n_keys as u32).div_ceil(16);
            tables.push((0..n).map(|idx| (next + idx) * 7 % 31).collect::<Vec<u32>>());
            next += n;
        }
        let mut of_keys = || SEGMENTS.map(|(_, n_keys)| random.floats(n_keys * width)).to_vec();
        let (keys, values) = (of_keys(), of_keys());
        let shape = KvShape { n_blocks: 31, n_kv_heads, head_dim };
        Self { n_heads, shape, queries, keys, values, tables }
    }

    fn segments(&self) -> Vec<Segment<'_>> {
        let mut first_row = 0;
        let segment = |((n_rows, n_keys), blocks): ((usize, usize), &'_ Vec<u32>)| {
            first_row += n_rows;
            (first_row - n_rows, n_rows, n_keys - n_rows, n_keys, blocks.len())
        };
        let numbers: Vec<_> = SEGMENTS.into_iter().zip(&self.tables).map(segment).collect();
        let with_blocks = numbers.into_iter().zip(&self.tables);
        with_blocks
            .map(|((first_row, n_rows, first_position, n_keys, _), blocks)| Segment {
                first_row,
                n_rows,
                first_position,
                n_keys,
                blocks,
            })
            .collect()
    }

    fn queries(&self) -> Heads<'_> {
        let stride = self.n_heads * self.shape.head_dim + PADDING;
        Heads { rows: &self.queries, stride, first_column: PADDING }
    }

    /// A cache with NaN wherever nothing was written.
    fn cache(&self, cpu: Cpu<'_>, precision: KvPrecision) -> KvCache {
        let mut cache = KvCache::new(self.shape, precision).unwrap();
        let stride = self.shape.n_kv_heads * self.shape.head_dim;
        let bad = vec![f32::NAN; self.shape.n_blocks * 16 * stride];
        let all: Vec<u32> = (0..self.shape.n_blocks as u32).collect();
        let n = self.shape.n_blocks * 16;
        let heads = |rows| Heads { rows, stride, first_column: 0 };
        let whole =
            |n, blocks| Segment { first_row: 0, n_rows: n, first_position: 0, n_keys: n, blocks };
        cache.append(cpu, &[whole(n, &all)], heads(&bad), heads(&bad)).unwrap();
        for ((keys, values), blocks) in self.keys.iter().zip(&self.values).zip(&self.tables) {
            let segment = whole(keys.len() / stride, blocks);
            cache.append(cpu, &[segment], heads(keys), heads(values)).unwrap();
        }
        cache
    }

    fn wanted(&self, attention: &Attention<'_>, precision: KvPrecision) -> Vec<f64> {
        let held = |all: &[f32]| -> Vec<f32> {
            let hold = |x: &f32| match precision {
                KvPrecision::F32 => *x,
                KvPrecision::F16 => f16::from_f32(*x).to_f32(),
                KvPrecision::Bf16 => bf16::from_f32(*x).to_f32(),
                other => panic!("{other:?} is not held by elements"),
            };
            match precision {
                KvPrecision::Int8 => all.chunks(self.shape.head_dim).flat_map(bytes).collect(),
                _ => all.iter().map(hold).collect(),
            }
        };
        let mut all = Vec::new();
        for (idx, segment) in self.segments().iter().enumerate() {
            let (keys, values) = (held(&self.keys[idx]), held(&self.values[idx]));
            let n_kv_heads = self.shape.n_kv_heads;
            let sequence =
                Sequence { keys: &keys, values: &values, n_keys: segment.n_keys, n_kv_heads };
            for token in 0..segment.n_rows {
                for head in 0..self.n_heads {
                    let row = segment.first_row + token;
                    let place = (row, head, segment.first_position + token);
                    let query = self.queries();
                    let query = query.head(row, head, self.shape.head_dim);
                    all.extend(reference::attend(attention, &sequence, query, place));
                }
            }
        }
        all
    }
}

const ALL: [KvPrecision; 4] =
    [KvPrecision::F32, KvPrecision::F16, KvPrecision::Bf16, KvPrecision::Int8];

fn attend(cpu: Cpu<'_>, batch: &Batch, attention: &Attention<'_>, cache: &KvCache) -> Vec<f32> {
    let width = batch.n_heads * batch.shape.head_dim;
    let mut output = vec![f32::NAN; batch.queries().n_rows() * width];
    attention.apply(cpu, cache, &batch.segments(), batch.queries(), &mut output).unwrap();
    output
}

fn check(batch: &Batch, attention: &Attention<'_>, precision: KvPrecision) {
    let pool = Pool::new(NonZeroUsize::new(2).unwrap()).unwrap();
    let wanted = batch.wanted(attention, precision);
    for isa in crate::available() {
        let cpu = Cpu { isa, pool: &pool };
        let cache = batch.cache(cpu, precision);
        let found = attend(cpu, batch, attention, &cache);
        for (idx, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
            let error = (f64::from(*found) - wanted).abs();
            assert!(error < 3e-6, "{isa} {precision:?} {attention:?}: {idx}: {found}, {wanted}");
        }
    }
}

fn plain(n_heads: usize, mask: Mask) -> Attention<'static> {
    Attention { n_heads, scale: 0.3, mask, soft_cap: None, bias: PositionBias::None }
}

#[test]
fn heads_masks_and_precisions() {
    let mut random = Random::new(8);
    for (n_heads, n_kv_heads, head_dim) in [(3, 3, 16), (6, 2, 40), (4, 1, 7), (2, 2, 70)] {
        let batch = Batch::new(&mut random, n_heads, n_kv_heads, head_dim);
        for mask in [Mask::Full, Mask::Causal, Mask::Window(20)] {
            for precision in ALL {
                check(&batch, &plain(n_heads, mask), precision);
            }
        }
    }
}

#[test]
fn biases_and_caps() {
    let mut random = Random::new(9);
    let batch = Batch::new(&mut random, 4, 2, 24);
    let (slopes, table) = (random.floats(4), random.floats(4 * 50));
    let by_key = random.floats(4 * 131);
    let rows = random.floats(batch.queries().n_rows() * 4 * 140);
    let biases = [
        PositionBias::None,
        PositionBias::Alibi(&slopes),
        PositionBias::Key { table: &by_key },
        PositionBias::Distance { table: &table, zero: 30 },
        PositionBias::Rows { rows: &rows, n_keys: 140 },
    ];
    for bias in biases {
        for mask in [Mask::Full, Mask::Causal] {
            for soft_cap in [None, Some(1.5)] {
                let attention = Attention { bias, soft_cap, ..plain(4, mask) };
                check(&batch, &attention, KvPrecision::F32);
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch() {
    let mut random = Random::new(10);
    let batch = Batch::new(&mut random, 6, 2, 40);
    let pools = [1, 3].map(|n| Pool::new(NonZeroUsize::new(n).unwrap()).unwrap());
    for isa in crate::available() {
        for mask in [Mask::Causal, Mask::Window(20)] {
            let attention = plain(6, mask);
            let cpu = Cpu { isa, pool: &pools[0] };
            let cache = batch.cache(cpu, KvPrecision::F32);
            let all = attend(cpu, &batch, &attention, &cache);
            assert_eq!(all, attend(Cpu { isa, pool: &pools[1] }, &batch, &attention, &cache));
            for segment in batch.segments() {
                for token in 0..segment.n_rows {
                    // With its own keys alone, as when it was the last token.
                    let row = segment.first_row + token;
                    let position = segment.first_position + token;
                    let alone = Segment {
                        first_row: row,
                        n_rows: 1,
                        first_position: position,
                        n_keys: position + 1,
                        blocks: segment.blocks,
                    };
                    let mut found = vec![0.0; all.len()];
                    let queries = batch.queries();
                    attention.apply(cpu, &cache, &[alone], queries, &mut found).unwrap();
                    let own = row * 240..(row + 1) * 240;
                    assert_eq!(found[own.clone()], all[own], "{isa} {mask:?} row {row}");
                }
            }
        }
    }
}

#[test]
fn copied_blocks_are_equal_and_bad_ones_refused() {
    let mut random = Random::new(11);
    let batch = Batch::new(&mut random, 2, 2, 8);
    let pool = Pool::new(NonZeroUsize::MIN).unwrap();
    let cpu = Cpu { isa: Isa::detect(), pool: &pool };
    let mut cache = batch.cache(cpu, KvPrecision::Int8);
    let attention = plain(2, Mask::Causal);
    let before = attend(cpu, &batch, &attention, &cache);
    let mut moved = batch;
    let used: Vec<u32> = moved.tables.iter().flatten().copied().collect();
    let free = (0..31).find(|block| !used.contains(block)).unwrap();
    cache.copy_block(moved.tables[1][2], free);
    moved.tables[1][2] = free;
    assert_eq!(before, attend(cpu, &moved, &attention, &cache));
    moved.tables[1][2] = 31;
    let mut output = vec![0.0; before.len()];
    let segments = moved.segments();
    let refused = attention.apply(cpu, &cache, &segments, moved.queries(), &mut output);
    let message = refused.unwrap_err().to_string();
    assert_eq!(message, "a block is 31, and should be a block of the cache");
}

#[test]
fn a_share_of_the_heads_may_cut_groups() {
    let mut random = Random::new(12);
    let (head_dim, n_heads) = (24, 6);
    let batch = Batch::new(&mut random, n_heads, 2, head_dim);
    let pool = Pool::new(NonZeroUsize::new(2).unwrap()).unwrap();
    let cpu = Cpu { isa: Isa::choose(None).unwrap(), pool: &pool };
    let cache = batch.cache(cpu, KvPrecision::F32);
    let whole = attend(cpu, &batch, &plain(n_heads, Mask::Causal), &cache);
    let queries = batch.queries();
    for (first, end) in [(0, 4), (1, 5), (2, 6), (2, 4)] {
        let own = end - first;
        let first_column = queries.first_column + first * head_dim;
        let share = Heads { first_column, ..queries };
        let mut output = vec![f32::NAN; queries.n_rows() * own * head_dim];
        let groups = HeadGroups { size: 3, first };
        let attention = plain(own, Mask::Causal);
        let segments = batch.segments();
        attention.apply_groups(cpu, (&cache, groups), &segments, share, &mut output).unwrap();
        let rows = whole.chunks_exact(n_heads * head_dim);
        let expect: Vec<f32> =
            rows.flat_map(|row| &row[first * head_dim..end * head_dim]).copied().collect();
        assert!(output == expect, "heads {first}..{end}");
        let wrong = HeadGroups { size: 6, first: 0 };
        let wrong = attention.apply_groups(cpu, (&cache, wrong), &segments, share, &mut output);
        assert!(wrong.is_err());
    }
}
