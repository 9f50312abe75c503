//! Normalisation of rows, with the residual added on the way: one pass over memory.
//!
//! ```text
//! t = x + add
//! Layer:       y = (t - mean t) / sqrt(mean (t - mean t)^2 + epsilon) * weight + bias
//! Rms:         y = t / sqrt(mean t^2 + epsilon) * weight + bias
//! RmsPlusOne:  y = t / sqrt(mean t^2 + epsilon) * (1 + weight) + bias
//! ```
//!
//! All is `[n_rows, dim]` f32, row-major; `weight` and `bias` are `[dim]`. A row's sums are taken in an
//! order that depends on `dim` and the instruction set alone.

use crate::error::{KernelError, length};
use crate::pool::{Cpu, Load, Parts};
use crate::vector::{Arithmetic, Simd, load, store};

/// The formula.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NormKind {
    /// Layer normalisation (Ba et al. 2016).
    Layer,
    /// By the root of the mean square (Zhang and Sennrich 2019).
    Rms,
    /// The same with `1 + weight`, as Gemma has it.
    RmsPlusOne,
}

/// A normalisation and its parameters.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// The formula.
    pub kind: NormKind,
    /// `[dim]`.
    pub weight: &'a [f32],
    /// `[dim]`.
    pub bias: Option<&'a [f32]>,
    /// Keeps the root away from 0.
    pub epsilon: f32,
}

/// The rows that a normalisation reads and writes.
#[derive(Debug)]
pub struct NormRows<'a> {
    /// `[n_rows, dim]`.
    pub x: &'a [f32],
    /// Added to `x` first.
    pub add: Option<&'a [f32]>,
    /// Where `x + add` goes, for who needs it again.
    pub sum: Option<&'a mut [f32]>,
    /// The result.
    pub output: &'a mut [f32],
}

/// Heads in rows that hold other things, too, to be normalised where they lie.
#[derive(Debug)]
pub struct NormHeads<'a> {
    /// `[n_rows, stride]`.
    pub rows: &'a mut [f32],
    /// Elements of a row.
    pub stride: usize,
    /// Where the first head begins.
    pub first_column: usize,
    /// Heads of `dim` elements, one after another.
    pub n_heads: usize,
    /// `[n_rows, n_heads * dim]`, to which the result is added.
    pub onto: Option<&'a mut [f32]>,
}

impl Norm<'_> {
    /// Normalises heads in place.
    ///
    /// # Errors
    /// The heads don't fit their rows, or the slices are not of whole rows.
    pub fn apply_heads(&self, cpu: Cpu<'_>, heads: NormHeads<'_>) -> Result<(), KernelError> {
        let width = heads.n_heads * self.weight.len();
        let n_rows = heads.rows.len() / heads.stride.max(1);
        length("the rows", heads.rows.len(), n_rows * heads.stride)?;
        if heads.first_column + width > heads.stride {
            let wanted = "at least all heads";
            return Err(KernelError::Value { what: "the stride", found: heads.stride, wanted });
        }
        if let Some(bias) = self.bias {
            length("the bias", bias.len(), self.weight.len())?;
        }
        if let Some(onto) = &heads.onto {
            length("what is added to", onto.len(), n_rows * width)?;
        }
        let (stride, first_column) = (heads.stride, heads.first_column);
        let rows = Parts::new(heads.rows);
        let onto = heads.onto.map(Parts::new);
        cpu.split(n_rows, Load::of(n_rows * width), |range| {
            // SAFETY: ranges of different threads don't meet.
            let (rows, onto) = unsafe {
                let onto = onto.as_ref().map(|o| o.take(range.start * width..range.end * width));
                (rows.take(range.start * stride..range.end * stride), onto)
            };
            let columns = first_column..first_column + width;
            cpu.isa.run(InPlace { norm: *self, rows, stride, columns, onto });
        });
        Ok(())
    }

    /// Normalises rows.
    ///
    /// # Errors
    /// The slices are not of one size, or not of whole rows.
    pub fn apply(&self, cpu: Cpu<'_>, rows: NormRows<'_>) -> Result<(), KernelError> {
        let dim = self.weight.len();
        let n_rows = rows.x.len() / dim.max(1);
        length("the rows", rows.x.len(), n_rows * dim)?;
        length("the output", rows.output.len(), rows.x.len())?;
        if let Some(bias) = self.bias {
            length("the bias", bias.len(), dim)?;
        }
        if let Some(add) = rows.add {
            length("what is added", add.len(), rows.x.len())?;
        }
        if let Some(sum) = &rows.sum {
            length("the sum", sum.len(), rows.x.len())?;
        }
        let sum = rows.sum.map(Parts::new);
        let output = Parts::new(rows.output);
        cpu.split(n_rows, Load::of(rows.x.len()), |range| {
            let range = range.start * dim..range.end * dim;
            // SAFETY: ranges of different threads don't meet.
            let (output, sum) = unsafe {
                (output.take(range.clone()), sum.as_ref().map(|sum| sum.take(range.clone())))
            };
            let x = &rows.x[range.clone()];
            let add = rows.add.map(|add| &add[range]);
            cpu.isa.run(Apply { norm: *self, x, add, sum, output });
        });
        Ok(())
    }
}

