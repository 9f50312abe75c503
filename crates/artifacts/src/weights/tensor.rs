//! One tensor of a weight file: a checked view into mapped memory.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::blocks::{DecodeBlock, LARGEST};
use super::dtype::{DType, Decode};
use super::groups::{GroupLayout, Groups};
use super::order::RowOrder;
use crate::error::{ArtifactError, shorten};
use crate::mapping::MappedFile;

/// Most dimensions of a tensor; PyTorch has the same limit.
pub(super) const MAX_RANK: usize = 64;

/// Bytes that are read at once where they have to be converted.
const PIECE: usize = 1 << 20;

/// Where a tensor lies in its file. Made by the readers only, who check that `span` is inside the
/// file, that every index of `shape` through `strides` is inside `span`, and that the last dimension
/// is whole blocks. Only a row-major tensor has a type of blocks, an order or an offset.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) dtype: DType,
    pub(crate) shape: Box<[usize]>,
    /// In elements.
    pub(crate) strides: Box<[usize]>,
    /// The bytes from the first element to the last that can be reached, in the file.
    pub(crate) span: Range<usize>,
    pub(crate) n_elements: usize,
    pub(crate) order: RowOrder,
    /// Added to every element that is read.
    pub(crate) offset: f32,
    /// Scales and zeros of a matrix whose span is words of whole numbers.
    pub(crate) groups: Option<Arc<GroupLayout>>,
}

impl Layout {
    /// A tensor that lies in its file as it is shown.
    pub(crate) fn plain(
        dtype: DType,
        shape: Box<[usize]>,
        strides: Box<[usize]>,
        span: Range<usize>,
        n_elements: usize,
    ) -> Self {
        let (order, offset, groups) = (RowOrder::Plain, 0.0, None);
        Self { dtype, shape, strides, span, n_elements, order, offset, groups }
    }
}

/// A tensor of a weight file. The data stay where they are: in the mapped file.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    pub(super) name: &'a str,
    pub(super) layout: &'a Layout,
    pub(super) bytes: &'a [u8],
    /// Copies of a packed matrix's scales and zeros.
    pub(super) beside: Option<&'a [u8]>,
    pub(super) file: &'a Arc<MappedFile>,
}

/// A tensor that keeps its file open, and needs no checkpoint.
#[derive(Clone, Debug)]
pub struct HeldTensor {
    name: Box<str>,
    layout: Layout,
    file: Arc<MappedFile>,
}

impl HeldTensor {
    /// The tensor.
    pub fn tensor(&self) -> Tensor<'_> {
        let Self { name, layout, file } = self;
        let bytes = file.bytes().get(layout.span.clone()).unwrap_or_default();
        Tensor { name, layout, bytes, beside: None, file }
    }
}

