//! Vectors of 256 bits: AVX2, FMA and F16C.

use std::arch::x86_64::*;

use super::bytes::{Bytes, bytes_of_256};
use super::{Arithmetic, Simd, pair};

/// Exists only inside [`run`].
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

/// Runs `task` with this file's vectors.
///
/// # Safety
/// The machine has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn run<T: Arithmetic>(task: T) -> T::Output {
    task.run(Avx2(()))
}

/// Functions of registers alone.
macro_rules! of_registers {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $out:ty = $body:expr;)*) => {
        $(#[inline(always)]
        fn $name(self, $($arg: $ty),*) -> $out {
            // SAFETY: a value of this type exists only inside `run`, where the features are there.
            unsafe { $body }
        })*
    };
}

/// Functions that read or write where their caller says.
macro_rules! of_memory {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $out:ty = $body:expr;)*) => {
        $(#[inline(always)]
        unsafe fn $name(self, $($arg: $ty),*) -> $out {
            // SAFETY: a value of this type exists only inside `run`, and the caller vouches for the
            // memory.
            unsafe { $body }
        })*
    };
}

pub(super) use {of_memory, of_registers};

/// Eight lanes of ones from `MASK[8 - n..]` are the mask of the first `n`.
static MASK: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

/// Where the mask of the first `n` lanes lies.
#[inline(always)]
fn mask(n: usize) -> *const __m256i {
    debug_assert!(n <= 8);
    MASK[8 - n.min(8)..].as_ptr().cast()
}

/// Both halves of a vector; only for use inside [`run`].
#[inline(always)]
unsafe fn halves(a: __m256) -> (__m128, __m128) {
    // SAFETY: the caller is inside `run`, where the features are there.
    unsafe { (_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a)) }
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    const MAX_ROWS: usize = 6;
    const MAX_BYTE_ROWS: usize = 6;
    const BLOCKS: usize = 24;
    const GROUP: usize = 2;
    const OFFSET: i32 = 0;

    type F = __m256;
    type I = __m256i;
    type Packed = __m256i;

    of_registers! {
        splat(x: f32) -> __m256 = _mm256_set1_ps(x);
        add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
        sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
        mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        div(a: __m256, b: __m256) -> __m256 = _mm256_div_ps(a, b);
        fma(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
        max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
        min(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
        round(a: __m256) -> __m256 =
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
        power_of_two(a: __m256) -> __m256 = {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
        };
        abs(a: __m256) -> __m256 = _mm256_andnot_ps(_mm256_set1_ps(-0.0), a);
        copy_sign(a: __m256, b: __m256) -> __m256 = _mm256_or_ps(
            _mm256_andnot_ps(_mm256_set1_ps(-0.0), a),
            _mm256_and_ps(_mm256_set1_ps(-0.0), b),
        );
        select_greater(a: __m256, b: __m256, x: __m256, y: __m256) -> __m256 =
            _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_GT_OQ>(a, b));
        sum(a: __m256) -> f32 = {
            let (low, high) = halves(a);
            let four = _mm_add_ps(low, high);
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        };
        largest(a: __m256) -> f32 = {
            let (low, high) = halves(a);
            let four = _mm_max_ps(low, high);
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        };
        splat_int(x: i32) -> __m256i = _mm256_set1_epi32(x);
        to_float(a: __m256i) -> __m256 = _mm256_cvtepi32_ps(a);
        join(sum: __m256i, bytes: __m256i, group: u32) -> __m256i =
            _mm256_add_epi32(sum, _mm256_madd_epi16(bytes, _mm256_set1_epi32(group.cast_signed())));
        prefetch(at: *const u8) -> () = _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }

    of_memory! {
        load(from: *const f32) -> __m256 = _mm256_loadu_ps(from);
        store(to: *mut f32, a: __m256) -> () = _mm256_storeu_ps(to, a);
        load_first(from: *const f32, n: usize) -> __m256 = _mm256_maskload_ps(from, _mm256_loadu_si256(mask(n)));
        store_first(to: *mut f32, a: __m256, n: usize) -> () =
            _mm256_maskstore_ps(to, _mm256_loadu_si256(mask(n)), a);
        load_f16(from: *const u16) -> __m256 = _mm256_cvtph_ps(_mm_loadu_si128(from.cast()));
        load_bf16(from: *const u16) -> __m256 = {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        };
        load_i8(from: *const i8) -> __m256 =
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())));
        load_bytes(from: *const i8) -> __m256i =
            _mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast()));
    }

    #[inline(always)]
    fn group(self, quantised: &[i8]) -> u32 {
        pair(quantised)
    }
}

impl Bytes for Avx2 {
    bytes_of_256!();
}
