//! Matrices in the form that they are held in: f32 on any device, or 16 bits or blocks in the CPU's
//! memory, as their file has them or made on loading.
//!
//! A matrix that is no f32 is made f32 a few rows at a time where it is multiplied with few rows, and
//! packed a tile at a time for many; blocks are multiplied as blocks, with activations of 8 bits. A
//! matrix of any form may also stay in its file.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};
use drivetrain_engine::{EngineError, ErrorKind};
use drivetrain_kernels::{
    BlockFormat, BlockMatrix, Cpu, Epilogue, FORCE_VARIABLE, Isa, KernelError,
    Matrix as PackedMatrix, Pool, Precision, Scratch, Source,
};
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

use crate::file_rows::{FileRows, Tile};
use crate::forms::Form;
use crate::kernels;
use crate::linear::product;
use crate::rows::{contiguous, take_values};

/// Up to this many rows a matrix of 16 bits is made f32 as it is multiplied; for more it is packed.
pub(crate) const FEW_ROWS: usize = 16;

/// Rows of a product that are computed at once: what that takes is bounded.
pub(crate) const ROWS: usize = 256;

/// Bytes of a tile of 16 bits that is packed at once.
pub(crate) const TILE_BYTES: usize = 1 << 20;

/// A type of 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HalfType {
    F16,
    Bf16,
}

impl HalfType {
    /// Writes `values` to `bits`, rounded.
    pub(crate) fn narrow(self, values: &[f32], bits: &mut [u16]) {
        match self {
            Self::F16 => bits.reinterpret_cast_mut::<f16>().convert_from_f32_slice(values),
            Self::Bf16 => bits.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(values),
        }
    }

    fn source(self, bits: &[u16]) -> Source<'_> {
        match self {
            Self::F16 => Source::F16(bits.reinterpret_cast()),
            Self::Bf16 => Source::Bf16(bits.reinterpret_cast()),
        }
    }

    fn precision(self) -> Precision {
        match self {
            Self::F16 => Precision::F16,
            Self::Bf16 => Precision::Bf16,
        }
    }
}

/// Numbers of a matrix, whose memory can be used again.
#[derive(Debug)]
pub(crate) enum Buffer {
    Floats(Vec<f32>),
    Halves(Vec<u16>),
    Bytes(Vec<u8>),
}

/// A matrix `[n_out, n_in]`.
#[derive(Clone, Debug)]
pub(crate) enum Matrix {
    /// f32 on its device; without elements, where there is only a form.
    Plain(Tensor),
    /// Rows of 16 bits.
    Half(Arc<HalfRows>),
    /// Rows of blocks.
    Blocks(Arc<BlockRows>),
    /// Rows in their file.
    InFile(Arc<FileRows>),
}

/// Rows of numbers of 16 bits.
#[derive(Debug)]
pub(crate) struct HalfRows {
    pub(crate) form: HalfType,
    pub(crate) bits: Vec<u16>,
    pub(crate) n_in: usize,
    pub(crate) compute: Arc<Compute>,
}

/// Rows of blocks.
#[derive(Debug)]
pub(crate) struct BlockRows {
    pub(crate) format: BlockFormat,
    pub(crate) bytes: Vec<u8>,
    pub(crate) n_in: usize,
    pub(crate) compute: Arc<Compute>,
}