impl<'a> Tensor<'a> {
    /// The name in the checkpoint.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        self.layout.dtype
    }

    /// The dimensions; empty for a single number.
    pub fn shape(&self) -> &'a [usize] {
        &self.layout.shape
    }

    /// For each dimension, how many elements lie between neighbours.
    pub fn strides(&self) -> &'a [usize] {
        &self.layout.strides
    }

    /// Product of the dimensions.
    pub fn n_elements(&self) -> usize {
        self.layout.n_elements
    }

    /// In which order the rows lie in the file.
    pub fn row_order(&self) -> RowOrder {
        self.layout.order
    }

    /// What is added to each element of the file: -1 for norms that a GGUF file keeps one larger.
    pub fn value_offset(&self) -> f32 {
        self.layout.offset
    }

    /// The whole numbers, scales and zeros of a matrix that GPTQ or AWQ packed, `[out, in]`.
    pub fn groups(&self) -> Option<Groups<'a>> {
        let layout = self.layout.groups.as_deref()?;
        Some(Groups::new(layout, self.bytes, self.beside))
    }

    /// Whether [`Tensor::bytes`] are the elements, or their blocks, in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.has_plain_rows() && self.layout.offset == 0.0
    }

    /// Whether rows lie in the file as they are shown, one after the other; [`Tensor::value_offset`] may
    /// have to be added.
    pub fn has_plain_rows(&self) -> bool {
        self.layout.order == RowOrder::Plain && self.is_row_major()
    }

    fn is_row_major(&self) -> bool {
        is_contiguous(&self.layout.shape, &self.layout.strides)
    }

    /// The elements or blocks, little-endian: in row-major order if the tensor is contiguous; else
    /// the memory from the first element to the last, to be walked with [`Tensor::strides`] or, where
    /// there is one, in [`Tensor::row_order`]. The slice may start at any address; it is not aligned
    /// to the elements' size.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The file.
    pub fn file(&self) -> &'a Path {
        self.file.path()
    }

    /// Gives back the memory that its pages of the file take, for who made something else of them.
    /// They are read again when they are touched.
    pub fn release_pages(&self) {
        self.file.release(self.layout.span.clone());
        if let Some(groups) = &self.layout.groups {
            groups.release();
        }
    }

    /// Converts all elements to f32 and writes them in row-major order to `out`, which must hold
    /// [`Tensor::n_elements`] elements. 64-bit values are rounded to nearest.
    ///
    /// # Errors
    /// `out` has another length, or the tensor holds complex numbers.
    pub fn read_f32(&self, out: &mut [f32]) -> Result<(), ArtifactError> {
        if out.len() != self.n_elements() {
            let reason = format!("holds {} elements, read into {}", self.n_elements(), out.len());
            return Err(self.error(reason));
        }
        match (self.layout.order, self.shape()) {
            _ if self.layout.groups.is_some() => self.read_f32_at(0, out),
            (RowOrder::Transposed, &[rows, columns]) => self.read_transposed(rows, columns, out),
            _ => self.read_f32_at(0, out),
        }
    }

    /// As [`Tensor::read_f32`], from element `start` in row-major order on. Nothing but what is asked
    /// for is converted, save the rest of a block at either end.
    ///
    /// # Errors
    /// There are not as many elements, or they are complex numbers.
    pub fn read_f32_at(&self, start: usize, out: &mut [f32]) -> Result<(), ArtifactError> {
        self.check_range(start, out.len())?;
        if let Some(groups) = self.groups() {
            groups.read(start, out);
            return Ok(());
        }
        let row_len = self.shape().last().copied().unwrap_or(1).max(1);
        match (self.layout.order, self.shape()) {
            (RowOrder::Plain, _) if self.is_row_major() => self.read_stored_f32(start, out),
            (RowOrder::Plain, _) => self.read_strided(start, out),
            (RowOrder::Transposed, &[rows, columns]) => {
                for (idx, value) in out.iter_mut().enumerate() {
                    let (row, column) = ((start + idx) / columns, (start + idx) % columns);
                    self.read_stored_f32(column * rows + row, std::slice::from_mut(value))?;
                }
                Ok(())
            }
            (order, shape) => {
                // The rows of a bias are its elements.
                let row_len = if shape.len() == 1 { 1 } else { row_len };
                let (mut at, mut rest) = (start, out);
                while !rest.is_empty() {
                    let (row, within) = (at / row_len, at % row_len);
                    let (part, after) = rest.split_at_mut(rest.len().min(row_len - within));
                    self.read_stored_f32(order.stored_row(row) * row_len + within, part)?;
                    at += part.len();
                    rest = after;
                }
                Ok(())
            }
        }
    }

    /// As [`Tensor::read_f32_at`], but in the order in which the elements lie in the file.
    ///
    /// # Errors
    /// There are not as many elements, they are complex numbers, or the tensor is strided.
    pub fn read_stored_f32(&self, start: usize, out: &mut [f32]) -> Result<(), ArtifactError> {
        self.check_range(start, out.len())?;
        if !self.is_row_major() {
            return Err(self.error("is not in row-major order".to_owned()));
        }
        if let (Some(groups), &[n_out, _]) = (self.groups(), self.shape()) {
            for (at, value) in (start..).zip(out) {
                *value = groups.value(at % n_out, at / n_out);
            }
            return Ok(());
        }
        let dtype = self.dtype();
        if let Some(decode) = dtype.decode_block() {
            read_blocks(dtype, decode, self.bytes, start, out);
        } else {
            let bytes = self.bytes.get(start * dtype.size()..).unwrap_or_default();
            let decode = dtype.decode().ok_or_else(|| self.complex())?;
            read_contiguous(dtype, decode, bytes, out);
        }
        if self.layout.offset != 0.0 {
            out.iter_mut().for_each(|value| *value += self.layout.offset);
        }
        Ok(())
    }

    /// As [`Tensor::read_stored_f32`], but by system calls instead of the mapping: a file that became
    /// shorter, or a disk that fails, is an error and no fault, and no page of the mapping is touched.
    /// What has to be converted goes through `scratch`, a mebibyte at a time.
    ///
    /// # Errors
    /// As [`Tensor::read_stored_f32`], or the file can't be read.
    pub fn fetch_stored_f32(
        &self,
        start: usize,
        scratch: &mut Vec<u8>,
        out: &mut [f32],
    ) -> Result<(), ArtifactError> {
        self.check_range(start, out.len())?;
        if !self.is_row_major() {
            return Err(self.error("is not in row-major order".to_owned()));
        }
        if self.layout.groups.is_some() {
            self.fetch(scratch)?;
            return self.over(scratch)?.read_stored_f32(start, out);
        }
        let (dtype, first_byte) = (self.dtype(), self.layout.span.start);
        if dtype == DType::F32 {
            self.file.read_at(first_byte + start * 4, bytemuck::cast_slice_mut(out))?;
            out.iter_mut().for_each(|value| *value = f32::from_bits(u32::from_le(value.to_bits())));
        } else {
            let (size, len) = (dtype.size(), dtype.block_len());
            let per_piece = (PIECE / size).max(1) * len;
            let (mut at, mut rest) = (start, &mut *out);
            while !rest.is_empty() {
                let (block, skip) = (at / len, at % len);
                let (part, after) = rest.split_at_mut(rest.len().min(per_piece - skip));
                let n_blocks = (skip + part.len()).div_ceil(len);
                scratch.resize(n_blocks * size, 0);
                self.file.read_at(first_byte + block * size, scratch)?;
                match dtype.decode_block() {
                    Some(decode) => read_blocks(dtype, decode, scratch, skip, part),
                    None => {
                        let decode = dtype.decode().ok_or_else(|| self.complex())?;
                        read_contiguous(dtype, decode, scratch, part);
                    }
                }
                at += part.len();
                rest = after;
            }
        }
        if self.layout.offset != 0.0 {
            out.iter_mut().for_each(|value| *value += self.layout.offset);
        }
        Ok(())
    }

    /// The bytes that lie in the file from element `start` on, as many as `out` holds, by a system call
    /// as [`Tensor::fetch_stored_f32`] does. `start` is the first of a block.
    ///
    /// # Errors
    /// There are not as many, `start` is inside of a block, or the file can't be read.
    pub fn fetch_stored(&self, start: usize, out: &mut [u8]) -> Result<(), ArtifactError> {
        let dtype = self.dtype();
        let at = start / dtype.block_len() * dtype.size();
        let is_inside = at.checked_add(out.len()).is_some_and(|end| end <= self.bytes.len());
        if !is_inside || !start.is_multiple_of(dtype.block_len()) {
            let reason = format!(
                "holds {} bytes, {} are read from element {start} on",
                self.bytes.len(),
                out.len()
            );
            return Err(self.error(reason));
        }
        self.file.read_at(self.layout.span.start + at, out)
    }

    /// Reads what [`Tensor::bytes`] are into `out`, and after it the scales and zeros of a packed matrix,
    /// by system calls as [`Tensor::fetch_stored_f32`] does, for [`Tensor::over`].
    ///
    /// # Errors
    /// The file can't be read.
    pub fn fetch(&self, out: &mut Vec<u8>) -> Result<(), ArtifactError> {
        let (n, groups) = (self.bytes.len(), self.layout.groups.as_deref());
        out.resize(n + groups.map_or(0, GroupLayout::n_beside), 0);
        let (own, beside) = out.split_at_mut(n);
        self.file.read_at(self.layout.span.start, own)?;
        groups.map_or(Ok(()), |groups| groups.fetch_beside(beside))
    }

    /// The same tensor over a copy of what [`Tensor::fetch`] reads.
    ///
    /// # Errors
    /// It has another number of bytes.
    pub fn over<'s>(&self, bytes: &'s [u8]) -> Result<Tensor<'s>, ArtifactError>
    where
        'a: 's,
    {
        let n_beside = self.layout.groups.as_deref().map(GroupLayout::n_beside);
        let n = self.bytes.len() + n_beside.unwrap_or(0);
        if bytes.len() != n {
            let reason = format!("has {n} bytes, {} were given", bytes.len());
            return Err(self.error(reason));
        }
        let (own, beside) = bytes.split_at(self.bytes.len());
        Ok(Tensor { bytes: own, beside: n_beside.map(|_| beside), ..*self })
    }

    /// The same tensor for who outlives the checkpoint: its file stays open.
    pub fn hold(&self) -> HeldTensor {
        let (name, layout) = (self.name.into(), self.layout.clone());
        HeldTensor { name, layout, file: Arc::clone(self.file) }
    }

    /// Asks the system to read the bytes of `n` elements from `start` on, so that they are in memory when
    /// they are fetched. `start` is the first of a block.
    pub fn expect(&self, start: usize, n: usize) {
        let dtype = self.dtype();
        let at = start / dtype.block_len() * dtype.size();
        self.file.expect(self.layout.span.start + at, dtype.bytes_for(n));
    }

    /// All elements as f32, in row-major order.
    ///
    /// # Errors
    /// The tensor holds complex numbers.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>, ArtifactError> {
        let mut out = vec![0.0; self.n_elements()];
        self.read_f32(&mut out)?;
        Ok(out)
    }

    fn check_range(&self, start: usize, n: usize) -> Result<(), ArtifactError> {
        if start.checked_add(n).is_some_and(|end| end <= self.n_elements()) {
            return Ok(());
        }
        let reason = format!("holds {} elements, {n} are read from {start} on", self.n_elements());
        Err(self.error(reason))
    }

    /// Elements of a tensor of a PyTorch file, which may have any strides.
    fn read_strided(&self, start: usize, out: &mut [f32]) -> Result<(), ArtifactError> {
        let decode = self.dtype().decode().ok_or_else(|| self.complex())?;
        let size = self.dtype().size();
        let mut at = Odometer::new(self.shape(), self.strides(), start);
        for value in out {
            let start = at.element() * size;
            *value = decode(self.bytes.get(start..start + size).unwrap_or(&[0; 8][..size]));
            at.advance();
        }
        Ok(())
    }

    /// The whole of a matrix that lies as `[columns, rows]`: sixteen rows of the file at a time become
    /// sixteen neighbouring columns.
    fn read_transposed(
        &self,
        rows: usize,
        columns: usize,
        out: &mut [f32],
    ) -> Result<(), ArtifactError> {
        const TILE: usize = 16;
        let mut tile = vec![0.0; TILE * rows];
        for first in (0..columns).step_by(TILE) {
            let n = TILE.min(columns - first);
            self.read_stored_f32(first * rows, &mut tile[..n * rows])?;
            for (row, values) in out.chunks_exact_mut(columns).enumerate() {
                for (idx, value) in values[first..first + n].iter_mut().enumerate() {
                    *value = tile[idx * rows + row];
                }
            }
        }
        Ok(())
    }

    fn complex(&self) -> ArtifactError {
        self.error(format!("{} can't be read as F32", self.dtype()))
    }

    fn error(&self, reason: String) -> ArtifactError {
        ArtifactError::Tensor {
            path: self.file.path().to_owned(),
            tensor: shorten(self.name),
            reason,
        }
    }
}

