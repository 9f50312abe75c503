//! Attention over a paged cache of keys and values, with the softmax computed on the way.
//!
//! ```text
//! score(q, k) = cap(scale * q . k) + bias(q's position, k's position)     cap(x) = c tanh(x / c)
//! output(q)   = sum over the keys k that q may see of softmax(score)(k) * value(k)
//! ```
//!
//! A cache ([`KvCache`], one a layer) is blocks of 16 tokens. A sequence has a table from its blocks to the
//! cache's, so sequences share blocks and beams are tables:
//!
//! ```text
//! keys     [n_blocks, n_kv_heads, head_dim, 16]    16 tokens side by side: a vector of scores
//! values   [n_blocks, n_kv_heads, 16, head_dim]
//! ```
//!
//! With 8 bits, 16 scales follow the elements of each head's block.
//!
//! Rows are packed: a batch is the concatenation of its segments' queries, and each segment says which keys
//! it sees. Heads that share keys (GQA, MQA) are rows of one product. Keys are taken 64 at a time
//! from the first on; a running maximum and sum make one softmax of them (Milakov and Gimelshein 2018).
//! A row's result depends on its own keys alone, not on its neighbours or on the number of threads.
//! A row that sees no key is 0.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

pub use cache::{KvCache, KvPrecision, KvShape, Segment, TOKENS_PER_BLOCK};

use crate::error::{KernelError, length};
use crate::pool::{Cpu, Parts};

mod cache;
mod rows;

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of its segment: encoders, cross-attention.
    Full,
    /// Those up to its own position.
    Causal,
    /// Those up to its own position, and this many at most.
    Window(usize),
}

/// What is added to scores.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum PositionBias<'a> {
    /// Nothing.
    None,
    /// A slope a head, `[n_heads]`, times the key's position less the query's (ALiBi).
    Alibi(&'a [f32]),
    /// By the key's position: `[n_heads, n_positions]`, where `n_positions` is at least the most keys of
    /// any segment (Falcon's ALiBi, whose slopes are rounded by position).
    Key {
        /// `[n_heads, n_positions]`.
        table: &'a [f32],
    },
    /// By distance, as T5 has it: `[n_heads, n_distances]`, where the key's position less the query's
    /// plus `zero` is the column. Distances beyond the ends take the ends' values.
    Distance {
        /// `[n_heads, n_distances]`.
        table: &'a [f32],
        /// The column of distance 0.
        zero: usize,
    },
    /// For each query, head and key: `[n_queries, n_heads, n_keys]`, where `n_keys` is at least the
    /// most of any segment.
    Rows {
        /// `[n_queries, n_heads, n_keys]`.
        rows: &'a [f32],
        /// Keys of a row.
        n_keys: usize,
    },
}

/// What a layer's attention is.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Heads of queries, a multiple of the cache's.
    pub n_heads: usize,
    /// What products of queries and keys are multiplied with.
    pub scale: f32,
    /// Which keys a query sees.
    pub mask: Mask,
    /// The cap of scores, before the bias.
    pub soft_cap: Option<f32>,
    /// What is added to scores.
    pub bias: PositionBias<'a>,
}

/// Which heads of queries read which of keys: query head `h` reads key head `(h + first) / size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadGroups {
    /// Heads of queries for one of keys, in whole groups.
    pub size: usize,
    /// Heads of the first group that are not here: a share of a model's heads may begin and end inside
    /// a group.
    pub first: usize,
}

impl HeadGroups {
    /// Heads of queries, of `n_heads`, that read `kv_head`.
    fn heads(self, kv_head: usize, n_heads: usize) -> std::ops::Range<usize> {
        let at = |group: usize| (group * self.size).saturating_sub(self.first).min(n_heads);
        at(kv_head)..at(kv_head + 1)
    }
}

/// Heads inside rows that hold other things, too: head `h` of row `r` begins at
/// `r * stride + first_column + h * head_dim`.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// `[n_rows, stride]`.
    pub rows: &'a [f32],
    /// Elements of a row.
    pub stride: usize,
    /// Where the first head begins.
    pub first_column: usize,
}

impl Heads<'_> {
    pub(crate) fn check(&self, what: &'static str, width: usize) -> Result<(), KernelError> {
        if self.first_column + width > self.stride {
            let wanted = "at least all heads";
            return Err(KernelError::Value { what, found: self.stride, wanted });
        }
        length(what, self.rows.len(), self.rows.len() / self.stride * self.stride)
    }

    /// Rows of the batch.
    pub fn n_rows(&self) -> usize {
        self.rows.len() / self.stride
    }

    /// `head_dim` elements of a head.
    #[inline(always)]
    pub fn head(&self, row: usize, head: usize, head_dim: usize) -> &[f32] {
        &self.rows[row * self.stride + self.first_column + head * head_dim..][..head_dim]
    }
}

/// Rows of one head group that share a pass over the keys: whole sixes, which are multiplied at once.
const ROWS: usize = 36;

