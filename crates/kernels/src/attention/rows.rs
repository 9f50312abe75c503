//! Some rows of one head of keys: all passes over the cache.

use std::ops::Range;

use super::{Attention, Heads, KvCache, KvPrecision, Mask, PositionBias, Segment};
use super::{ROWS, TOKENS_PER_BLOCK};
use crate::pool::Parts;
use crate::vector::{Arithmetic, Simd, load, math, store};

/// Keys of a pass: their keys and values are in the first-level cache for all rows.
const KEYS: usize = 4 * TOKENS_PER_BLOCK;

/// Rows whose scores are summed in registers at once.
const AT_ONCE: usize = 4;

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

/// What is known of each row so far: the largest score, and the sum of exponentials less it.
struct Running {
    largest: [f32; ROWS],
    total: [f32; ROWS],
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
    /// The row of the batch, its head, and its position.
    #[inline(always)]
    fn place(&self, row: usize) -> (usize, usize, usize) {
        let group = self.heads.end - self.heads.start;
        let token = row / group;
        let head = self.heads.start + row % group;
        (self.segment.first_row + token, head, self.segment.first_position + token)
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

    /// The part of the output that is a row's.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "a unit takes one row at a time")]
    fn output(&self, row: usize) -> &mut [f32] {
        let head_dim = self.job.cache.shape().head_dim;
        let (batch_row, head, _) = self.place(row);
        let at = (batch_row * self.job.attention.n_heads + head) * head_dim;
        // SAFETY: a row of a head belongs to one unit, and a unit to one thread.
        unsafe { self.job.output.take(at..at + head_dim) }
    }

    #[inline(always)]
    fn compute<S: Simd, E: Element>(&self, s: S) {
        self.rows.clone().for_each(|row| self.output(row).fill(0.0));
        let mut running = Running { largest: [f32::MIN; ROWS], total: [0.0; ROWS] };
        let first = self.sees(self.place(self.rows.start).2);
        let last = self.sees(self.place(self.rows.end - 1).2);
        let mut start = first.start / KEYS * KEYS;
        while start < last.end {
            let keys = start..(start + KEYS).min(last.end);
            let mut row = self.rows.start;
            while row < self.rows.end {
                let n = if self.rows.end - row >= AT_ONCE { AT_ONCE } else { 1 };
                match n {
                    AT_ONCE => self.pass::<S, E, AT_ONCE>(s, row, keys.clone(), &mut running),
                    _ => self.pass::<S, E, 1>(s, row, keys.clone(), &mut running),
                }
                row += n;
            }
            start += KEYS;
        }
        for row in self.rows.clone() {
            let total = running.total[row - self.rows.start];
            let factor = s.splat(if total == 0.0 { 0.0 } else { 1.0 / total });
            for part in self.output(row).chunks_mut(S::LANES) {
                let y = s.mul(load(s, part), factor);
                store(s, part, y);
            }
        }
    }

    /// A few rows and keys: scores, the softmax so far, and the values' sum.
    #[inline(always)]
    fn pass<S: Simd, E: Element, const R: usize>(
        &self,
        s: S,
        row: usize,
        keys: Range<usize>,
        running: &mut Running,
    ) {
        let mut scores = [[0.0_f32; KEYS]; R];
        for (block, start) in keys.clone().step_by(TOKENS_PER_BLOCK).enumerate() {
            let stored = self.segment.blocks[start / TOKENS_PER_BLOCK];
            let (from, _) = self.job.cache.block::<E::Stored>(stored, self.kv_head);
            self.multiply::<S, E, R>(s, row, from, (&mut scores, block * TOKENS_PER_BLOCK));
        }
        for (idx, scores) in scores.iter_mut().enumerate() {
            self.softmax(s, row + idx, (scores, keys.clone()), running);
        }
        if E::HAS_SCALES {
            self.scale_values::<S, E, R>(s, keys.clone(), &mut scores);
        }
        self.add_values::<S, E, R>(s, row, (&scores, keys));
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
            let stored = self.segment.blocks[start / TOKENS_PER_BLOCK];
            let (_, values) = self.job.cache.block::<E::Stored>(stored, self.kv_head);
            let scales = self.job.cache.scales(values);
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

    /// Products of `R` queries with a block of keys.
    #[inline(always)]
    fn multiply<S: Simd, E: Element, const R: usize>(
        &self,
        s: S,
        row: usize,
        keys: *const E::Stored,
        (scores, at): (&mut [[f32; KEYS]; R], usize),
    ) {
        let head_dim = self.job.cache.shape().head_dim;
        let queries: [&[f32]; R] = std::array::from_fn(|idx| {
            let (batch_row, head, _) = self.place(row + idx);
            self.job.queries.head(batch_row, head, head_dim)
        });
        for lane in (0..TOKENS_PER_BLOCK).step_by(2 * S::LANES) {
            // A block is two vectors, or one of 512 bits.
            let halves = if TOKENS_PER_BLOCK > S::LANES { 2 } else { 1 };
            let mut sums = [[s.splat(0.0); 2]; R];
            for at in 0..head_dim {
                let from = keys.wrapping_add(at * TOKENS_PER_BLOCK + lane);
                // SAFETY: a block has 16 keys for each element.
                let low = unsafe { E::load(s, from) };
                let high = match halves {
                    1 => low,
                    // SAFETY: as above.
                    _ => unsafe { E::load(s, from.wrapping_add(S::LANES)) },
                };
                for ([first, second], query) in sums.iter_mut().zip(queries) {
                    let q = s.splat(query[at]);
                    *first = s.fma(q, low, *first);
                    if halves == 2 {
                        *second = s.fma(q, high, *second);
                    }
                }
            }
            for (scores, sums) in scores.iter_mut().zip(sums) {
                let scores = &mut scores[at + lane..at + TOKENS_PER_BLOCK];
                for (half, (part, sum)) in scores.chunks_mut(S::LANES).zip(sums).enumerate() {
                    let mut sum = sum;
                    if E::HAS_SCALES {
                        let scales = self.job.cache.scales(keys);
                        // SAFETY: a block has 16 scales.
                        sum = s.mul(sum, unsafe { s.load(scales.add(lane + half * S::LANES)) });
                    }
                    store(s, part, sum);
                }
            }
        }
    }

    /// Products to exponentials; keeps the row's maximum and sum, and scales what the output holds.
    #[inline(always)]
    fn softmax<S: Simd>(
        &self,
        s: S,
        row: usize,
        (scores, keys): (&mut [f32; KEYS], Range<usize>),
        running: &mut Running,
    ) {
        let (batch_row, head, position) = self.place(row);
        let sees = self.sees(position);
        let at = row - self.rows.start;
        if sees.end <= keys.start || sees.start >= keys.end {
            scores.fill(0.0);
            return;
        }
        let mut bias = [0.0_f32; KEYS];
        let has_bias = self.bias((batch_row, head, position), keys.clone(), &mut bias);
        let scale = s.splat(self.job.attention.scale);
        let mut largest = s.splat(f32::MIN);
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
        scores[..sees.start.saturating_sub(keys.start)].fill(f32::NEG_INFINITY);
        scores[sees.end.min(keys.end) - keys.start..].fill(f32::NEG_INFINITY);
        for part in scores.chunks_exact(S::LANES) {
            largest = s.max(load(s, part), largest);
        }
        let before = running.largest[at];
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
            running.total[at] *= factor[0];
            running.largest[at] = largest;
            for part in self.output(row).chunks_mut(S::LANES) {
                let y = s.mul(load(s, part), s.splat(factor[0]));
                store(s, part, y);
            }
        }
        running.total[at] += s.sum(sums);
    }

    /// The bias of a query and some keys; false where there is none.
    #[inline(always)]
    fn bias(
        &self,
        (batch_row, head, position): (usize, usize, usize),
        keys: Range<usize>,
        to: &mut [f32; KEYS],
    ) -> bool {
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
    fn add_values<S: Simd, E: Element, const R: usize>(
        &self,
        s: S,
        row: usize,
        (scores, keys): (&[[f32; KEYS]; R], Range<usize>),
    ) {
        let head_dim = self.job.cache.shape().head_dim;
        let whole = head_dim / (2 * S::LANES) * (2 * S::LANES);
        for column in (0..whole).step_by(2 * S::LANES) {
            self.columns::<S, E, R, 2>(s, row, column, (scores, keys.clone()));
        }
        for column in (whole..head_dim).step_by(S::LANES) {
            if head_dim - column >= S::LANES {
                self.columns::<S, E, R, 1>(s, row, column, (scores, keys.clone()));
            } else {
                self.last_columns::<S, E, R>(s, row, column, (scores, keys.clone()));
            }
        }
    }

    /// `V` vectors of columns.
    #[inline(always)]
    fn columns<S: Simd, E: Element, const R: usize, const V: usize>(
        &self,
        s: S,
        row: usize,
        column: usize,
        (scores, keys): (&[[f32; KEYS]; R], Range<usize>),
    ) {
        let head_dim = self.job.cache.shape().head_dim;
        let mut sums = [[s.splat(0.0); V]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            let output = &self.output(row + r)[column..column + V * S::LANES];
            for (part, sum) in output.chunks_exact(S::LANES).zip(sums) {
                *sum = load(s, part);
            }
        }
        for (idx, key) in keys.enumerate() {
            let stored = self.segment.blocks[key / TOKENS_PER_BLOCK];
            let (_, values) = self.job.cache.block::<E::Stored>(stored, self.kv_head);
            let from = values.wrapping_add(key % TOKENS_PER_BLOCK * head_dim + column);
            let values: [S::F; V] = std::array::from_fn(|v| {
                // SAFETY: the row of values has these columns.
                unsafe { E::load(s, from.wrapping_add(v * S::LANES)) }
            });
            for (sums, scores) in sums.iter_mut().zip(scores) {
                let score = s.splat(scores[idx]);
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum = s.fma(score, value, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let output = &mut self.output(row + r)[column..column + V * S::LANES];
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
        row: usize,
        column: usize,
        (scores, keys): (&[[f32; KEYS]; R], Range<usize>),
    ) {
        let head_dim = self.job.cache.shape().head_dim;
        let n = head_dim - column;
        let mut sums = [s.splat(0.0); R];
        for (r, sum) in sums.iter_mut().enumerate() {
            *sum = load(s, &self.output(row + r)[column..]);
        }
        for (idx, key) in keys.enumerate() {
            let stored = self.segment.blocks[key / TOKENS_PER_BLOCK];
            let (_, values) = self.job.cache.block::<E::Stored>(stored, self.kv_head);
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
        for (r, sum) in sums.iter().enumerate() {
            store(s, &mut self.output(row + r)[column..], *sum);
        }
    }
}