impl Matrix {
    /// `x Wᵀ` for `x` `[rows, in]`.
    pub(crate) fn product(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain(weight) => product(x, weight),
            Self::Half(rows) => x.contiguous()?.apply_op1_no_bwd(&TimesHalf(rows)),
            Self::Blocks(rows) => x.contiguous()?.apply_op1_no_bwd(&TimesBlocks(rows)),
            Self::InFile(rows) => rows.product(x),
        }
    }

    /// The same on `device`.
    pub(crate) fn on(&self, device: &Device) -> Result<Self> {
        match self {
            Self::Plain(weight) => weight.to_device(device).map(Self::Plain),
            other if device.is_cpu() => Ok(other.clone()),
            _ => bail!("an accelerator takes matrices of f32"),
        }
    }

    /// The rows of these numbers: `[ids, n_in]`, where the matrix lies.
    pub(crate) fn gather(&self, ids: &[u32]) -> Result<Tensor> {
        match self {
            Self::Plain(weight) => weight.index_select(&Tensor::new(ids, weight.device())?, 0),
            Self::Half(rows) => {
                let mut values = vec![0.0; ids.len() * rows.n_in];
                for (id, values) in ids.iter().zip(values.chunks_exact_mut(rows.n_in)) {
                    let first = *id as usize * rows.n_in;
                    let Some(bits) = rows.bits.get(first..first + rows.n_in) else {
                        bail!("there is no row {id} in the table");
                    };
                    kernels::widen(rows.form, bits, values);
                }
                Tensor::from_vec(values, (ids.len(), rows.n_in), &Device::Cpu)
            }
            Self::Blocks(_) => bail!("a table of blocks is read from its file"),
            Self::InFile(rows) => rows.gather(ids),
        }
    }

    /// Its numbers, unless others have them, too.
    pub(crate) fn into_buffer(self) -> Option<Buffer> {
        match self {
            Self::Plain(weight) => take_values(&weight).map(Buffer::Floats),
            Self::Half(rows) => Arc::into_inner(rows).map(|rows| Buffer::Halves(rows.bits)),
            Self::Blocks(rows) => Arc::into_inner(rows).map(|rows| Buffer::Bytes(rows.bytes)),
            Self::InFile(_) => None,
        }
    }
}

/// What products of matrices that are no f32 are computed with: a device's threads, and memory.
#[derive(Debug)]
pub(crate) struct Compute {
    isa: Isa,
    pub(crate) pool: Pool,
    /// No thread but the caller's.
    pub(crate) alone: Pool,
    memory: Mutex<Memory>,
    /// What threads read parts of files into, while none of them does.
    tiles: Mutex<Vec<Tile>>,
}

#[derive(Debug)]
struct Memory {
    scratch: Scratch,
    /// The tile that was packed last.
    tile: Option<PackedMatrix>,
    /// What it gives.
    columns: Vec<f32>,
    /// What was read of a file to be packed.
    read: Vec<u32>,
}

impl Compute {
    /// Threads of its own, which sleep while nothing is multiplied.
    pub(crate) fn new(n_threads: NonZeroUsize) -> std::result::Result<Self, EngineError> {
        let forced = std::env::var(FORCE_VARIABLE).ok();
        let isa = Isa::choose(forced.as_deref()).map_err(|error| {
            EngineError::wrap(ErrorKind::Unsupported, "no kernels to compute with", &error)
        })?;
        let pool = |n_threads| {
            Pool::new(n_threads).map_err(|error| {
                EngineError::wrap(ErrorKind::OutOfMemory, "no threads to compute with", &error)
            })
        };
        let (pool, alone) = (pool(n_threads)?, pool(NonZeroUsize::MIN)?);
        let scratch = Scratch::with_capacity(0);
        let memory = Memory { scratch, tile: None, columns: Vec::new(), read: Vec::new() };
        Ok(Self { isa, pool, alone, memory: Mutex::new(memory), tiles: Mutex::default() })
    }

    /// Memory for a thread to read a tile of a file into.
    pub(crate) fn tile(&self) -> Tile {
        let mut tiles = self.tiles.lock().unwrap_or_else(PoisonError::into_inner);
        tiles.pop().unwrap_or_default()
    }

    /// Takes such memory back.
    pub(crate) fn give_back(&self, tile: Tile) {
        self.tiles.lock().unwrap_or_else(PoisonError::into_inner).push(tile);
    }

    pub(crate) fn cpu(&self) -> Cpu<'_> {
        Cpu { isa: self.isa, pool: &self.pool }
    }
}

