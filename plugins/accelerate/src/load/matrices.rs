//! Matrices and token tables, in the form that each is held in.

use std::sync::Arc;

use drivetrain_engine::{EngineError, ErrorKind};
use drivetrain_kernels::{BlockFormat, Source as Rows};

use super::{Loaded, Loader};
use crate::file_rows::{FileRows, Reads};
use crate::forms::Form;
use crate::matrix::{BlockRows, HalfRows, HalfType, Matrix};

/// Values that are converted at once.
const PIECE: usize = 1 << 18;

impl Loader<'_, '_> {
    /// Matrices of one input as one: their outputs follow one another in a row. Those of one form become
    /// one matrix; nothing, where there is only a form.
    pub(super) fn matrices(&self, names: &[String]) -> Loaded<Vec<Matrix>> {
        if self.is_hollow {
            return Ok(Vec::new());
        }
        let forms: Loaded<Vec<Form>> = names.iter().map(|name| self.form(name)).collect();
        let (mut matrices, mut rest) = (Vec::new(), names);
        for run in forms?.chunk_by(|a, b| a == b) {
            let (own, after) = rest.split_at(run.len());
            rest = after;
            matrices.push(self.matrix(own, run[0])?);
        }
        Ok(matrices)
    }

    /// A matrix or table of tokens that may be tied to one that was read before.
    pub(super) fn shared_matrix(&self, name: &str) -> Loaded<Matrix> {
        if let Some(reads) = self.reads {
            return self.file_rows(&[name.to_owned()], self.form(name)?, reads);
        }
        let first = self.source.weights.first_name(name).unwrap_or_else(|| name.to_owned());
        let first = (self.executor, first);
        let known = &self.source.matrices;
        if let Some(matrix) = known.lock().ok().and_then(|known| known.get(&first).cloned()) {
            return Ok(matrix);
        }
        let matrix = self.matrix(&[name.to_owned()], self.form(name)?)?;
        if let Ok(mut known) = known.lock() {
            known.insert(first, matrix.clone());
        }
        Ok(matrix)
    }

    /// Rows `first..first + n` of a matrix.
    pub(crate) fn rows(&self, name: &str, first: usize, n: usize) -> Loaded<Matrix> {
        let n_in = self.get(name)?.shape().last().copied().unwrap_or(1);
        match self.form(name)? {
            Form::Full => {
                let mut data = self.source.buffer(n * n_in, |spare| &mut spare.floats);
                let tensor = self.get(name)?;
                self.with_scratch(|scratch| tensor.fetch_rows_f32(first, scratch, &mut data))?;
                self.tensor(data, &[n, n_in]).map(Matrix::Plain)
            }
            Form::Half(form) => {
                let mut bits = self.source.buffer(n * n_in, |spare| &mut spare.halves);
                self.fill_halves((name, first), (form, n_in), &mut bits)?;
                Ok(self.halves(form, bits, n_in))
            }
            Form::Blocks(format) => {
                let n_bytes = format.bytes_for(n * n_in);
                let mut bytes = self.source.buffer(n_bytes, |spare| &mut spare.bytes);
                self.fill_blocks((name, first), (format, n_in), &mut bytes)?;
                Ok(self.blocks(format, bytes, n_in))
            }
        }
    }

    /// The form of a matrix on this device.
    fn form(&self, name: &str) -> Loaded<Form> {
        let tensor = self.get(name)?;
        match self.device.is_cpu() {
            true => Ok(self.source.forms.of(tensor, self.is_streaming || self.reads.is_some())),
            false => Ok(Form::Full),
        }
    }

    fn halves(&self, form: HalfType, bits: Vec<u16>, n_in: usize) -> Matrix {
        let compute = Arc::clone(self.compute);
        Matrix::Half(Arc::new(HalfRows { form, bits, n_in, compute }))
    }

    fn blocks(&self, format: BlockFormat, bytes: Vec<u8>, n_in: usize) -> Matrix {
        let compute = Arc::clone(self.compute);
        Matrix::Blocks(Arc::new(BlockRows { format, bytes, n_in, compute }))
    }

    /// Tensors one below the other as a matrix that stays in their file.
    fn file_rows(&self, names: &[String], form: Form, reads: &Arc<Reads>) -> Loaded<Matrix> {
        let rows = names.iter().map(|name| {
            let what = || EngineError::internal(format!("{name} can't be read in its file"));
            self.get(name)?.hold_rows().ok_or_else(what)
        });
        let rows = rows.collect::<Loaded<Vec<_>>>()?;
        Ok(Matrix::InFile(Arc::new(FileRows::new(form, rows, self.compute, reads))))
    }

