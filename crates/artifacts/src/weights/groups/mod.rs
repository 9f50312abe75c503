//! Matrices in groups as GPTQ and AWQ keep them: whole numbers of a few bits, and for each group of
//! inputs of an output a scale and a zero.
//!
//! A module `m` has `m.qweight`, `m.qzeros`, `m.scales`, with GPTQ often `m.g_idx`, in place of
//! `m.weight`. [`join`] makes of them one tensor `m.weight`, `[out, in]` as a linear layer has it, whose
//! elements are `(q - zero) * scale` in f32. Whoever reads tensors reads it as any other; whoever knows
//! the form takes the whole numbers of it ([`Groups`]).
//!
//! ```text
//! GPTQ  qweight i32 [in / n, out]   n = 32 / bits: row i of a word's bits is input n * row + i
//!       qzeros  i32 [groups, out / n]   each less 1 if the format is "gptq", as they are if "gptq_v2"
//!       scales      [groups, out]
//!       g_idx   i32 [in]            the group of each input; absent: input / group size
//! AWQ   qweight i32 [in, out / 8]   the outputs of a word lie as 0 2 4 6 1 3 5 7
//!       qzeros  i32 [groups, out / 8]   in the same order
//!       scales      [groups, out]
//! ```
//!
//! Sources: GPTQModel's `TorchQuantLinear`, AutoGPTQ's `qlinear_cuda`, AutoAWQ's `WQLinear_GEMM`.

mod config;
mod join;

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use super::dtype::DType;
use crate::mapping::MappedFile;
pub use config::{QuantizationConfig, QuantizationMethod};
pub(super) use join::join;

/// How a word holds its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    /// Neighbouring inputs of one output, in order.
    Inputs,
    /// Eight neighbouring outputs of one input, the even ones first.
    Outputs,
}

/// For each of eight outputs, which four bits of a word are its number.
const INTERLEAVED: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// One of the tensors that belong to a packed matrix.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) file: Arc<MappedFile>,
    pub(super) span: Range<usize>,
}

impl Part {
    fn bytes(&self) -> &[u8] {
        self.file.bytes().get(self.span.clone()).unwrap_or_default()
    }
}

/// What a packed matrix has beside its words. Made by [`join`] only, which checked every size.
#[derive(Debug)]
pub(crate) struct GroupLayout {
    pub(super) bits: usize,
    pub(super) packing: Packing,
    pub(super) n_in: usize,
    pub(super) n_out: usize,
    /// Inputs of a group.
    pub(super) group: usize,
    /// Added to each word of zeros, as it was taken from the word: 1 in each number's place, or 0.
    pub(super) zero_offset: u32,
    pub(super) scales: Part,
    pub(super) scale_type: DType,
    pub(super) zeros: Part,
    /// The group of each input, where that isn't its place.
    pub(super) order: Option<Box<[u32]>>,
}

impl GroupLayout {
    /// Bytes of scales and zeros.
    pub(super) fn n_beside(&self) -> usize {
        self.scales.span.len() + self.zeros.span.len()
    }

    /// Reads scales and zeros by system calls.
    pub(super) fn fetch_beside(&self, out: &mut [u8]) -> Result<(), crate::ArtifactError> {
        let (scales, zeros) = out.split_at_mut(self.scales.span.len());
        self.scales.file.read_at(self.scales.span.start, scales)?;
        self.zeros.file.read_at(self.zeros.span.start, zeros)
    }

    /// Gives back the memory of scales and zeros.
    pub(super) fn release(&self) {
        for part in [&self.scales, &self.zeros] {
            part.file.release(part.span.clone());
        }
    }
}

/// A packed matrix, `[out, in]`.
#[derive(Clone, Copy, Debug)]
pub struct Groups<'a> {
    layout: &'a GroupLayout,
    words: &'a [[u8; 4]],
    scales: &'a [u8],
    zeros: &'a [[u8; 4]],
}

impl<'a> Groups<'a> {
    /// Over the words; `beside` are copies of scales and zeros, if they aren't to be read where they lie.
    pub(super) fn new(layout: &'a GroupLayout, words: &'a [u8], beside: Option<&'a [u8]>) -> Self {
        let (scales, zeros) = match beside {
            Some(both) => both.split_at(layout.scales.span.len().min(both.len())),
            None => (layout.scales.bytes(), layout.zeros.bytes()),
        };
        Self { layout, words: words.as_chunks().0, scales, zeros: zeros.as_chunks().0 }
    }

    /// Bits of a number: 4 or 8.
    pub fn bits(&self) -> usize {
        self.layout.bits
    }

