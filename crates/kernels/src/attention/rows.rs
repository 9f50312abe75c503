//! Some rows of one head of keys: all passes over the cache.

use std::ops::Range;

use super::{Attention, Heads, KvCache, KvPrecision, Mask, PositionBias, Segment};
use super::{ROWS, TOKENS_PER_BLOCK};
use crate::pool::Parts;
use crate::vector::{Arithmetic, Simd, load, math, store};

/// Keys of a pass: their keys and values are in the first-level cache for all rows.
const KEYS: usize = 4 * TOKENS_PER_BLOCK;

/// An attention that is under way.
pub(super) struct Job<'a> {
    pub(super) attention: &'a Attention<'a>,
    pub(super) cache: &'a KvCache,
    pub(super) queries: Heads<'a>,
    pub(super) output: Parts<'a, f32>,
}

/// Rows `rows` of a segment and a head of keys: row `i` is the segment's token `i / n` and the `i % n`th
/// of the `n` heads that share the keys.
pub(super) struct Unit<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) segment: &'a Segment<'a>,
    pub(super) kv_head: usize,
    /// Those that share the keys.
    pub(super) heads: Range<usize>,
    pub(super) rows: Range<usize>,
}

/// How an element of the cache becomes f32.
trait Element {
    type Stored;

    /// Whether each token's head has a scale.
    const HAS_SCALES: bool;

    /// # Safety
    /// A vector can be read.
    unsafe fn load<S: Simd>(s: S, from: *const Self::Stored) -> S::F;
}

macro_rules! elements {
    ($($name:ident: $stored:ty, $load:ident, $has_scales:literal;)*) => {
        $(struct $name;

        impl Element for $name {
            type Stored = $stored;

            const HAS_SCALES: bool = $has_scales;

            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, from: *const $stored) -> S::F {
                // SAFETY: the caller vouches for the memory.
                unsafe { s.$load(from) }
            }
        })*
    };
}

elements! {
    Float: f32, load, false;
    Half: u16, load_f16, false;
    Brain: u16, load_bf16, false;
    Byte: i8, load_i8, true;
}

/// A query of one head, and what is known of its softmax so far.
#[derive(Clone, Copy)]
struct Row {
    /// Its row of the batch.
    batch_row: usize,
    head: usize,
    position: usize,
    /// The first key that it sees, and the one after the last.
    first: usize,
    end: usize,
    /// `[head_dim]`.
    query: *const f32,
    /// Where its output begins.
    output_at: usize,
    /// The largest score.
    largest: f32,
    /// The sum of exponentials of scores less the largest.
    total: f32,
}

impl Row {
    const NONE: Self = Self {
        batch_row: 0,
        head: 0,
        position: 0,
        first: 0,
        end: 0,
        query: std::ptr::null(),
        output_at: 0,
        largest: f32::MIN,
        total: 0.0,
    };
}

impl Arithmetic for Unit<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.job.cache.precision() {
            KvPrecision::F32 => self.compute::<S, Float>(s),
            KvPrecision::F16 => self.compute::<S, Half>(s),
            KvPrecision::Bf16 => self.compute::<S, Brain>(s),
            KvPrecision::Int8 => self.compute::<S, Byte>(s),
        }
    }
}

