//! One canonical tensor: which checkpoint tensor holds it, and how it lies in there.

use std::ops::Range;
use std::path::PathBuf;

use drivetrain_artifacts::{ArtifactError, DType, RowOrder, Tensor};

use crate::error::TransformerError;
use crate::spec::TensorSpec;

/// A canonical tensor and where it comes from.
///
/// The checkpoint's tensor stays reachable, so that an engine can map it, stream it, or cut a shard
/// out of its bytes; [`Self::read_f32`] is for engines that want plain numbers.
#[derive(Clone, Debug)]
pub struct CanonicalTensor<'a> {
    pub(crate) spec: TensorSpec,
    pub(crate) source: Tensor<'a>,
    pub(crate) transposed: bool,
    pub(crate) rows: Rows,
}

/// Which output rows of a checkpoint tensor belong to a canonical one: `n_blocks` runs of `block`
/// rows, the first at `start`, each `stride` rows after the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rows {
    /// The first of them.
    pub start: usize,
    /// Rows that follow one another.
    pub block: usize,
    /// From the start of one block to that of the next.
    pub stride: usize,
    /// How many blocks there are.
    pub n_blocks: usize,
    /// How many rows the checkpoint's tensor has, over all its dimensions but the last.
    pub total: usize,
}

impl Rows {
    /// All rows of a tensor that has `total`.
    pub fn all(total: usize) -> Self {
        Self::run(0, total, total)
    }

    /// `len` rows from `start` on, of `total`.
    pub fn run(start: usize, len: usize, total: usize) -> Self {
        Self { start, block: len, stride: len, n_blocks: 1, total }
    }

    /// How many they are.
    pub fn n(&self) -> usize {
        self.block * self.n_blocks
    }

    /// Whether these are all there are, in order.
    pub fn is_all(&self) -> bool {
        self.n_blocks == 1 && self.block == self.total
    }

    /// Where one of them lies among those of the checkpoint's tensor.
    pub fn stored_row(&self, row: usize) -> usize {
        let Self { start, block, stride, .. } = *self;
        start + row / block * stride + row % block
    }

    /// `n` of them from the one at `first` on as runs of neighbours in the checkpoint's tensor: the first
    /// of each run, and how many it has.
    pub(crate) fn runs(&self, first: usize, n: usize) -> impl Iterator<Item = (usize, usize)> {
        let (rows, mut row, end) = (*self, first, first + n);
        std::iter::from_fn(move || {
            if row >= end {
                return None;
            }
            let (stored, len) = (rows.stored_row(row), rows.block - row % rows.block);
            let len = len.min(end - row);
            row += len;
            Some((stored, len))
        })
    }

    /// First rows of the blocks.
    pub fn starts(&self) -> impl Iterator<Item = usize> + use<> {
        let Self { start, stride, n_blocks, .. } = *self;
        (0..n_blocks).map(move |idx| start + idx * stride)
    }
}

impl<'a> CanonicalTensor<'a> {
    /// The canonical name.
    pub fn name(&self) -> String {
        self.spec.name()
    }

    /// Module, shape and the config keys behind it.
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// The canonical shape: `[out, in]`, `[rows, dim]`, or `[n]`.
    pub fn shape(&self) -> &[usize] {
        &self.spec.shape
    }

    /// Product of the canonical dimensions.
    pub fn n_elements(&self) -> usize {
        self.spec.shape.iter().product()
    }

    /// Bytes that the canonical tensor occupies in the checkpoint's data type.
    pub fn bytes(&self) -> u64 {
        self.source.dtype().bytes_for(self.n_elements()) as u64
    }