    /// Tensors one below the other as a matrix.
    fn matrix(&self, names: &[String], form: Form) -> Loaded<Matrix> {
        let forms = &self.source.forms;
        if let Some(reads) = self.reads
            && names
                .iter()
                .all(|n| self.get(n).is_ok_and(|tensor| forms.is_as_stored(tensor, form)))
        {
            return self.file_rows(names, form, reads);
        }
        let (mut rows, mut n_in) = (Vec::new(), 1);
        for name in names {
            let shape = self.get(name)?.shape();
            rows.push(shape.first().copied().unwrap_or(0));
            n_in = shape.last().copied().unwrap_or(1);
        }
        let n_out: usize = rows.iter().sum();
        let parts = names.iter().zip(&rows);
        match form {
            Form::Full => self.tensor(self.values(names)?, &[n_out, n_in]).map(Matrix::Plain),
            Form::Half(form) => {
                let mut bits = self.source.buffer(n_out * n_in, |spare| &mut spare.halves);
                let mut rest = bits.as_mut_slice();
                for (name, rows) in parts {
                    let (part, after) = rest.split_at_mut(rows * n_in);
                    self.fill_halves((name, 0), (form, n_in), part)?;
                    rest = after;
                }
                Ok(self.halves(form, bits, n_in))
            }
            Form::Blocks(format) => {
                let n_bytes = format.bytes_for(n_out * n_in);
                let mut bytes = self.source.buffer(n_bytes, |spare| &mut spare.bytes);
                let mut rest = bytes.as_mut_slice();
                for (name, rows) in parts {
                    let (part, after) = rest.split_at_mut(format.bytes_for(rows * n_in));
                    self.fill_blocks((name, 0), (format, n_in), part)?;
                    rest = after;
                }
                Ok(self.blocks(format, bytes, n_in))
            }
        }
    }

    /// Fills `bits` with the rows of a tensor from `first` on.
    fn fill_halves(
        &self,
        (name, first): (&str, usize),
        (form, n_in): (HalfType, usize),
        bits: &mut [u16],
    ) -> Loaded<()> {
        if self.source.forms.is_as_stored(self.get(name)?, Form::Half(form)) {
            return self.fetch_rows(name, first, bytemuck::cast_slice_mut(bits));
        }
        self.convert((name, first), n_in, bits.len() / n_in.max(1), |at, values| {
            form.narrow(values, &mut bits[at * n_in..at * n_in + values.len()]);
            Ok(())
        })
    }

    /// Fills `bytes` with blocks of the rows of a tensor from `first` on.
    fn fill_blocks(
        &self,
        (name, first): (&str, usize),
        (format, n_in): (BlockFormat, usize),
        bytes: &mut [u8],
    ) -> Loaded<()> {
        if self.source.forms.is_as_stored(self.get(name)?, Form::Blocks(format)) {
            return self.fetch_rows(name, first, bytes);
        }
        let row_bytes = format.bytes_for(n_in).max(1);
        let n_rows = bytes.len() / row_bytes;
        self.convert((name, first), n_in, n_rows, |at, values| {
            let to = &mut bytes[at * row_bytes..][..values.len() / n_in * row_bytes];
            format.encode(&self.compute.pool, &[Rows::F32(values)], n_in, to).map_err(|error| {
                let message = format!("{name} can't be held in blocks");
                EngineError::wrap(ErrorKind::Unsupported, message, &error)
            })
        })
    }

    /// The bytes of rows from `first` on.
    fn fetch_rows(&self, name: &str, first: usize, out: &mut [u8]) -> Loaded<()> {
        let tensor = self.get(name)?;
        self.check_cancelled()?;
        self.with_scratch(|scratch| tensor.fetch_rows(first, scratch, out))?;
        self.tell(out.len() as u64);
        Ok(())
    }

    /// Hands out `n_rows` rows of a tensor as f32, from `first` on, some at a time: with how many there
    /// were before.
    fn convert(
        &self,
        (name, first): (&str, usize),
        n_in: usize,
        n_rows: usize,
        mut take: impl FnMut(usize, &[f32]) -> Loaded<()>,
    ) -> Loaded<()> {
        let tensor = self.get(name)?;
        if !tensor.lies_in_rows() || self.source.weights.is_changed(name) {
            let values = self.values(&[name.to_owned()])?;
            return take(0, &values[first * n_in..(first + n_rows) * n_in]);
        }
        let each = (PIECE / n_in.max(1)).max(1);
        let mut values = vec![0.0; each.min(n_rows) * n_in];
        for at in (0..n_rows).step_by(each) {
            self.check_cancelled()?;
            let n = each.min(n_rows - at);
            let values = &mut values[..n * n_in];
            self.with_scratch(|scratch| tensor.fetch_rows_f32(first + at, scratch, values))?;
            take(at, values)?;
        }
        self.tell(tensor.source().dtype().bytes_for(n_rows * n_in) as u64);
        Ok(())
    }
}