    /// How many neighbouring inputs share scale and zero; `None` where groups are not of neighbours.
    pub fn group_len(&self) -> Option<usize> {
        self.layout.order.is_none().then_some(self.layout.group)
    }

    /// Whether each scale is one that f16 holds.
    pub fn has_f16_scales(&self) -> bool {
        let is_f16 = |scale: f32| f16::from_f32(scale).to_f32() == scale;
        match self.layout.scale_type {
            DType::F16 => true,
            DType::BF16 => self
                .scales
                .as_chunks()
                .0
                .iter()
                .all(|two| is_f16(bf16::from_le_bytes(*two).to_f32())),
            _ => self.scales.as_chunks().0.iter().all(|four| is_f16(f32::from_le_bytes(*four))),
        }
    }

    /// The scale of the group that input `column` of output `row` is in.
    pub fn scale(&self, row: usize, column: usize) -> f32 {
        let at = self.group_of(column) * self.layout.n_out + row;
        let two = || self.scales.as_chunks::<2>().0.get(at).copied().unwrap_or_default();
        match self.layout.scale_type {
            DType::F16 => f16::from_le_bytes(two()).to_f32(),
            DType::BF16 => bf16::from_le_bytes(two()).to_f32(),
            _ => f32::from_le_bytes(self.scales.as_chunks().0.get(at).copied().unwrap_or_default()),
        }
    }

    /// The zero of the group that input `column` of output `row` is in, below 2 to the power of
    /// [`Self::bits`].
    pub fn zero(&self, row: usize, column: usize) -> u8 {
        let n = 32 / self.layout.bits;
        let word = self.group_of(column) * (self.layout.n_out / n) + row / n;
        let word = word_at(self.zeros, word).wrapping_add(self.layout.zero_offset);
        field(word, self.place(row % n), self.layout.bits)
    }

    /// The number of input `column` of output `row`.
    pub fn number(&self, row: usize, column: usize) -> u8 {
        let (n, n_out) = (32 / self.layout.bits, self.layout.n_out);
        let (word, place) = match self.layout.packing {
            Packing::Inputs => (column / n * n_out + row, column % n),
            Packing::Outputs => (column * (n_out / n) + row / n, INTERLEAVED[row % n % 8]),
        };
        field(word_at(self.words, word), place, self.layout.bits)
    }

    /// `(number - zero) * scale` of input `column` of output `row`.
    pub fn value(&self, row: usize, column: usize) -> f32 {
        let steps = i32::from(self.number(row, column)) - i32::from(self.zero(row, column));
        steps as f32 * self.scale(row, column)
    }

    /// Elements from `start` on, of `[out, in]`.
    pub(super) fn read(&self, start: usize, out: &mut [f32]) {
        let n_in = self.layout.n_in.max(1);
        let (mut at, mut rest) = (start, out);
        while !rest.is_empty() {
            let (row, first) = (at / n_in, at % n_in);
            let (part, after) = rest.split_at_mut(rest.len().min(n_in - first));
            self.read_row(row, first, part);
            at += part.len();
            rest = after;
        }
    }

    /// Inputs of one output; what a group shares is looked up once where neighbours are in it.
    fn read_row(&self, row: usize, first: usize, out: &mut [f32]) {
        let Some(group) = self.group_len() else {
            for (column, value) in (first..).zip(out) {
                *value = self.value(row, column);
            }
            return;
        };
        let (mut column, mut rest) = (first, out);
        while !rest.is_empty() {
            let (part, after) = rest.split_at_mut(rest.len().min(group - column % group));
            let (scale, zero) = (self.scale(row, column), i32::from(self.zero(row, column)));
            for value in part {
                *value = (i32::from(self.number(row, column)) - zero) as f32 * scale;
                column += 1;
            }
            rest = after;
        }
    }

    fn group_of(&self, column: usize) -> usize {
        match &self.layout.order {
            Some(order) => order.get(column).copied().unwrap_or_default() as usize,
            None => column / self.layout.group,
        }
    }

    /// Where a word of zeros has that of an output.
    fn place(&self, within: usize) -> usize {
        match self.layout.packing {
            Packing::Inputs => within,
            Packing::Outputs => INTERLEAVED[within % 8],
        }
    }
}

fn word_at(words: &[[u8; 4]], idx: usize) -> u32 {
    u32::from_le_bytes(words.get(idx).copied().unwrap_or_default())
}

/// One number of a word.
fn field(word: u32, place: usize, bits: usize) -> u8 {
    (word >> (place * bits) & ((1 << bits) - 1)) as u8
}