    /// The checkpoint's tensor: name, data type, bytes, file.
    pub fn source(&self) -> Tensor<'a> {
        self.source
    }

    /// Whether the checkpoint's tensor is `[in, out]`.
    pub fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// Which output rows of the checkpoint's tensor these are.
    pub fn rows(&self) -> Rows {
        self.rows
    }

    /// Whether both are the same numbers of the same checkpoint tensor.
    pub fn is_same_source(&self, other: &CanonicalTensor<'_>) -> bool {
        self.source.name() == other.source.name()
            && self.rows == other.rows
            && self.transposed == other.transposed
    }

    /// Writes the canonical tensor to `out`, row-major.
    ///
    /// # Errors
    /// [`TransformerError::BufferSize`] if `out` has another length.
    pub fn read_f32(&self, out: &mut [f32]) -> Result<(), TransformerError> {
        let expected = self.n_elements();
        if out.len() != expected {
            let (name, found) = (self.name(), out.len());
            return Err(TransformerError::BufferSize { name, found, expected });
        }
        if expected == 0 {
            return Ok(());
        }
        let row_len = expected / self.rows.n();
        if self.rows.is_all() && (!self.transposed || row_len == 1) {
            self.source.read_f32(out)?;
            return Ok(());
        }
        if self.transposed && self.source.row_order() == RowOrder::Transposed {
            // The file has turned it round already.
            self.source.read_stored_f32(self.rows.start * row_len, out)?;
            return Ok(());
        }
        let elements = Elements::of(self.source)?;
        let block_len = self.rows.block * row_len;
        if !self.transposed {
            for (start, block) in self.rows.starts().zip(out.chunks_exact_mut(block_len)) {
                elements.read(start * row_len, block);
            }
            return Ok(());
        }
        for (start, block) in self.rows.starts().zip(out.chunks_exact_mut(block_len)) {
            self.read_transposed(&elements, start, row_len, block);
        }
        Ok(())
    }

    /// Writes the part of the canonical tensor that lies in these rows and columns to `out`, row-major.
    /// Nothing else of the file is read, save the rest of a block at either end of a row. A vector is one
    /// column.
    ///
    /// # Errors
    /// [`TransformerError::BufferSize`] if `out` has another length or the part is not inside the tensor.
    pub fn read_part_f32(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), TransformerError> {
        let (n_rows, width) = (self.rows.n(), columns.len());
        let row_len = self.n_elements() / n_rows.max(1);
        let (found, expected) = (out.len(), rows.len() * width);
        if rows.end > n_rows || columns.end > row_len || found != expected {
            return Err(TransformerError::BufferSize { name: self.name(), found, expected });
        }
        if expected == 0 {
            return Ok(());
        }
        if self.transposed && self.source.row_order() == RowOrder::Transposed {
            for (row, out) in rows.zip(out.chunks_exact_mut(width)) {
                let at = self.rows.stored_row(row) * row_len + columns.start;
                self.source.read_stored_f32(at, out)?;
            }
            return Ok(());
        }
        let elements = Elements::of(self.source)?;
        if !self.transposed || row_len == 1 {
            for (row, out) in rows.zip(out.chunks_exact_mut(width)) {
                elements.read(self.rows.stored_row(row) * row_len + columns.start, out);
            }
            return Ok(());
        }
        let (mut row, mut rest) = (rows.start, out);
        while row < rows.end {
            // Rows of one block lie side by side.
            let n = (self.rows.block - row % self.rows.block).min(rows.end - row);
            let (part, after) = rest.split_at_mut(n * width);
            self.read_turned(&elements, (self.rows.stored_row(row), n), columns.clone(), part);
            (row, rest) = (row + n, after);
        }
        Ok(())
    }

    /// Whether [`Self::fetch_rows_f32`] reads the rows alone: they lie in the file as they are wanted.
    /// Else it reads the whole tensor of the checkpoint.
    pub fn lies_in_rows(&self) -> bool {
        let is_column = self.n_elements() == self.rows.n();
        (!self.transposed || is_column) && self.source.has_plain_rows()
    }

    /// Writes the rows from `first` on to `out`, as many as it holds, by system calls instead of the
    /// mapping; see [`Tensor::fetch_stored_f32`](drivetrain_artifacts::Tensor::fetch_stored_f32).
    ///
    /// # Errors
    /// `out` is not whole rows of the tensor, or the file can't be read.
    pub fn fetch_rows_f32(
        &self,
        first: usize,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) -> Result<(), TransformerError> {
        let row_len = (self.n_elements() / self.rows.n().max(1)).max(1);
        let (n, found) = (out.len() / row_len, out.len());
        if found % row_len != 0 || first + n > self.rows.n() {
            let (name, expected) = (self.name(), self.n_elements());
            return Err(TransformerError::BufferSize { name, found, expected });
        }
        if !self.lies_in_rows() {
            let source = scratch.whole(self.source)?;
            let (spec, transposed, rows) = (self.spec.clone(), self.transposed, self.rows);
            let whole = CanonicalTensor { spec, source, transposed, rows };
            if n == self.rows.n() {
                return whole.read_f32(out);
            }
            let values = whole.to_f32_vec()?;
            out.copy_from_slice(&values[first * row_len..first * row_len + found]);
            return Ok(());
        }
        scratch.holds = None;
        let mut rest = out;
        for (stored, n) in self.rows.runs(first, n) {
            let (part, after) = rest.split_at_mut(n * row_len);
            self.source.fetch_stored_f32(stored * row_len, &mut scratch.bytes, part)?;
            rest = after;
        }
        Ok(())
    }

    /// Bytes of a row as [`Self::fetch_rows`] reads it; `None` where rows are not in the file as they
    /// are wanted, if in another order: they lie as columns, end inside of a block, or are changed.
    pub fn row_bytes(&self) -> Option<usize> {
        let source = &self.source;
        let row_len = (self.n_elements() / self.rows.n().max(1)).max(1);
        let is_row = !self.transposed
            && source.value_offset() == 0.0
            && row_len.is_multiple_of(source.dtype().block_len());
        let ordered = !matches!(source.row_order(), RowOrder::Plain | RowOrder::Transposed);
        let readable = source.has_plain_rows() || (ordered && self.rows.is_all());
        (is_row && readable).then(|| source.dtype().bytes_for(row_len))
    }

    /// Writes the rows from `first` on to `out`, as many as it holds, in the file's data type, by system
    /// calls.
    ///
    /// # Errors
    /// `out` is not whole rows of the tensor, they don't lie in the file ([`Self::row_bytes`]), or it
    /// can't be read.
    pub fn fetch_rows(
        &self,
        first: usize,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<(), TransformerError> {
        let row_len = (self.n_elements() / self.rows.n().max(1)).max(1);
        let row_bytes = self.row_bytes().filter(|bytes| out.len().is_multiple_of((*bytes).max(1)));
        let Some(row_bytes) =
            row_bytes.filter(|bytes| first + out.len() / (*bytes).max(1) <= self.rows.n())
        else {
            let (name, expected) = (self.name(), self.bytes() as usize);
            return Err(TransformerError::BufferSize { name, found: out.len(), expected });
        };
        if !self.source.has_plain_rows() {
            let order = self.source.row_order();
            let whole = scratch.whole(self.source)?.bytes();
            for (idx, row) in out.chunks_exact_mut(row_bytes).enumerate() {
                let at = order.stored_row(first + idx) * row_bytes;
                row.copy_from_slice(&whole[at..at + row_bytes]);
            }
            return Ok(());
        }
        let (n, mut rest) = (out.len() / row_bytes.max(1), out);
        for (stored, n) in self.rows.runs(first, n) {
            let (part, after) = rest.split_at_mut(n * row_bytes);
            self.source.fetch_stored(stored * row_len, part)?;
            rest = after;
        }
        Ok(())
    }

    /// One block of rows that lie as columns from `start` on.
    fn read_transposed(
        &self,
        elements: &Elements<'_>,
        start: usize,
        row_len: usize,
        out: &mut [f32],
    ) {
        self.read_turned(elements, (start, self.rows.block), 0..row_len, out);
    }

    /// `n` rows that lie as columns from `start` on, and of them what lies in the file's rows `columns`.
    fn read_turned(
        &self,
        elements: &Elements<'_>,
        (start, n): (usize, usize),
        columns: Range<usize>,
        out: &mut [f32],
    ) {
        // Sixteen source rows at a time become sixteen neighbouring columns of `out`.
        const TILE: usize = 16;
        let width = columns.len();
        let mut tile = vec![0.0f32; TILE * n];
        for first in (0..width).step_by(TILE) {
            let n_columns = TILE.min(width - first);
            for (idx, row) in tile.chunks_exact_mut(n).take(n_columns).enumerate() {
                elements.read((columns.start + first + idx) * self.rows.total + start, row);
            }
            for (col, out_row) in out.chunks_exact_mut(width).enumerate() {
                for (idx, value) in out_row[first..first + n_columns].iter_mut().enumerate() {
                    *value = tile[idx * n + col];
                }
            }
        }
    }

    /// The canonical tensor, row-major.
    ///
    /// # Errors
    /// The checkpoint's tensor can't be read as f32.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>, TransformerError> {
        let mut out = vec![0.0; self.n_elements()];
        self.read_f32(&mut out)?;
        Ok(out)
    }
}