/// Bytes that a product of at most `n_rows` with a matrix of `n_in` columns, which is multiplied with in
/// tiles, takes beside its result.
pub(crate) fn product_bytes(n_in: usize, n_rows: usize) -> u64 {
    let n_rows = n_rows.min(ROWS);
    let rows = n_rows * n_in * size_of::<f32>();
    let columns = n_rows * (TILE_BYTES / 2 / n_in.max(1)).max(1) * size_of::<f32>();
    (rows + columns + 2 * TILE_BYTES) as u64
}

struct TimesHalf<'a>(&'a HalfRows);

impl CustomOp1 for TimesHalf<'_> {
    fn name(&self) -> &'static str {
        "times-half"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let HalfRows { form, bits, n_in, compute } = self.0;
        let (n_rows, width) = layout.shape().dims2()?;
        if width != *n_in {
            bail!("rows of {width} times a matrix of {n_in} columns");
        }
        let n_out = bits.len() / n_in;
        let x = contiguous(x, layout)?;
        let mut out = vec![0.0; n_rows * n_out];
        if n_rows <= FEW_ROWS {
            kernels::few_rows_of_half(x, (bits, *form), &mut out, n_rows, *n_in);
        } else {
            by_tiles(Rows::Half(self.0), x, &mut out, compute)?;
        }
        Ok((CpuStorage::F32(out), (n_rows, n_out).into()))
    }
}

/// A matrix that is multiplied with a tile after the other.
#[derive(Clone, Copy)]
pub(crate) enum Rows<'a> {
    Half(&'a HalfRows),
    File(&'a FileRows),
}

impl<'a> Rows<'a> {
    fn form(self) -> Form {
        match self {
            Self::Half(rows) => Form::Half(rows.form),
            Self::File(rows) => rows.form(),
        }
    }

    /// Columns and rows.
    fn size(self) -> (usize, usize) {
        match self {
            Self::Half(rows) => (rows.n_in, rows.bits.len() / rows.n_in),
            Self::File(rows) => (rows.n_in(), rows.n_out()),
        }
    }

    /// The bytes of `n` rows from `first` on; what has to be read goes to `buffer`.
    fn tile<'b>(self, first: usize, n: usize, buffer: &'b mut Vec<u32>) -> Result<&'b [u8]>
    where
        'a: 'b,
    {
        match self {
            Self::Half(rows) => {
                Ok(bytemuck::cast_slice(&rows.bits[first * rows.n_in..][..n * rows.n_in]))
            }
            Self::File(rows) => rows.fetch_together(first, n, buffer),
        }
    }
}

/// `out = x Wᵀ`, a tile of the matrix after the other.
pub(crate) fn by_tiles(
    rows: Rows<'_>,
    x: &[f32],
    out: &mut [f32],
    compute: &Compute,
) -> Result<()> {
    let (n_in, n_out) = rows.size();
    let most = (TILE_BYTES / 2 / n_in).max(1);
    // Even tiles, so that each fits into the memory of the one before.
    let each = n_out.div_ceil(n_out.div_ceil(most)).next_multiple_of(16);
    let mut memory = compute.memory.lock().unwrap_or_else(PoisonError::into_inner);
    let Memory { scratch, tile, columns, read } = &mut *memory;
    for first in (0..n_out).step_by(each) {
        let n = each.min(n_out - first);
        let bytes = rows.tile(first, n, read)?;
        let product = match rows.form() {
            Form::Full => {
                let source = (Source::F32(bytemuck::cast_slice(bytes)), Precision::F32);
                packed(compute, source, n_in, tile)?
            }
            Form::Half(form) => {
                let source = (form.source(bytemuck::cast_slice(bytes)), form.precision());
                packed(compute, source, n_in, tile)?
            }
            Form::Blocks(format) => Product::Blocks(
                BlockMatrix::new(format, bytes, n_in).map_err(candle_core::Error::wrap)?,
            ),
        };
        for (x, out) in x.chunks(ROWS * n_in).zip(out.chunks_mut(ROWS * n_out)) {
            columns.resize(x.len() / n_in * n, 0.0);
            product.multiply(compute, x, columns, scratch).map_err(candle_core::Error::wrap)?;
            for (out, found) in out.chunks_exact_mut(n_out).zip(columns.chunks_exact(n)) {
                out[first..][..n].copy_from_slice(found);
            }
        }
        if let Product::Packed(packed) = product {
            *tile = Some(packed);
        }
    }
    Ok(())
}