/// Converts a contiguous run of elements. The types that weights come in get a loop of their own that
/// the compiler can vectorise; the others go through the function of one element.
fn read_contiguous(dtype: DType, decode: Decode, bytes: &[u8], out: &mut [f32]) {
    fn each<const N: usize>(bytes: &[u8], out: &mut [f32], read: impl Fn([u8; N]) -> f32) {
        for (value, chunk) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
            *value = read(*chunk);
        }
    }
    match dtype {
        DType::F32 => each(bytes, out, f32::from_le_bytes),
        DType::F16 => each(bytes, out, |b| half::f16::from_le_bytes(b).to_f32()),
        DType::BF16 => each(bytes, out, |b| half::bf16::from_le_bytes(b).to_f32()),
        _ => {
            for (value, chunk) in out.iter_mut().zip(bytes.chunks_exact(dtype.size())) {
                *value = decode(chunk);
            }
        }
    }
}

/// Converts the elements from `start` on that lie in blocks.
fn read_blocks(dtype: DType, decode: DecodeBlock, bytes: &[u8], start: usize, out: &mut [f32]) {
    let len = dtype.block_len();
    let mut blocks = bytes.chunks_exact(dtype.size()).skip(start / len);
    let (mut skip, mut rest) = (start % len, out);
    while !rest.is_empty() {
        let Some(block) = blocks.next() else { return };
        let (part, after) = rest.split_at_mut(rest.len().min(len - skip));
        if part.len() == len {
            decode(block, part);
        } else {
            let mut whole = [0.0; LARGEST];
            decode(block, &mut whole[..len]);
            part.copy_from_slice(&whole[skip..skip + part.len()]);
        }
        skip = 0;
        rest = after;
    }
}