/// Memory for what is read from files and has to be turned round or converted.
#[derive(Debug, Default)]
pub struct Scratch {
    bytes: Vec<u8>,
    /// File and name of the checkpoint's tensor whose bytes these are: parts of one follow one another.
    holds: Option<(PathBuf, String)>,
}

impl Scratch {
    /// The whole of a tensor, read unless it is what was read last.
    fn whole<'s, 'a: 's>(&'s mut self, source: Tensor<'a>) -> Result<Tensor<'s>, ArtifactError> {
        let is_held =
            |(file, name): &(PathBuf, String)| file == source.file() && name == source.name();
        if !self.holds.as_ref().is_some_and(is_held) {
            self.holds = None;
            source.fetch(&mut self.bytes)?;
            self.holds = Some((source.file().to_owned(), source.name().to_owned()));
        }
        source.over(&self.bytes)
    }
}

/// A tensor's elements in row-major order, readable from any place.
enum Elements<'a> {
    F32(&'a [[u8; 4]]),
    F16(&'a [[u8; 2]]),
    BF16(&'a [[u8; 2]]),
    /// Of a type or in an order that the tensor knows itself.
    Other(Tensor<'a>),
}

impl<'a> Elements<'a> {
    fn of(tensor: Tensor<'a>) -> Result<Self, ArtifactError> {
        let bytes = tensor.bytes();
        Ok(match tensor.dtype() {
            DType::F32 if tensor.is_contiguous() => Self::F32(bytes.as_chunks().0),
            DType::F16 if tensor.is_contiguous() => Self::F16(bytes.as_chunks().0),
            DType::BF16 if tensor.is_contiguous() => Self::BF16(bytes.as_chunks().0),
            _ => {
                // Whether it can be read at all.
                tensor.read_f32_at(0, &mut [])?;
                Self::Other(tensor)
            }
        })
    }

    /// Fills `out` from element `start` on, as far as there are elements.
    fn read(&self, start: usize, out: &mut [f32]) {
        fn convert<const N: usize>(
            elements: &[[u8; N]],
            start: usize,
            out: &mut [f32],
            decode: impl Fn([u8; N]) -> f32,
        ) {
            let elements = elements.get(start..).unwrap_or_default();
            out.iter_mut().zip(elements).for_each(|(value, bytes)| *value = decode(*bytes));
        }
        match self {
            Self::F32(elements) => convert(elements, start, out, f32::from_le_bytes),
            Self::F16(elements) => {
                convert(elements, start, out, |b| half::f16::from_le_bytes(b).to_f32());
            }
            Self::BF16(elements) => {
                convert(elements, start, out, |b| half::bf16::from_le_bytes(b).to_f32());
            }
            Self::Other(tensor) => {
                let n = out.len().min(tensor.n_elements().saturating_sub(start));
                // Both causes of an error are excluded: the type was tried, the end is known.
                let _ = tensor.read_f32_at(start, &mut out[..n]);
            }
        }
    }
}
