//! Attention of single queries over blocks of keys and values: decode steps.
//!
//! One task is a query token and a key-value head, whose query heads share every key and value that
//! is read. Probabilities are made as a whole, then the values are summed up.

use std::ops::Range;
use std::slice::ChunksExact;

use pulp::{Simd, WithSimd};

use super::softmax::{Scores, softmax};
use super::{ARCH, LANES, dot};

/// Keys and values of one block: slices `[n_kv_heads, capacity, head_dim]`, of which the first
/// `len` of each head are there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttendKeys<'a> {
    pub(crate) keys: &'a [f32],
    pub(crate) values: &'a [f32],
    pub(crate) capacity: usize,
    /// Position of the first one.
    pub(crate) first: usize,
    pub(crate) len: usize,
}

/// Attention of one token's query heads `q` `[group, head_dim]`, which read key-value head
/// `kv_head`, over `blocks`; writes `out` `[group, head_dim]`. `meaning` is of one query, its
/// `n_keys` the keys of all blocks.
pub(crate) fn attend(
    q: &[f32],
    blocks: &[AttendKeys<'_>],
    kv_head: usize,
    head_dim: usize,
    meaning: &Scores<'_>,
    out: &mut [f32],
) {
    let mut scores = vec![0.0f32; q.len() / head_dim * meaning.visible(0).len()];
    ARCH.dispatch(Attend { q, blocks, kv_head, head_dim, meaning, out, scores: &mut scores });
}

struct Attend<'a> {
    q: &'a [f32],
    blocks: &'a [AttendKeys<'a>],
    kv_head: usize,
    head_dim: usize,
    meaning: &'a Scores<'a>,
    out: &'a mut [f32],
    /// `[group, n_seen]`.
    scores: &'a mut [f32],
}

impl WithSimd for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { q, blocks, kv_head, head_dim, meaning, out, scores } = self;
        let visible = meaning.visible(0);
        let n_seen = visible.len();
        let mut seen = 0;
        for block in blocks {
            for key in block.rows(block.keys, kv_head, head_dim, &visible) {
                for (head, q) in q.chunks_exact(head_dim).enumerate() {
                    scores[head * n_seen + seen] = dot(q, key);
                }
                seen += 1;
            }
        }
        let first_head = kv_head * (q.len() / head_dim);
        for (head, row) in scores.chunks_exact_mut(n_seen.max(1)).enumerate() {
            softmax(row, meaning, first_head + head, 0);
        }
        out.fill(0.0);
        let mut seen = 0;
        for block in blocks {
            for value in block.rows(block.values, kv_head, head_dim, &visible) {
                for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
                    add_scaled(out, value, scores[head * n_seen + seen]);
                }
                seen += 1;
            }
        }
    }
}

impl<'a> AttendKeys<'a> {
    /// The rows of one head, of the keys or the values, whose positions are in `visible`.
    #[inline(always)]
    fn rows(
        &self,
        data: &'a [f32],
        kv_head: usize,
        head_dim: usize,
        visible: &Range<usize>,
    ) -> ChunksExact<'a, f32> {
        let start = visible.start.clamp(self.first, self.first + self.len) - self.first;
        let end = visible.end.clamp(self.first, self.first + self.len) - self.first;
        let head = kv_head * self.capacity;
        data[(head + start) * head_dim..(head + end) * head_dim].chunks_exact(head_dim)
    }
}

/// `out += factor * x`.
#[inline(always)]
fn add_scaled(out: &mut [f32], x: &[f32], factor: f32) {
    let (outs, out_tail) = out.as_chunks_mut::<LANES>();
    let (xs, x_tail) = x.as_chunks::<LANES>();
    for (out, x) in outs.iter_mut().zip(xs) {
        for lane in 0..LANES {
            out[lane] += factor * x[lane];
        }
    }
    out_tail.iter_mut().zip(x_tail).for_each(|(out, x)| *out += factor * x);
}
