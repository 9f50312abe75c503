//! Attention of single queries over blocks of keys and values: decode steps.
//!
//! One task is a query token and a key-value head, whose query heads share every key and value that
//! is read. Probabilities are made as a whole, then the values are summed up.

use super::softmax::{Scores, softmax};
use super::{ARCH, LANES, dot};

/// Keys and values of one block: slices `[n_kv_heads, capacity, head_dim]`, of which the first
/// `len` of each head are there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttendKeys<'a> {
    pub(crate) keys: &'a [f32],
    pub(crate) values: &'a [f32],
    pub(crate) capacity: usize,
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
    meaning: &Scores,
    out: &mut [f32],
) {
    let visible = meaning.visible(0);
    let n_seen = visible.len();
    let group = q.len() / head_dim;
    let mut scores = vec![0.0f32; group * n_seen];
    ARCH.dispatch(
        #[inline(always)]
        || {
            for_each_row(blocks, kv_head, head_dim, &visible, true, |idx, key| {
                for (head, q) in q.chunks_exact(head_dim).enumerate() {
                    scores[head * n_seen + idx] = dot(q, key);
                }
            });
            for row in scores.chunks_exact_mut(n_seen.max(1)) {
                softmax(row, meaning.scale, meaning.soft_cap);
            }
            out.fill(0.0);
            for_each_row(blocks, kv_head, head_dim, &visible, false, |idx, value| {
                for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
                    add_scaled(out, value, scores[head * n_seen + idx]);
                }
            });
        },
    );
}

/// Calls `row` with the number (from the first visible one) and the key or value of each visible
/// position.
#[inline(always)]
fn for_each_row(
    blocks: &[AttendKeys<'_>],
    kv_head: usize,
    head_dim: usize,
    visible: &std::ops::Range<usize>,
    keys: bool,
    mut row: impl FnMut(usize, &[f32]),
) {
    let mut first = 0;
    for block in blocks {
        let data = if keys { block.keys } else { block.values };
        let start = visible.start.clamp(first, first + block.len) - first;
        let end = visible.end.clamp(first, first + block.len) - first;
        let head = kv_head * block.capacity;
        let rows = &data[(head + start) * head_dim..(head + end) * head_dim];
        for (idx, values) in rows.chunks_exact(head_dim).enumerate() {
            row(first + start + idx - visible.start, values);
        }
        first += block.len;
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