impl Attention<'_> {
    /// Writes `[n_rows, n_heads * head_dim]` for the queries of all segments. The keys and values must
    /// be in the cache, those of the queries' own tokens, too.
    ///
    /// # Errors
    /// Sizes don't fit each other, or a segment names a block that isn't there.
    pub fn apply(
        &self,
        cpu: Cpu<'_>,
        cache: &KvCache,
        segments: &[Segment<'_>],
        queries: Heads<'_>,
        output: &mut [f32],
    ) -> Result<(), KernelError> {
        let n_kv_heads = cache.shape().n_kv_heads;
        if !self.n_heads.is_multiple_of(n_kv_heads) {
            let wanted = "a multiple of the cache's heads";
            return Err(KernelError::Value { what: "n_heads", found: self.n_heads, wanted });
        }
        let groups = HeadGroups { size: self.n_heads / n_kv_heads, first: 0 };
        self.apply_groups(cpu, (cache, groups), segments, queries, output)
    }

    /// The same with heads of queries that are not whole groups.
    ///
    /// # Errors
    /// As [`Self::apply`], or the groups are not those of the cache's heads.
    pub fn apply_groups(
        &self,
        cpu: Cpu<'_>,
        (cache, groups): (&KvCache, HeadGroups),
        segments: &[Segment<'_>],
        queries: Heads<'_>,
        output: &mut [f32],
    ) -> Result<(), KernelError> {
        let shape = cache.shape();
        self.check((shape, groups), segments, queries, output.len())?;
        segments.iter().try_for_each(|segment| segment.check(shape, queries.n_rows()))?;
        // Of a group that is not whole, some units are empty.
        let most = groups.size.min(self.n_heads);
        let units =
            |segment: &Segment<'_>| shape.n_kv_heads * (segment.n_rows * most).div_ceil(ROWS);
        let n_units = segments.iter().map(units).sum::<usize>();
        let output = Parts::new(output);
        let job = rows::Job { attention: self, cache, queries, output };
        // Units differ in length, so each thread takes the next; who takes one changes nothing.
        let next = AtomicUsize::new(0);
        let work = || {
            let (mut first, mut remaining) = (0, segments.iter());
            let mut current = remaining.next();
            loop {
                let unit_idx = next.fetch_add(1, Relaxed);
                while let Some(segment) = current.filter(|s| unit_idx >= first + units(s)) {
                    first += units(segment);
                    current = remaining.next();
                }
                let Some(segment) = current else { return };
                let unit = unit_idx - first;
                let kv_head = unit % shape.n_kv_heads;
                let start = unit / shape.n_kv_heads * ROWS;
                let heads = groups.heads(kv_head, self.n_heads);
                let rows = start..(start + ROWS).min(segment.n_rows * heads.len());
                if !rows.is_empty() {
                    cpu.isa.run(rows::Unit { job: &job, segment, kv_head, heads, rows });
                }
            }
        };
        if n_units > 1 {
            cpu.pool.run(|_, _| work())
        } else {
            work()
        }
        Ok(())
    }

    fn check(
        &self,
        (shape, groups): (KvShape, HeadGroups),
        segments: &[Segment<'_>],
        queries: Heads<'_>,
        n_output: usize,
    ) -> Result<(), KernelError> {
        let HeadGroups { size, first } = groups;
        let n_groups = (self.n_heads + first).div_ceil(size.max(1));
        if self.n_heads == 0 || first >= size || n_groups != shape.n_kv_heads {
            let wanted = "as many groups as the cache has heads";
            return Err(KernelError::Value { what: "n_heads", found: self.n_heads, wanted });
        }
        let width = self.n_heads * shape.head_dim;
        queries.check("the queries' rows", width)?;
        length("the output", n_output, queries.n_rows() * width)?;
        let most = segments.iter().map(|segment| segment.n_keys).max().unwrap_or(0);
        match self.bias {
            PositionBias::None => Ok(()),
            PositionBias::Alibi(slopes) => length("the slopes", slopes.len(), self.n_heads),
            PositionBias::Key { table } => {
                let n = table.len() / self.n_heads;
                if n < most {
                    let wanted = "at least the keys of each segment";
                    return Err(KernelError::Value { what: "the bias by key", found: n, wanted });
                }
                length("the bias by key", table.len(), n * self.n_heads)
            }
            PositionBias::Distance { table, zero } => {
                let n = table.len() / self.n_heads;
                if zero >= n {
                    let wanted = "a column of the table of distances";
                    return Err(KernelError::Value { what: "distance 0", found: zero, wanted });
                }
                length("the table of distances", table.len(), n * self.n_heads)
            }
            PositionBias::Rows { rows, n_keys } => {
                if n_keys < most {
                    let wanted = "at least the keys of each segment";
                    return Err(KernelError::Value { what: "the bias", found: n_keys, wanted });
                }
                length("the bias", rows.len(), queries.n_rows() * self.n_heads * n_keys)
            }
        }
    }
}
