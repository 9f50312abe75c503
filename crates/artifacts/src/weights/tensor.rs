//! One tensor of a weight file: a checked view into mapped memory.

use std::ops::Range;
use std::path::Path;

use super::dtype::DType;
use crate::error::{ArtifactError, shorten};

/// Most dimensions of a tensor; PyTorch has the same limit.
pub(super) const MAX_RANK: usize = 64;

/// Where a tensor lies in its file. Made by the readers only, who check that `span` is inside the
/// file and that every index of `shape` through `strides` is inside `span`.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) dtype: DType,
    pub(super) shape: Box<[usize]>,
    /// In elements.
    pub(super) strides: Box<[usize]>,
    /// The bytes from the first element to the last that can be reached, in the file.
    pub(super) span: Range<usize>,
    pub(super) n_elements: usize,
}

/// A tensor of a weight file. The data stay where they are: in the mapped file.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    pub(super) name: &'a str,
    pub(super) layout: &'a Layout,
    pub(super) bytes: &'a [u8],
    pub(super) file: &'a Path,
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

    /// Whether the elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        is_contiguous(&self.layout.shape, &self.layout.strides)
    }

    /// The elements, little-endian: in row-major order if the tensor is contiguous, else the memory
    /// from the first element to the last, to be walked with [`Tensor::strides`]. The slice may
    /// start at any address; it is not aligned to the elements' size.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The file.
    pub fn file(&self) -> &'a Path {
        self.file
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
        let decode = self
            .dtype()
            .decode()
            .ok_or_else(|| self.error(format!("{} can't be read as F32", self.dtype())))?;
        let size = self.dtype().size();
        if self.is_contiguous() {
            read_contiguous(self.dtype(), self.bytes, out);
            return Ok(());
        }
        let mut at = Odometer::new(self.shape(), self.strides());
        for value in out {
            let start = at.element() * size;
            *value = decode(self.bytes.get(start..start + size).unwrap_or(&[0; 8][..size]));
            at.advance();
        }
        Ok(())
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

    fn error(&self, reason: String) -> ArtifactError {
        ArtifactError::Tensor { path: self.file.to_owned(), tensor: shorten(self.name), reason }
    }
}

/// Converts a contiguous block. The types that weights come in get a loop of their own that the
/// compiler can vectorise; the others go through the function of one element.
fn read_contiguous(dtype: DType, bytes: &[u8], out: &mut [f32]) {
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
            let Some(decode) = dtype.decode() else { return };
            for (value, chunk) in out.iter_mut().zip(bytes.chunks_exact(dtype.size())) {
                *value = decode(chunk);
            }
        }
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
    fn new(shape: &'a [usize], strides: &'a [usize]) -> Self {
        Self { shape, strides, index: vec![0; shape.len()], offset: 0 }
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
pub(super) fn row_major(shape: &[usize]) -> Option<Box<[usize]>> {
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