/// A tile that is multiplied with.
enum Product<'a> {
    Packed(PackedMatrix),
    Blocks(BlockMatrix<'a>),
}

impl Product<'_> {
    fn multiply(
        &self,
        compute: &Compute,
        x: &[f32],
        out: &mut [f32],
        scratch: &mut Scratch,
    ) -> std::result::Result<(), KernelError> {
        let n_threads = compute.pool.n_threads();
        let epilogue = Epilogue::default();
        match self {
            Self::Packed(tile) => {
                scratch.reserve(tile.scratch_bytes(x.len() / tile.n_in(), n_threads));
                tile.multiply(&compute.pool, x, out, &epilogue, scratch)
            }
            Self::Blocks(tile) => {
                scratch.reserve(tile.scratch_bytes(x.len() / tile.n_in(), n_threads));
                tile.multiply(compute.cpu(), x, out, &epilogue, scratch)
            }
        }
    }
}

/// Packs a tile into the memory of the one before, if it has its size.
fn packed<'a>(
    compute: &Compute,
    (source, precision): (Source<'_>, Precision),
    n_in: usize,
    tile: &mut Option<PackedMatrix>,
) -> Result<Product<'a>> {
    let size = (source.len() / n_in, n_in, precision);
    let packed = match tile.take().filter(|m| (m.n_out(), m.n_in(), m.precision()) == size) {
        Some(mut packed) => packed.repack(&compute.pool, &[source]).map(|()| packed),
        None => PackedMatrix::pack(compute.cpu(), &[source], n_in, precision),
    };
    packed.map(Product::Packed).map_err(candle_core::Error::wrap)
}

struct TimesBlocks<'a>(&'a BlockRows);