/// Walks the indices of a shape in row-major order and keeps the offset of the current element.
struct Odometer<'a> {
    shape: &'a [usize],
    strides: &'a [usize],
    index: Vec<usize>,
    offset: usize,
}

impl<'a> Odometer<'a> {
    /// At element `start` in row-major order.
    fn new(shape: &'a [usize], strides: &'a [usize], start: usize) -> Self {
        let mut index = vec![0; shape.len()];
        let (mut rest, mut offset) = (start, 0);
        for ((index, &n), &stride) in index.iter_mut().zip(shape).zip(strides).rev() {
            *index = rest % n.max(1);
            rest /= n.max(1);
            offset += *index * stride;
        }
        Self { shape, strides, index, offset }
    }

    fn element(&self) -> usize {
        self.offset
    }

    fn advance(&mut self) {
        for ((index, &n), &stride) in self.index.iter_mut().zip(self.shape).zip(self.strides).rev()
        {
            *index += 1;
            self.offset += stride;
            if *index < n {
                return;
            }
            self.offset -= stride * n;
            *index = 0;
        }
    }
}

/// The strides of a row-major tensor, or `None` where they overflow.
pub(crate) fn row_major(shape: &[usize]) -> Option<Box<[usize]>> {
    let mut strides = vec![1usize; shape.len()];
    let mut stride = 1usize;
    for (slot, &n) in strides.iter_mut().zip(shape).rev() {
        *slot = stride;
        stride = stride.checked_mul(n.max(1))?;
    }
    Some(strides.into())
}

/// Product of the dimensions, or `None` where it overflows. Zero anywhere makes zero, but the other
/// dimensions must be sane too.
pub(super) fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n.max(1)))?;
    Some(shape.iter().product())
}

pub(super) fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expect = 1usize;
    for (&n, &stride) in shape.iter().zip(strides).rev() {
        if n == 0 {
            return true;
        }
        // The stride of a dimension of one is never used.
        if n != 1 && stride != expect {
            return false;
        }
        expect = expect.saturating_mul(n);
    }
    true
}
