//! Vectors in plain Rust, which the compiler makes of what the target has.

use half::{bf16, f16};

use super::{Simd, pair};

/// Every machine has these.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

const LANES: usize = 8;

type F = [f32; LANES];

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> F {
    std::array::from_fn(f)
}

impl Simd for Scalar {
    const LANES: usize = LANES;
    const MAX_ROWS: usize = 2;
    const MAX_BYTE_ROWS: usize = 2;
    const BLOCKS: usize = 32;
    const GROUP: usize = 2;
    const OFFSET: i32 = 0;

    type F = F;
    type I = [i32; LANES];
    type Packed = [i8; 2 * LANES];

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; LANES]
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        each(|lane| a[lane] + b[lane])
    }

    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        each(|lane| a[lane] - b[lane])
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        each(|lane| a[lane] * b[lane])
    }

    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        each(|lane| a[lane] / b[lane])
    }

    // Without the instruction, a product that is rounded once is a call of hundreds of cycles.
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        each(|lane| a[lane] * b[lane] + c[lane])
    }

    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        each(|lane| if a[lane] > b[lane] { a[lane] } else { b[lane] })
    }

    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        each(|lane| if a[lane] < b[lane] { a[lane] } else { b[lane] })
    }

    #[inline(always)]
    fn round(self, a: F) -> F {
        each(|lane| a[lane].round_ties_even())
    }

    #[inline(always)]
    fn power_of_two(self, a: F) -> F {
        each(|lane| f32::from_bits(((a[lane] as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    fn abs(self, a: F) -> F {
        each(|lane| a[lane].abs())
    }

    #[inline(always)]
    fn copy_sign(self, a: F, b: F) -> F {
        each(|lane| a[lane].copysign(b[lane]))
    }

    #[inline(always)]
    fn select_greater(self, a: F, b: F, x: F, y: F) -> F {
        each(|lane| if a[lane] > b[lane] { x[lane] } else { y[lane] })
    }

    #[inline(always)]
    fn sum(self, a: F) -> f32 {
        let four: [f32; 4] = std::array::from_fn(|lane| a[lane] + a[lane + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }

    #[inline(always)]
    fn largest(self, a: F) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> F {
        // SAFETY: the caller says that they can be read.
        unsafe { from.cast::<F>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, a: F) {
        // SAFETY: the caller says that they can be written.
        unsafe { to.cast::<F>().write_unaligned(a) }
    }

    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, n: usize) -> F {
        let mut all = [0.0; LANES];
        for (lane, value) in all.iter_mut().enumerate().take(n) {
            // SAFETY: the caller says that the first `n` can be read.
            *value = unsafe { from.add(lane).read() };
        }
        all
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, a: F, n: usize) {
        for (lane, value) in a.into_iter().enumerate().take(n) {
            // SAFETY: the caller says that the first `n` can be written.
            unsafe { to.add(lane).write(value) };
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> F {
        // SAFETY: the caller says that they can be read.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        each(|lane| f16::from_bits(bits[lane]).to_f32())
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> F {
        // SAFETY: the caller says that they can be read.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        each(|lane| bf16::from_bits(bits[lane]).to_f32())
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> F {
        // SAFETY: the caller says that they can be read.
        let bytes = unsafe { from.cast::<[i8; LANES]>().read() };
        each(|lane| f32::from(bytes[lane]))
    }

    #[inline(always)]
    fn splat_int(self, x: i32) -> Self::I {
        [x; LANES]
    }

    #[inline(always)]
    fn to_float(self, a: Self::I) -> F {
        each(|lane| a[lane] as f32)
    }

    #[inline(always)]
    unsafe fn load_bytes(self, from: *const i8) -> Self::Packed {
        // SAFETY: the caller says that they can be read.
        unsafe { from.cast::<Self::Packed>().read_unaligned() }
    }

    #[inline(always)]
    fn group(self, quantised: &[i8]) -> u32 {
        pair(quantised)
    }

    #[inline(always)]
    fn join(self, sum: Self::I, bytes: Self::Packed, group: u32) -> Self::I {
        let (first, second) = (i32::from(group as i16), i32::from((group >> 16) as i16));
        std::array::from_fn(|lane| {
            sum[lane] + first * i32::from(bytes[2 * lane]) + second * i32::from(bytes[2 * lane + 1])
        })
    }

    #[inline(always)]
    fn prefetch(self, _at: *const u8) {}
}
