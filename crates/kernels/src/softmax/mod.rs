//! `y_i = e^(x_i - max x) / sum_j e^(x_j - max x)` of rows, in place.
//!
//! `[n_rows, dim]` f32, row-major. A row that is minus infinity throughout becomes 0; one with a NaN
//! becomes NaN.

use crate::error::{KernelError, length};
use crate::pool::{Cpu, Load, Parts};
use crate::vector::{Arithmetic, Simd, load, math, store};

/// Replaces each row by its softmax.
///
/// # Errors
/// `rows` is not whole rows of `dim`.
pub fn softmax(cpu: Cpu<'_>, rows: &mut [f32], dim: usize) -> Result<(), KernelError> {
    let n_rows = rows.len() / dim.max(1);
    length("the rows", rows.len(), n_rows * dim)?;
    let load = Load::of(rows.len());
    let rows = Parts::new(rows);
    cpu.split(n_rows, load, |range| {
        // SAFETY: ranges of different threads don't meet.
        let rows = unsafe { rows.take(range.start * dim..range.end * dim) };
        cpu.isa.run(Rows { rows, dim });
    });
    Ok(())
}

struct Rows<'a> {
    rows: &'a mut [f32],
    dim: usize,
}

impl Arithmetic for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.rows.chunks_exact_mut(self.dim.max(1)) {
            one(s, row);
        }
    }
}

#[inline(always)]
fn one<S: Simd>(s: S, row: &mut [f32]) {
    let mut largest = s.splat(f32::MIN);
    let whole = row.chunks_exact(S::LANES);
    let rest = whole.remainder();
    for part in whole {
        largest = s.max(load(s, part), largest);
    }
    let largest = rest.iter().fold(s.largest(largest), |largest, x| largest.max(*x));
    let largest = s.splat(largest);
    let mut total = 0.0;
    let mut sums = s.splat(0.0);
    for part in row.chunks_mut(S::LANES) {
        let y = math::exp(s, s.sub(load(s, part), largest));
        store(s, part, y);
        if part.len() == S::LANES {
            sums = s.add(sums, y);
        } else {
            total = part.iter().sum();
        }
    }
    total += s.sum(sums);
    let factor = s.splat(if total == 0.0 { 0.0 } else { 1.0 / total });
    for part in row.chunks_mut(S::LANES) {
        let y = s.mul(load(s, part), factor);
        store(s, part, y);
    }
}
