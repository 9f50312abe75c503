//! Where keys and values are kept.

use half::{bf16, f16};

use super::Heads;
use crate::error::{KernelError, length};
use crate::matmul::drive::SHIFT;
use crate::memory::{Buffer, Pages};
use crate::pool::{Cpu, Load};

/// Tokens of a block.
pub const TOKENS_PER_BLOCK: usize = 16;

/// The numbers of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Blocks of 16 tokens.
    pub n_blocks: usize,
    /// Heads of keys and values.
    pub n_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl KvShape {
    /// Elements of one head's block of keys, or of values.
    pub(super) fn of_head(self) -> usize {
        self.head_dim * TOKENS_PER_BLOCK
    }
}

/// How elements of a cache are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvPrecision {
    /// binary32.
    F32,
    /// binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// 8 bits, and an f32 scale for each head of each token.
    Int8,
}

impl KvPrecision {
    /// Bytes of an element.
    pub fn element_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }

    /// Bytes beside the elements of one token's head of keys, or of values.
    pub fn scale_bytes(self) -> usize {
        match self {
            Self::Int8 => 4,
            Self::F32 | Self::F16 | Self::Bf16 => 0,
        }
    }

    /// Bytes of one head's block of keys, or of values: its elements, then its scales.
    fn head_bytes(self, shape: KvShape) -> usize {
        shape.of_head() * self.element_bytes() + TOKENS_PER_BLOCK * self.scale_bytes()
    }

    fn block_bytes(self, shape: KvShape) -> usize {
        self.head_bytes(shape) * shape.n_kv_heads
    }
}

/// Some rows of one sequence: a prompt's piece, a single token, an encoder's input.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Its first row in the batch.
    pub first_row: usize,
    /// Its rows.
    pub n_rows: usize,
    /// The position of its first row; the others follow.
    pub first_position: usize,
    /// Keys that the sequence has in the cache, from position 0 on.
    pub n_keys: usize,
    /// The cache's block for each 16 of them.
    pub blocks: &'a [u32],
}

impl Segment<'_> {
    pub(super) fn check(&self, shape: KvShape, n_rows: usize) -> Result<(), KernelError> {
        if self.first_row + self.n_rows > n_rows {
            let (found, wanted) = (self.first_row + self.n_rows, "inside the batch");
            return Err(KernelError::Value { what: "the end of a segment", found, wanted });
        }
        let n_blocks = self.n_keys.div_ceil(TOKENS_PER_BLOCK);
        if self.blocks.len() < n_blocks {
            length("a table of blocks", self.blocks.len(), n_blocks)?;
        }
        match self.blocks[..n_blocks].iter().find(|block| **block as usize >= shape.n_blocks) {
            None => Ok(()),
            Some(block) => {
                let (found, wanted) = (*block as usize, "a block of the cache");
                Err(KernelError::Value { what: "a block", found, wanted })
            }
        }
    }
}

/// The keys and values of one layer.
pub struct KvCache {
    shape: KvShape,
    precision: KvPrecision,
    keys: Buffer,
    values: Buffer,
}

impl std::fmt::Debug for KvCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KvCache {:?} {:?}", self.precision, self.shape)
    }
}

impl KvCache {
    /// An empty cache.
    ///
    /// # Errors
    /// There are no heads, or they have no elements.
    pub fn new(shape: KvShape, precision: KvPrecision) -> Result<Self, KernelError> {
        if shape.of_head() * shape.n_kv_heads == 0 {
            let wanted = "heads with elements";
            return Err(KernelError::Value { what: "the cache's block", found: 0, wanted });
        }
        let n_bytes = shape.n_blocks * precision.block_bytes(shape);
        let buffer = || Buffer::new(n_bytes, Pages::Small);
        Ok(Self { shape, precision, keys: buffer(), values: buffer() })
    }

    /// Its numbers.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// How its elements are held.
    pub fn precision(&self) -> KvPrecision {
        self.precision
    }

    /// Memory of a block's keys and values.
    pub fn bytes_per_block(shape: KvShape, precision: KvPrecision) -> usize {
        2 * precision.block_bytes(shape)
    }