impl CustomOp1 for TimesBlocks<'_> {
    fn name(&self) -> &'static str {
        "times-blocks"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let BlockRows { format, bytes, n_in, compute } = self.0;
        let (n_rows, width) = layout.shape().dims2()?;
        if width != *n_in {
            bail!("rows of {width} times a matrix of {n_in} columns");
        }
        let x = contiguous(x, layout)?;
        let matrix = BlockMatrix::new(*format, bytes, *n_in).map_err(candle_core::Error::wrap)?;
        let n_out = matrix.n_out();
        let mut out = vec![0.0; n_rows * n_out];
        let mut memory = compute.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let scratch = &mut memory.scratch;
        for (x, out) in x.chunks(ROWS * n_in).zip(out.chunks_mut(ROWS * n_out)) {
            scratch.reserve(matrix.scratch_bytes(x.len() / n_in, compute.pool.n_threads()));
            matrix
                .multiply(compute.cpu(), x, out, &Epilogue::default(), scratch)
                .map_err(candle_core::Error::wrap)?;
        }
        Ok((CpuStorage::F32(out), (n_rows, n_out).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(n: usize, salt: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + salt * 131) % 251) as f32 / 125.0 - 1.0).collect()
    }

    fn compute() -> Arc<Compute> {
        Arc::new(Compute::new(NonZeroUsize::new(2).unwrap()).unwrap())
    }

    fn half(form: HalfType, values: &[f32], n_in: usize, compute: &Arc<Compute>) -> Matrix {
        let mut bits = vec![0; values.len()];
        form.narrow(values, &mut bits);
        Matrix::Half(Arc::new(HalfRows { form, bits, n_in, compute: Arc::clone(compute) }))
    }

    /// The same numbers as f32.
    fn plain(form: HalfType, values: &[f32], n_in: usize) -> Matrix {
        let mut bits = vec![0; values.len()];
        form.narrow(values, &mut bits);
        let mut wide = vec![0.0; values.len()];
        kernels::widen(form, &bits, &mut wide);
        let shape = (values.len() / n_in, n_in);
        Matrix::Plain(Tensor::from_vec(wide, shape, &Device::Cpu).unwrap())
    }

    fn product_of(matrix: &Matrix, x: &[f32], n_in: usize) -> Vec<f32> {
        let x = Tensor::from_slice(x, (x.len() / n_in, n_in), &Device::Cpu).unwrap();
        matrix.product(&x).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn sixteen_bits_give_what_their_values_as_f32_give() {
        let compute = compute();
        // The last is more than a tile, and its rows more than are computed at once.
        let sizes = [(1, 5, 3), (2, 33, 64), (16, 70, 96), (17, 70, 96), (300, 600, 1030)];
        for form in [HalfType::F16, HalfType::Bf16] {
            for (n_rows, n_out, n_in) in sizes {
                let (x, w) = (floats(n_rows * n_in, 1), floats(n_out * n_in, 2));
                let found = product_of(&half(form, &w, n_in, &compute), &x, n_in);
                let expect = product_of(&plain(form, &w, n_in), &x, n_in);
                assert_eq!(found.len(), expect.len());
                for (found, expect) in found.iter().zip(&expect) {
                    let apart = (found - expect).abs();
                    assert!(apart < 1e-3, "{form:?} {n_rows} {n_out} {n_in}: {found}, {expect}");
                }
            }
        }
    }

    #[test]
    fn rows_of_a_table_are_its_values() {
        let compute = compute();
        let w = floats(20 * 8, 3);
        for form in [HalfType::F16, HalfType::Bf16] {
            let values =
                |m: &Matrix| -> Vec<Vec<f32>> { m.gather(&[19, 0, 7]).unwrap().to_vec2().unwrap() };
            let table = half(form, &w, 8, &compute);
            assert_eq!(values(&table), values(&plain(form, &w, 8)));
            assert!(table.gather(&[20]).unwrap_err().to_string().contains("row 20"));
        }
    }

    #[test]
    fn blocks_are_near_the_values_they_were_made_of() {
        let compute = compute();
        let (n_rows, n_out, n_in) = (300, 70, 64);
        let (x, w) = (floats(n_rows * n_in, 4), floats(n_out * n_in, 5));
        let mut bytes = vec![0; n_out * n_in / 32 * 34];
        BlockFormat::Q8Zero.encode(&compute.pool, &[Source::F32(&w)], n_in, &mut bytes).unwrap();
        let rows = BlockRows { format: BlockFormat::Q8Zero, bytes, n_in, compute };
        let found = product_of(&Matrix::Blocks(Arc::new(rows)), &x, n_in);
        let weight = Tensor::from_slice(&w, (n_out, n_in), &Device::Cpu).unwrap();
        let expect = product_of(&Matrix::Plain(weight), &x, n_in);
        let size = expect.iter().map(|x| x * x).sum::<f32>();
        let apart: f32 = found.iter().zip(&expect).map(|(a, b)| (a - b) * (a - b)).sum();
        assert!(apart / size < 1e-4, "{}", apart / size);
    }

    #[test]
    fn memory_comes_back_unless_it_is_shared() {
        let compute = compute();
        let matrix = half(HalfType::F16, &floats(12, 6), 4, &compute);
        let other = matrix.clone();
        assert!(matrix.into_buffer().is_none());
        let Some(Buffer::Halves(bits)) = other.into_buffer() else { panic!("no halves") };
        assert_eq!(bits.len(), 12);
    }
}
