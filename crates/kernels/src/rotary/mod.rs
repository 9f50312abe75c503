//! Rotary positions (Su et al. 2021): pairs of a head's elements turn by an angle that grows with the
//! position.
//!
//! ```text
//! (a, b) becomes (a cos - b sin, b cos + a sin)
//! half-split:   a = x[i], b = x[i + n_rotated / 2]       (LLaMA, GPT-NeoX)
//! interleaved:  a = x[2 i], b = x[2 i + 1]               (GPT-J)
//! ```
//!
//! Elements from `n_rotated` on stay as they are.

use crate::error::{KernelError, length};
use crate::pool::{Cpu, Load, Parts};
use crate::vector::{Arithmetic, Simd};

/// Which elements are a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RotaryPairs {
    /// Element `i` and `i + n_rotated / 2`.
    HalfSplit,
    /// Elements `2 i` and `2 i + 1`.
    Interleaved,
}

/// Which elements of a row turn.
#[derive(Clone, Copy, Debug)]
pub struct Rotary<'a> {
    /// Which elements are a pair.
    pub pairs: RotaryPairs,
    /// Elements of a head.
    pub head_dim: usize,
    /// Elements of a head that turn, from its first on; even.
    pub n_rotated: usize,
    /// `[n_positions, n_rotated / 2]`.
    pub cos: &'a [f32],
    /// As `cos`.
    pub sin: &'a [f32],
}

/// The heads that turn, in rows that hold other things, too.
#[derive(Debug)]
pub struct RotaryRows<'a> {
    /// `[n_rows, stride]`.
    pub rows: &'a mut [f32],
    /// Elements of a row.
    pub stride: usize,
    /// Where the first head begins.
    pub first_column: usize,
    /// Heads, one after another.
    pub n_heads: usize,
    /// The position of each row.
    pub positions: &'a [u32],
}

impl Rotary<'_> {
    /// Turns heads in place.
    ///
    /// # Errors
    /// The heads don't fit their rows, or a position has no row in the tables.
    pub fn apply(&self, cpu: Cpu<'_>, heads: RotaryRows<'_>) -> Result<(), KernelError> {
        let (n_rows, half) = (heads.positions.len(), self.n_rotated / 2);
        length("the rows", heads.rows.len(), n_rows * heads.stride)?;
        length("the table of sines", self.sin.len(), self.cos.len())?;
        if self.n_rotated % 2 == 1 || self.n_rotated > self.head_dim {
            let wanted = "even and at most head_dim";
            return Err(KernelError::Value { what: "n_rotated", found: self.n_rotated, wanted });
        }
        if heads.first_column + heads.n_heads * self.head_dim > heads.stride {
            let wanted = "at least all heads";
            return Err(KernelError::Value { what: "the stride", found: heads.stride, wanted });
        }
        let too_far = |position: &&u32| (**position as usize + 1) * half > self.cos.len();
        if let Some(position) = heads.positions.iter().find(too_far) {
            let (found, wanted) = (*position as usize, "a row of the tables");
            return Err(KernelError::Value { what: "a position", found, wanted });
        }
        let load = Load::of(n_rows * heads.n_heads * self.n_rotated);
        let rows = Parts::new(heads.rows);
        cpu.split(n_rows, load, |range| {
            let positions = &heads.positions[range.clone()];
            // SAFETY: ranges of different threads don't meet.
            let rows = unsafe { rows.take(range.start * heads.stride..range.end * heads.stride) };
            let columns = heads.first_column..heads.first_column + heads.n_heads * self.head_dim;
            cpu.isa.run(Turn { rotary: self, rows, stride: heads.stride, columns, positions });
        });
        Ok(())
    }
}

struct Turn<'a> {
    rotary: &'a Rotary<'a>,
    rows: &'a mut [f32],
    stride: usize,
    columns: std::ops::Range<usize>,
    positions: &'a [u32],
}

impl Arithmetic for Turn<'_> {
    type Output = ();

    // The compiler makes vectors of these loops.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (rotary, half) = (self.rotary, self.rotary.n_rotated / 2);
        for (row, position) in self.rows.chunks_exact_mut(self.stride).zip(self.positions) {
            let at = *position as usize * half;
            let (cos, sin) = (&rotary.cos[at..at + half], &rotary.sin[at..at + half]);
            for head in row[self.columns.clone()].chunks_exact_mut(rotary.head_dim) {
                let head = &mut head[..rotary.n_rotated];
                match rotary.pairs {
                    RotaryPairs::HalfSplit => {
                        let (first, second) = head.split_at_mut(half);
                        let pairs = first.iter_mut().zip(second);
                        for ((a, b), (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
                            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                        }
                    }
                    RotaryPairs::Interleaved => {
                        let pairs = head.as_chunks_mut::<2>().0;
                        for ([a, b], (cos, sin)) in pairs.iter_mut().zip(cos.iter().zip(sin)) {
                            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                        }
                    }
                }
            }
        }
    }
}