    /// Writes the keys and values of the segments' rows to their positions. `n_keys` of a segment counts
    /// what is there afterwards, and its blocks are not those of another.
    ///
    /// # Errors
    /// Sizes don't fit each other, or a segment names a block that isn't there.
    pub fn append(
        &mut self,
        cpu: Cpu<'_>,
        segments: &[Segment<'_>],
        keys: Heads<'_>,
        values: Heads<'_>,
    ) -> Result<(), KernelError> {
        let shape = self.shape;
        let width = shape.n_kv_heads * shape.head_dim;
        keys.check("the keys' rows", width)?;
        values.check("the values' rows", width)?;
        length("the values' rows", values.n_rows(), keys.n_rows())?;
        for segment in segments {
            segment.check(shape, keys.n_rows())?;
            if segment.first_position + segment.n_rows > segment.n_keys {
                let (found, wanted) = (segment.n_keys, "at least the end of its own rows");
                return Err(KernelError::Value { what: "n_keys", found, wanted });
            }
        }
        let to = Target {
            shape,
            precision: self.precision,
            keys: self.keys.as_mut_ptr(),
            values: self.values.as_mut_ptr(),
        };
        let n_rows: usize = segments.iter().map(|segment| segment.n_rows).sum();
        cpu.split(shape.n_kv_heads, Load::of(n_rows * width), |kv_heads| {
            for segment in segments {
                for idx in 0..segment.n_rows {
                    for head in kv_heads.clone() {
                        let row = segment.first_row + idx;
                        let key = keys.head(row, head, shape.head_dim);
                        let value = values.head(row, head, shape.head_dim);
                        to.write(segment, (segment.first_position + idx, head), key, value);
                    }
                }
            }
        });
        Ok(())
    }

    /// Copies a block: what a sequence that shares it does before it writes.
    ///
    /// # Panics
    /// A block isn't there.
    pub fn copy_block(&mut self, from: u32, to: u32) {
        let n_bytes = self.precision.block_bytes(self.shape);
        let (from, to) = (from as usize, to as usize);
        assert!(from.max(to) < self.shape.n_blocks, "a block beyond the cache");
        for buffer in [&mut self.keys, &mut self.values] {
            let start = buffer.as_mut_ptr();
            // SAFETY: both blocks are inside the buffer.
            unsafe { start.add(from * n_bytes).copy_to(start.add(to * n_bytes), n_bytes) };
        }
    }

    /// Where one head's block of keys and of values begins.
    #[inline(always)]
    pub(super) fn block<T>(&self, block: u32, kv_head: usize) -> (*const T, *const T) {
        let head_bytes = self.precision.head_bytes(self.shape);
        let at = (block as usize * self.shape.n_kv_heads + kv_head) * head_bytes;
        debug_assert!((block as usize) < self.shape.n_blocks && kv_head < self.shape.n_kv_heads);
        let keys = self.keys.as_ptr().wrapping_add(at);
        (keys.cast(), self.values.as_ptr().wrapping_add(at).cast())
    }

    /// The scales of the 16 tokens of one head's block, which begins at `block`.
    #[inline(always)]
    pub(super) fn scales<T>(&self, block: *const T) -> *const f32 {
        block.wrapping_add(self.shape.of_head()).cast()
    }
}

/// Where rows are written, by threads that have different heads.
struct Target {
    shape: KvShape,
    precision: KvPrecision,
    keys: *mut u8,
    values: *mut u8,
}

// SAFETY: it is the cache, borrowed mutably, of which each thread writes other heads.
unsafe impl Sync for Target {}

impl Target {
    fn write(
        &self,
        segment: &Segment<'_>,
        (position, head): (usize, usize),
        key: &[f32],
        value: &[f32],
    ) {
        let (block, token) = (position / TOKENS_PER_BLOCK, position % TOKENS_PER_BLOCK);
        let block = segment.blocks[block] as usize;
        let start = (block * self.shape.n_kv_heads + head) * self.precision.head_bytes(self.shape);
        // SAFETY: the block was checked to be in the cache.
        let (keys, values) = unsafe { (self.keys.add(start), self.values.add(start)) };
        if self.precision == KvPrecision::Int8 {
            // SAFETY: the head is this thread's, and its block has these bytes and 16 scales.
            unsafe {
                let scales = [keys, values].map(|of| of.add(self.shape.of_head()).cast::<f32>());
                let (keys, values) = (keys.add(token), values.add(token * self.shape.head_dim));
                scales[0].add(token).write(write_bytes(key, keys.cast(), TOKENS_PER_BLOCK));
                scales[1].add(token).write(write_bytes(value, values.cast(), 1));
            }
            return;
        }
        for (idx, (key, value)) in key.iter().zip(value).enumerate() {
            let key_at = idx * TOKENS_PER_BLOCK + token;
            let value_at = token * self.shape.head_dim + idx;
            // SAFETY: the head is this thread's, and its block has these elements.
            unsafe {
                match self.precision {
                    KvPrecision::F32 => {
                        keys.cast::<f32>().add(key_at).write(*key);
                        values.cast::<f32>().add(value_at).write(*value);
                    }
                    KvPrecision::F16 => {
                        keys.cast::<f16>().add(key_at).write(f16::from_f32(*key));
                        values.cast::<f16>().add(value_at).write(f16::from_f32(*value));
                    }
                    KvPrecision::Bf16 => {
                        keys.cast::<bf16>().add(key_at).write(bf16::from_f32(*key));
                        values.cast::<bf16>().add(value_at).write(bf16::from_f32(*value));
                    }
                    KvPrecision::Int8 => {}
                }
            }
        }
    }
}

/// Writes bytes from -127 to 127, each `stride` after the one before; returns what one stands for, NaN
/// where an element is not finite.
///
/// # Safety
/// As many bytes can be written.
unsafe fn write_bytes(elements: &[f32], to: *mut i8, stride: usize) -> f32 {
    let (mut largest, mut probe) = (0.0_f32, 0.0_f32);
    for x in elements {
        (largest, probe) = (largest.max(x.abs()), probe + x * 0.0);
    }
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    for (idx, x) in elements.iter().enumerate() {
        // SAFETY: the caller vouches for the memory.
        unsafe { to.add(idx * stride).write((x * inverse + SHIFT).to_bits() as i8) };
    }
    largest / 127.0 + probe
}
