//! Vectors of 512 bits: AVX-512 F, BW, VL and DQ; and with the dot product of bytes, VNNI.

use std::arch::x86_64::*;

use super::avx2::{of_memory, of_registers};
use super::bytes::{Bytes, bytes_of_256};
use super::{Arithmetic, Simd, pair};

/// Exists only inside [`run`].
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

/// Exists only inside [`run_vnni`].
#[derive(Clone, Copy)]
pub(crate) struct Avx512Vnni(());

/// Runs `task` with this file's vectors.
///
/// # Safety
/// The machine has AVX-512 F, BW, VL and DQ, and what came before.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
pub(crate) unsafe fn run<T: Arithmetic>(task: T) -> T::Output {
    task.run(Avx512(()))
}

/// Runs `task` with this file's vectors and VNNI.
///
/// # Safety
/// The machine has what [`run`] asks for, and AVX-512 VNNI.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(crate) unsafe fn run_vnni<T: Arithmetic>(task: T) -> T::Output {
    task.run(Avx512Vnni(()))
}

/// The first `n` of 16 lanes.
#[inline(always)]
fn mask(n: usize) -> __mmask16 {
    debug_assert!(n <= 16);
    ((1_u32 << n) - 1) as __mmask16
}

/// What both have.
macro_rules! floats {
    () => {
        const LANES: usize = 16;
        const MAX_ROWS: usize = 14;
        const MAX_BYTE_ROWS: usize = 12;
        const BLOCKS: usize = 12;

        type F = __m512;
        type I = __m512i;
        type Packed = __m512i;

        of_registers! {
            splat(x: f32) -> __m512 = _mm512_set1_ps(x);
            add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
            sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
            mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
            div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
            fma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
            max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
            min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
            round(a: __m512) -> __m512 =
                _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
            power_of_two(a: __m512) -> __m512 = {
                let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
                _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
            };
            abs(a: __m512) -> __m512 = _mm512_andnot_ps(_mm512_set1_ps(-0.0), a);
            copy_sign(a: __m512, b: __m512) -> __m512 = {
                let sign = _mm512_set1_ps(-0.0);
                _mm512_or_ps(_mm512_andnot_ps(sign, a), _mm512_and_ps(sign, b))
            };
            select_greater(a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 =
                _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), y, x);
            sum(a: __m512) -> f32 = _mm512_reduce_add_ps(a);
            largest(a: __m512) -> f32 = _mm512_reduce_max_ps(a);
            splat_int(x: i32) -> __m512i = _mm512_set1_epi32(x);
            to_float(a: __m512i) -> __m512 = _mm512_cvtepi32_ps(a);
            prefetch(at: *const u8) -> () = _mm_prefetch::<_MM_HINT_T0>(at.cast());
        }

        of_memory! {
            load(from: *const f32) -> __m512 = _mm512_loadu_ps(from);
            store(to: *mut f32, a: __m512) -> () = _mm512_storeu_ps(to, a);
            load_first(from: *const f32, n: usize) -> __m512 =
                _mm512_maskz_loadu_ps(mask(n), from);
            store_first(to: *mut f32, a: __m512, n: usize) -> () =
                _mm512_mask_storeu_ps(to, mask(n), a);
            load_f16(from: *const u16) -> __m512 =
                _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()));
            load_bf16(from: *const u16) -> __m512 = {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
            };
            load_i8(from: *const i8) -> __m512 =
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())));
        }
    };
}

impl Simd for Avx512 {
    const GROUP: usize = 2;
    const OFFSET: i32 = 0;

    floats!();

    of_registers! {
        join(sum: __m512i, bytes: __m512i, group: u32) -> __m512i =
            _mm512_add_epi32(sum, _mm512_madd_epi16(bytes, _mm512_set1_epi32(group.cast_signed())));
    }

    of_memory! {
        load_bytes(from: *const i8) -> __m512i =
            _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast()));
    }

    #[inline(always)]
    fn group(self, quantised: &[i8]) -> u32 {
        pair(quantised)
    }
}

impl Simd for Avx512Vnni {
    const GROUP: usize = 4;
    const OFFSET: i32 = 128;

    floats!();

    of_registers! {
        join(sum: __m512i, bytes: __m512i, group: u32) -> __m512i =
            _mm512_dpbusd_epi32(sum, bytes, _mm512_set1_epi32(group.cast_signed()));
    }

    of_memory! {
        load_bytes(from: *const i8) -> __m512i = _mm512_loadu_si512(from.cast());
    }

    // The instruction multiplies unsigned with signed bytes: weights are stored with 128 more, and sums
    // begin with what that adds to them taken away.
    #[inline(always)]
    fn group(self, quantised: &[i8]) -> u32 {
        u32::from_le_bytes([0, 1, 2, 3].map(|idx: usize| quantised[idx].cast_unsigned()))
    }
}

impl Bytes for Avx512 {
    bytes_of_256!();
}

impl Bytes for Avx512Vnni {
    bytes_of_256!();
}
