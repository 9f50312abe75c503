//! Rows of a table by number: the first layer of a model.

use half::slice::HalfFloatSliceExt;

use crate::error::{KernelError, length};
use crate::matmul::Source;
use crate::pool::{Cpu, Load, Parts};

/// `output[i] = scale * table[ids[i]] (+ output[i])`: `table` is `[vocab, dim]`, `output`
/// `[ids.len(), dim]` f32, row-major.
#[derive(Clone, Copy, Debug)]
pub struct Gather<'a> {
    /// The table as a checkpoint holds it.
    pub table: Source<'a>,
    /// Columns of the table.
    pub dim: usize,
    /// 1 changes nothing.
    pub scale: f32,
    /// Whether rows are added to what the output holds, as positions are to tokens.
    pub onto: Onto,
}

/// What becomes of the output's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onto {
    /// They are overwritten.
    Nothing,
    /// They are added to.
    Output,
}

impl Gather<'_> {
    /// Gathers the rows of `ids`.
    ///
    /// # Errors
    /// An id is not in the table, or the output has another size.
    pub fn apply(&self, cpu: Cpu<'_>, ids: &[u32], output: &mut [f32]) -> Result<(), KernelError> {
        let dim = self.dim;
        let vocab = self.table.len() / dim.max(1);
        length("the table", self.table.len(), vocab * dim)?;
        length("the output", output.len(), ids.len() * dim)?;
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            let wanted = "a row of the table";
            return Err(KernelError::Value { what: "an id", found: *id as usize, wanted });
        }
        let load = Load::of(output.len());
        let output = Parts::new(output);
        cpu.split(ids.len(), load, |range| {
            // SAFETY: ranges of different threads don't meet.
            let rows = unsafe { output.take(range.start * dim..range.end * dim) };
            for (row, id) in rows.chunks_exact_mut(dim.max(1)).zip(&ids[range]) {
                self.one(*id as usize, row);
            }
        });
        Ok(())
    }

    fn one(&self, id: usize, row: &mut [f32]) {
        let range = id * self.dim..(id + 1) * self.dim;
        let scale = self.scale;
        match (self.table, self.onto) {
            (Source::F32(all), Onto::Nothing) => row.copy_from_slice(&all[range]),
            (Source::F16(all), Onto::Nothing) => all[range].convert_to_f32_slice(row),
            (Source::Bf16(all), Onto::Nothing) => all[range].convert_to_f32_slice(row),
            (Source::F32(all), Onto::Output) => add(row, all[range].iter().copied(), scale),
            (Source::F16(all), Onto::Output) => {
                add(row, all[range].iter().map(|x| x.to_f32()), scale);
            }
            (Source::Bf16(all), Onto::Output) => {
                add(row, all[range].iter().map(|x| x.to_f32()), scale);
            }
        }
        if self.onto == Onto::Nothing && scale != 1.0 {
            row.iter_mut().for_each(|x| *x *= scale);
        }
    }
}

fn add(row: &mut [f32], values: impl Iterator<Item = f32>, scale: f32) {
    row.iter_mut().zip(values).for_each(|(to, x)| *to += x * scale);
}
