//! Vectors of f32 (and of the integers beside them), so that an algorithm is written once.
//!
//! An algorithm is a value that implements [`Arithmetic`]; `Isa::run` compiles its `run` once for each
//! instruction set, with the features that its vectors need. A token such as `Avx2` exists only there,
//! which is why arithmetic on vectors is safe to call; only pointers are not. What an algorithm calls
//! on the way is `#[inline(always)]`, since a function that stays apart has no such features.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod bytes;
pub(crate) mod math;
mod scalar;

pub(crate) use scalar::Scalar;

/// Work that is written once for all vectors.
pub(crate) trait Arithmetic {
    /// What comes of it.
    type Output;

    /// Does the work; `#[inline(always)]` in every implementation.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// A token for one instruction set, and what its vectors do.
///
/// Where an operand is NaN, `max` and `min` give their second argument, as x86 does.
pub(crate) trait Simd: bytes::Bytes {
    /// f32 lanes in a vector.
    const LANES: usize;
    /// Rows of a product that are summed at once, two vectors each, without running out of registers.
    const MAX_ROWS: usize;
    /// The same for products of bytes, which may need a register more for each product.
    const MAX_BYTE_ROWS: usize;
    /// Blocks of `MAX_ROWS` rows whose activations stay in the second-level cache.
    const BLOCKS: usize;
    /// Bytes of a column that join its sum in one step.
    const GROUP: usize;
    /// What is added to weights of 8 bits to make them unsigned.
    const OFFSET: i32;

    /// `LANES` f32.
    type F: Copy;
    /// `LANES` i32.
    type I: Copy;
    /// `LANES` columns of `GROUP` bytes.
    type Packed: Copy;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once where the machine can.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger; `b` where either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; `b` where either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// The nearest integer, ties to even; below 2^31 in size.
    fn round(self, a: Self::F) -> Self::F;
    /// 2 to the power of integers from -126 to 127.
    fn power_of_two(self, a: Self::F) -> Self::F;
    /// Without its sign.
    fn abs(self, a: Self::F) -> Self::F;
    /// The size of `a` with the sign of `b`.
    fn copy_sign(self, a: Self::F, b: Self::F) -> Self::F;
    /// `x` in lanes where `a > b`, `y` elsewhere.
    fn select_greater(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    /// The sum of the lanes, in an order that depends on the instruction set alone.
    fn sum(self, a: Self::F) -> f32;
    /// The largest lane.
    fn largest(self, a: Self::F) -> f32;

    /// `LANES` f32 from memory.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn load(self, from: *const f32) -> Self::F;
    /// To memory.
    ///
    /// # Safety
    /// `LANES` f32 can be written.
    unsafe fn store(self, to: *mut f32, a: Self::F);
    /// The first `n <= LANES` from memory, then zeros.
    ///
    /// # Safety
    /// `n` f32 can be read.
    unsafe fn load_first(self, from: *const f32, n: usize) -> Self::F;
    /// The first `n <= LANES` to memory.
    ///
    /// # Safety
    /// `n` f32 can be written.
    unsafe fn store_first(self, to: *mut f32, a: Self::F, n: usize);
    /// `LANES` binary16 from memory.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn load_f16(self, from: *const u16) -> Self::F;
    /// `LANES` bfloat16 from memory.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn load_bf16(self, from: *const u16) -> Self::F;

    /// `LANES` signed bytes from memory.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn load_i8(self, from: *const i8) -> Self::F;

    /// All lanes `x`.
    fn splat_int(self, x: i32) -> Self::I;
    /// As f32.
    fn to_float(self, a: Self::I) -> Self::F;
    /// `LANES` columns of `GROUP` bytes.
    ///
    /// # Safety
    /// `LANES * GROUP` bytes can be read.
    unsafe fn load_bytes(self, from: *const i8) -> Self::Packed;
    /// Activations of one row for one step, as `join` wants them.
    fn group(self, quantised: &[i8]) -> u32;
    /// Adds to each lane the product of its column's bytes with `group`'s activations.
    fn join(self, sum: Self::I, bytes: Self::Packed, group: u32) -> Self::I;
    /// Asks for memory that is read soon.
    fn prefetch(self, at: *const u8);
}

/// A slice no longer than a vector, then zeros.
#[inline(always)]
pub(crate) fn load<S: Simd>(s: S, from: &[f32]) -> S::F {
    if from.len() == S::LANES {
        // SAFETY: the slice has as many.
        unsafe { s.load(from.as_ptr()) }
    } else {
        // SAFETY: as above.
        unsafe { s.load_first(from.as_ptr(), from.len().min(S::LANES)) }
    }
}

/// To a slice no longer than a vector.
#[inline(always)]
pub(crate) fn store<S: Simd>(s: S, to: &mut [f32], value: S::F) {
    if to.len() == S::LANES {
        // SAFETY: the slice has as many.
        unsafe { s.store(to.as_mut_ptr(), value) };
    } else {
        // SAFETY: as above.
        unsafe { s.store_first(to.as_mut_ptr(), value, to.len().min(S::LANES)) };
    }
}

/// Two i16 in 32 bits: a group of the instruction sets that multiply pairs.
#[inline(always)]
fn pair(quantised: &[i8]) -> u32 {
    let first = i16::from(quantised[0]) as u16;
    let second = i16::from(quantised[1]) as u16;
    u32::from(first) | u32::from(second) << 16
}