/// Heads of some rows.
struct InPlace<'a> {
    norm: Norm<'a>,
    rows: &'a mut [f32],
    stride: usize,
    columns: std::ops::Range<usize>,
    onto: Option<&'a mut [f32]>,
}

impl Arithmetic for InPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (dim, width) = (self.norm.weight.len(), self.columns.len());
        for (idx, row) in self.rows.chunks_exact_mut(self.stride).enumerate() {
            let row = &mut row[self.columns.clone()];
            for head in row.chunks_exact_mut(dim) {
                let mut total = s.splat(0.0);
                for part in head.chunks(S::LANES) {
                    total = s.add(total, load(s, part));
                }
                normalise(s, &self.norm, s.sum(total), head);
            }
            if let Some(onto) = &mut self.onto {
                let onto = &mut onto[idx * width..(idx + 1) * width];
                for (onto, add) in onto.chunks_mut(S::LANES).zip(row.chunks(S::LANES)) {
                    let sum = s.add(load(s, onto), load(s, add));
                    store(s, onto, sum);
                }
            }
        }
    }
}

/// Some rows.
struct Apply<'a> {
    norm: Norm<'a>,
    x: &'a [f32],
    add: Option<&'a [f32]>,
    sum: Option<&'a mut [f32]>,
    output: &'a mut [f32],
}

impl Arithmetic for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let dim = self.norm.weight.len();
        for (idx, output) in self.output.chunks_exact_mut(dim).enumerate() {
            let range = idx * dim..(idx + 1) * dim;
            let x = &self.x[range.clone()];
            let add = self.add.map(|add| &add[range.clone()]);
            let total = add_rows(s, (x, add), output);
            if let Some(sum) = &mut self.sum {
                sum[range].copy_from_slice(output);
            }
            normalise(s, &self.norm, total, output);
        }
    }
}

/// `t = x + add`; returns the sum of `t`.
#[inline(always)]
fn add_rows<S: Simd>(s: S, (x, add): (&[f32], Option<&[f32]>), t: &mut [f32]) -> f32 {
    let mut total = s.splat(0.0);
    for (idx, (x, t)) in x.chunks(S::LANES).zip(t.chunks_mut(S::LANES)).enumerate() {
        let mut value = load(s, x);
        if let Some(add) = add {
            value = s.add(value, load(s, &add[idx * S::LANES..][..x.len()]));
        }
        total = s.add(total, value);
        store(s, t, value);
    }
    s.sum(total)
}

/// `row` becomes its normalisation; `total` is its sum.
#[inline(always)]
fn normalise<S: Simd>(s: S, norm: &Norm<'_>, total: f32, row: &mut [f32]) {
    let n = row.len() as f32;
    let of_row = if norm.kind == NormKind::Layer { total / n } else { 0.0 };
    let mean = s.splat(of_row);
    let mut squares = s.splat(0.0);
    let whole = row.chunks_exact(S::LANES);
    let rest = whole.remainder();
    for part in whole {
        let centred = s.sub(load(s, part), mean);
        squares = s.fma(centred, centred, squares);
    }
    let mut square = s.sum(squares);
    for value in rest {
        let centred = value - of_row;
        square += centred * centred;
    }
    let factor = s.splat(1.0 / (square / n + norm.epsilon).sqrt());
    let one = if norm.kind == NormKind::RmsPlusOne { 1.0 } else { 0.0 };
    for (idx, part) in row.chunks_mut(S::LANES).enumerate() {
        let range = idx * S::LANES..idx * S::LANES + part.len();
        let weight = s.add(load(s, &norm.weight[range.clone()]), s.splat(one));
        let centred = s.mul(s.sub(load(s, part), mean), factor);
        let y = match norm.bias {
            Some(bias) => s.fma(centred, weight, load(s, &bias[range])),
            None => s.mul(centred, weight),
        };
        store(s, part, y);
    }
}
