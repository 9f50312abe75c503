//! Rows of a matrix that stay in their file, to be read whenever they are needed.

use drivetrain_artifacts::{DType, HeldTensor, RowOrder};

use crate::error::TransformerError;
use crate::tensor::{CanonicalTensor, Rows};

/// The rows of a canonical matrix or table, as its file has them. They keep the file open.
#[derive(Clone, Debug)]
pub struct HeldRows {
    name: String,
    source: HeldTensor,
    rows: Rows,
    /// Elements of a row.
    row_len: usize,
    row_bytes: usize,
}

impl CanonicalTensor<'_> {
    /// Its rows for who outlives the checkpoint; `None` where they don't lie in the file
    /// ([`CanonicalTensor::row_bytes`]).
    pub fn hold_rows(&self) -> Option<HeldRows> {
        let row_len = (self.n_elements() / self.rows.n().max(1)).max(1);
        let row_bytes = self.row_bytes().filter(|bytes| *bytes > 0)?;
        let (name, source, rows) = (self.name(), self.source.hold(), self.rows);
        Some(HeldRows { name, source, rows, row_len, row_bytes })
    }
}

impl HeldRows {
    /// The canonical name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many rows there are.
    pub fn n(&self) -> usize {
        self.rows.n()
    }

    /// Elements of a row.
    pub fn row_len(&self) -> usize {
        self.row_len
    }

    /// Bytes of a row in the file.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The file's data type.
    pub fn dtype(&self) -> DType {
        self.source.tensor().dtype()
    }

    /// Reads the rows from `first` on into `out`, as many as it holds, by system calls.
    ///
    /// # Errors
    /// `out` is not whole rows of the matrix, or the file can't be read.
    pub fn fetch(&self, first: usize, out: &mut [u8]) -> Result<(), TransformerError> {
        let n = out.len() / self.row_bytes;
        self.check(first, n, out.len(), n * self.row_bytes)?;
        let source = self.source.tensor();
        let order = source.row_order();
        if order != RowOrder::Plain {
            for (idx, row) in out.chunks_exact_mut(self.row_bytes).enumerate() {
                source.fetch_stored(order.stored_row(first + idx) * self.row_len, row)?;
            }
            return Ok(());
        }
        let mut rest = out;
        for (stored, n) in self.rows.runs(first, n) {
            let (part, after) = rest.split_at_mut(n * self.row_bytes);
            source.fetch_stored(stored * self.row_len, part)?;
            rest = after;
        }
        Ok(())
    }

    /// Reads one row as f32 into `out`, by system calls; what has to be converted goes through `scratch`.
    ///
    /// # Errors
    /// `out` is no row of the matrix, or the file can't be read.
    pub fn fetch_row_f32(
        &self,
        row: usize,
        scratch: &mut Vec<u8>,
        out: &mut [f32],
    ) -> Result<(), TransformerError> {
        self.check(row, 1, out.len(), self.row_len)?;
        let source = self.source.tensor();
        let stored = match source.row_order() {
            RowOrder::Plain => self.rows.stored_row(row),
            order => order.stored_row(row),
        };
        Ok(source.fetch_stored_f32(stored * self.row_len, scratch, out)?)
    }

    /// Asks the system to read all rows, so that they are in its memory when they are fetched.
    pub fn expect(&self) {
        let source = self.source.tensor();
        if source.row_order() != RowOrder::Plain {
            return source.expect(0, source.n_elements());
        }
        for (stored, n) in self.rows.runs(0, self.rows.n()) {
            source.expect(stored * self.row_len, n * self.row_len);
        }
    }

    fn check(
        &self,
        first: usize,
        n: usize,
        found: usize,
        expected: usize,
    ) -> Result<(), TransformerError> {
        let is_inside = first.checked_add(n).is_some_and(|end| end <= self.rows.n());
        match found == expected && is_inside {
            true => Ok(()),
            false => {
                let name = self.name.clone();
                Err(TransformerError::BufferSize { name, found, expected })
            }
        }
    }
}