impl Unit<'_> {
    #[inline(always)]
    fn head_dim(&self) -> usize {
        self.job.cache.shape().head_dim
    }

    /// The keys that a query at `position` sees.
    #[inline(always)]
    fn sees(&self, position: usize) -> Range<usize> {
        let n_keys = self.segment.n_keys;
        let end = n_keys.min(position + 1);
        match self.job.attention.mask {
            Mask::Full => 0..n_keys,
            Mask::Causal => 0..end,
            Mask::Window(n) => (position + 1).saturating_sub(n).min(end)..end,
        }
    }

    /// A row of the segment, of which nothing is known yet.
    #[inline(always)]
    fn row(&self, row: usize) -> Row {
        let n_heads = self.heads.end - self.heads.start;
        let (token, head) = (row / n_heads, self.heads.start + row % n_heads);
        let (batch_row, position) =
            (self.segment.first_row + token, self.segment.first_position + token);
        let sees = self.sees(position);
        Row {
            batch_row,
            head,
            position,
            first: sees.start,
            end: sees.end,
            query: self.job.queries.head(batch_row, head, self.head_dim()).as_ptr(),
            output_at: (batch_row * self.job.attention.n_heads + head) * self.head_dim(),
            ..Row::NONE
        }
    }

    /// The part of the output that is a row's.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "a unit takes one row at a time")]
    fn output(&self, row: &Row) -> &mut [f32] {
        // SAFETY: a row of a head belongs to one unit, and a unit to one thread.
        unsafe { self.job.output.take(row.output_at..row.output_at + self.head_dim()) }
    }

    #[inline(always)]
    fn compute<S: Simd, E: Element>(&self, s: S) {
        let mut all = [Row::NONE; ROWS];
        let rows = &mut all[..self.rows.len()];
        for (row, idx) in rows.iter_mut().zip(self.rows.clone()) {
            *row = self.row(idx);
            self.output(row).fill(0.0);
        }
        // Later tokens see no earlier keys first, and no earlier ones last.
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return };
        let (mut start, end) = (first.first / KEYS * KEYS, last.end);
        while start < end {
            let keys = start..(start + KEYS).min(end);
            // Sums for 12 registers, or for 8 chains of additions, which wait for themselves.
            let (sixes, left) = rows.as_chunks_mut();
            for rows in sixes {
                self.pass::<S, E, 6, 2, 2>(s, rows, keys.clone());
            }
            let (threes, left) = left.as_chunks_mut();
            for rows in threes {
                self.pass::<S, E, 3, 4, 4>(s, rows, keys.clone());
            }
            for row in left.as_chunks_mut().0 {
                self.pass::<S, E, 1, 8, 8>(s, row, keys.clone());
            }
            start += KEYS;
        }
        for row in rows {
            let factor = s.splat(if row.total == 0.0 { 0.0 } else { 1.0 / row.total });
            for part in self.output(row).chunks_mut(S::LANES) {
                let y = s.mul(load(s, part), factor);
                store(s, part, y);
            }
        }
    }

    /// `R` rows and some keys: scores, of `N` vectors of keys at once, the softmax so far, and the values'
    /// sum, of `V` vectors at once.
    #[inline(always)]
    fn pass<S: Simd, E: Element, const R: usize, const N: usize, const V: usize>(
        &self,
        s: S,
        rows: &mut [Row; R],
        keys: Range<usize>,
    ) {
        let mut scores = [[0.0_f32; KEYS]; R];
        for start in keys.clone().step_by(N * S::LANES) {
            self.multiply::<S, E, R, N>(s, rows, (start, &keys), &mut scores);
        }
        for (row, scores) in rows.iter_mut().zip(&mut scores) {
            self.softmax(s, row, (scores, keys.clone()));
        }
        if E::HAS_SCALES {
            self.scale_values::<S, E, R>(s, keys.clone(), &mut scores);
        }
        self.add_values::<S, E, R, V>(s, rows, (&scores, keys));
    }

    /// Exponentials times the scales of their values.
    #[inline(always)]
    fn scale_values<S: Simd, E: Element, const R: usize>(
        &self,
        s: S,
        keys: Range<usize>,
        scores: &mut [[f32; KEYS]; R],
    ) {
        for (block, start) in keys.step_by(TOKENS_PER_BLOCK).enumerate() {
            let scales = self.job.cache.scales(self.values::<E>(start));
            for lane in (0..TOKENS_PER_BLOCK).step_by(S::LANES) {
                // SAFETY: a block has 16 scales. Those beyond the last key may be anything, and their
                // exponentials are not looked at.
                let scales = unsafe { s.load(scales.add(lane)) };
                for scores in &mut *scores {
                    let part = &mut scores[block * TOKENS_PER_BLOCK + lane..][..S::LANES];
                    let y = s.mul(load(s, part), scales);
                    store(s, part, y);
                }
            }
        }
    }

    /// The block of values that has that of `key`.
    #[inline(always)]
    fn values<E: Element>(&self, key: usize) -> *const E::Stored {
        let block = self.segment.blocks[key / TOKENS_PER_BLOCK];
        self.job.cache.block::<E::Stored>(block, self.kv_head).1
    }

    /// Products of `R` queries with `N` vectors of keys from key `start` on. Of a pass that ends before,
    /// the last block is multiplied again; those products are beyond the last key.
    #[inline(always)]
    fn multiply<S: Simd, E: Element, const R: usize, const N: usize>(
        &self,
        s: S,
        rows: &[Row; R],
        (start, pass): (usize, &Range<usize>),
        scores: &mut [[f32; KEYS]; R],
    ) {
        let queries = rows.each_ref().map(|row| row.query);
        let blocks: [*const E::Stored; N] = std::array::from_fn(|n| {
            let key = (start + n * S::LANES).min(pass.end - 1);
            let block = self.segment.blocks[key / TOKENS_PER_BLOCK];
            self.job.cache.block::<E::Stored>(block, self.kv_head).0
        });
        let lane = |n: usize| (start + n * S::LANES) % TOKENS_PER_BLOCK;
        let from: [*const E::Stored; N] = std::array::from_fn(|n| blocks[n].wrapping_add(lane(n)));
        let mut sums = [[s.splat(0.0); R]; N];
        for at in 0..self.head_dim() {
            // SAFETY: a block has 16 keys for each element.
            let keys: [S::F; N] = std::array::from_fn(|n| unsafe {
                E::load(s, from[n].wrapping_add(at * TOKENS_PER_BLOCK))
            });
            for (r, query) in queries.into_iter().enumerate() {
                // SAFETY: a query has that many elements.
                let x = s.splat(unsafe { *query.add(at) });
                for (sums, keys) in sums.iter_mut().zip(keys) {
                    sums[r] = s.fma(x, keys, sums[r]);
                }
            }
        }
        for (n, sums) in sums.iter().enumerate() {
            let to = start - pass.start + n * S::LANES;
            for (scores, sum) in scores.iter_mut().zip(sums) {
                let mut sum = *sum;
                if E::HAS_SCALES {
                    let scales = self.job.cache.scales(blocks[n]).wrapping_add(lane(n));
                    // SAFETY: a block has 16 scales.
                    sum = s.mul(sum, unsafe { s.load(scales) });
                }
                store(s, &mut scores[to..to + S::LANES], sum);
            }
        }
    }

    /// Products to exponentials; keeps the row's maximum and sum, and scales what the output holds.
    #[inline(always)]
    fn softmax<S: Simd>(
        &self,
        s: S,
        row: &mut Row,
        (scores, keys): (&mut [f32; KEYS], Range<usize>),
    ) {
        if row.end <= keys.start || row.first >= keys.end {
            scores.fill(0.0);
            return;
        }
        let mut bias = [0.0_f32; KEYS];
        let has_bias = self.bias(row, keys.clone(), &mut bias);
        let scale = s.splat(self.job.attention.scale);
        for (part, bias) in scores.chunks_exact_mut(S::LANES).zip(bias.chunks_exact(S::LANES)) {
            let mut score = s.mul(load(s, part), scale);
            if let Some(cap) = self.job.attention.soft_cap {
                let capped = math::tanh(s, s.div(score, s.splat(cap)));
                score = s.mul(capped, s.splat(cap));
            }
            if has_bias {
                score = s.add(score, load(s, bias));
            }
            store(s, part, score);
        }
        // What lies outside is no score: it may be another sequence's or was never written.
        scores[..row.first.saturating_sub(keys.start)].fill(f32::NEG_INFINITY);
        scores[row.end.min(keys.end) - keys.start..].fill(f32::NEG_INFINITY);
        let mut largest = s.splat(f32::MIN);
        for part in scores.chunks_exact(S::LANES) {
            largest = s.max(load(s, part), largest);
        }
        let before = row.largest;
        let largest = before.max(s.largest(largest));
        let mut sums = s.splat(0.0);
        for part in scores.chunks_exact_mut(S::LANES) {
            let y = math::exp(s, s.sub(load(s, part), s.splat(largest)));
            sums = s.add(sums, y);
            store(s, part, y);
        }
        if largest > before {
            let mut factor = [0.0; 16];
            // SAFETY: a vector has at most 16 lanes.
            unsafe { s.store(factor.as_mut_ptr(), math::exp(s, s.splat(before - largest))) };
            row.total *= factor[0];
            row.largest = largest;
            for part in self.output(row).chunks_mut(S::LANES) {
                let y = s.mul(load(s, part), s.splat(factor[0]));
                store(s, part, y);
            }
        }
        row.total += s.sum(sums);
    }

    /// The bias of a query and some keys; false where there is none.
    #[inline(always)]
    fn bias(&self, row: &Row, keys: Range<usize>, to: &mut [f32; KEYS]) -> bool {
        let Row { batch_row, head, position, .. } = *row;
        let to = &mut to[..keys.len()];
        match self.job.attention.bias {
            PositionBias::None => return false,
            PositionBias::Alibi(slopes) => {
                for (idx, to) in to.iter_mut().enumerate() {
                    *to = slopes[head] * ((keys.start + idx) as f32 - position as f32);
                }
            }
            PositionBias::Distance { table, zero } => {
                let n = table.len() / self.job.attention.n_heads;
                let table = &table[head * n..(head + 1) * n];
                for (idx, to) in to.iter_mut().enumerate() {
                    let column = (keys.start + idx + zero).saturating_sub(position);
                    *to = table[column.min(n - 1)];
                }
            }
            PositionBias::Key { table } => {
                let n = table.len() / self.job.attention.n_heads;
                to.copy_from_slice(&table[head * n + keys.start..head * n + keys.end]);
            }
            PositionBias::Rows { rows, n_keys } => {
                let at = (batch_row * self.job.attention.n_heads + head) * n_keys;
                to.copy_from_slice(&rows[at + keys.start..at + keys.end]);
            }
        }
        true
    }

    /// Adds to the output of `R` rows the values of some keys, each times its exponential.
    #[inline(always)]
    fn add_values<S: Simd, E: Element, const R: usize, const V: usize>(
        &self,
        s: S,
        rows: &[Row; R],
        (scores, keys): (&[[f32; KEYS]; R], Range<usize>),
    ) {
        let head_dim = self.head_dim();
        let mut column = 0;
        while head_dim - column >= V * S::LANES {
            self.columns::<S, E, R, V>(s, rows, column, (scores, keys.clone()));
            column += V * S::LANES;
        }
        while head_dim - column >= S::LANES {
            self.columns::<S, E, R, 1>(s, rows, column, (scores, keys.clone()));
            column += S::LANES;
        }
        if column < head_dim {
            self.last_columns::<S, E, R>(s, rows, column, (scores, keys));
        }
    }

    /// `V` vectors of columns.
    #[inline(always)]
    fn columns<S: Simd, E: Element, const R: usize, const V: usize>(
        &self,
        s: S,
        rows: &[Row; R],
        column: usize,
        (scores, keys): (&[[f32; KEYS]; R], Range<usize>),
    ) {
        let head_dim = self.head_dim();
        let mut sums = [[s.splat(0.0); V]; R];
        for (row, sums) in rows.iter().zip(&mut sums) {
            let output = &self.output(row)[column..column + V * S::LANES];
            for (part, sum) in output.chunks_exact(S::LANES).zip(sums) {
                *sum = load(s, part);
            }
        }
        let mut exponentials = scores.each_ref().map(|scores| scores.as_ptr());
        for start in keys.clone().step_by(TOKENS_PER_BLOCK) {
            let mut from = self.values::<E>(start).wrapping_add(column);
            for _ in start..keys.end.min(start + TOKENS_PER_BLOCK) {
                // SAFETY: the row of values has these columns.
                let value = |v: usize| unsafe { E::load(s, from.wrapping_add(v * S::LANES)) };
                // SAFETY: a row has a score for each key of a pass.
                let x = |r: usize| s.splat(unsafe { *exponentials[r] });
                // Of the two, the fewer stay in registers.
                if R > V {
                    let values: [S::F; V] = std::array::from_fn(value);
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let x = x(r);
                        for (sum, value) in sums.iter_mut().zip(values) {
                            *sum = s.fma(x, value, *sum);
                        }
                    }
                } else {
                    let x: [S::F; R] = std::array::from_fn(x);
                    for v in 0..V {
                        let value = value(v);
                        for (sums, x) in sums.iter_mut().zip(x) {
                            sums[v] = s.fma(x, value, sums[v]);
                        }
                    }
                }
                from = from.wrapping_add(head_dim);
                exponentials = exponentials.map(|of| of.wrapping_add(1));
            }
        }
        for (row, sums) in rows.iter().zip(&sums) {
            let output = &mut self.output(row)[column..column + V * S::LANES];
            for (part, sum) in output.chunks_exact_mut(S::LANES).zip(sums) {
                store(s, part, *sum);
            }
        }
    }

    /// Columns that are less than a vector, from `column` to the end.
    #[inline(always)]
    fn last_columns<S: Simd, E: Element, const R: usize>(
        &self,
        s: S,
        rows: &[Row; R],
        column: usize,
        (scores, keys): (&[[f32; KEYS]; R], Range<usize>),
    ) {
        let head_dim = self.head_dim();
        let n = head_dim - column;
        let mut sums = rows.each_ref().map(|row| load(s, &self.output(row)[column..]));
        for (idx, key) in keys.enumerate() {
            let values = self.values::<E>(key);
            let from = values.wrapping_add(key % TOKENS_PER_BLOCK * head_dim + column);
            let mut copy = [const { std::mem::MaybeUninit::<E::Stored>::zeroed() }; 16];
            // SAFETY: the row of values has `n` columns from here, fewer than a vector has lanes.
            unsafe { from.copy_to_nonoverlapping(copy.as_mut_ptr().cast(), n) };
            // SAFETY: a vector has at most 16 lanes, and zeros are numbers.
            let value = unsafe { E::load(s, copy.as_ptr().cast()) };
            for (sum, scores) in sums.iter_mut().zip(scores) {
                *sum = s.fma(s.splat(scores[idx]), value, *sum);
            }
        }
        for (row, sum) in rows.iter().zip(&sums) {
            store(s, &mut self.output(row)[column..], *sum);
        }
    }
}
