//! How one step of a product works for each form of weights.

use crate::vector::Simd;

/// A form of weights: what is stored, what it becomes in registers, and how it joins a sum.
pub(super) trait Product<S: Simd> {
    /// An element of a panel.
    type Stored;
    /// What a row contributes to one step, as packed.
    type Element: Copy;
    /// Sums of `LANES` columns, 32 bits each.
    type Sum: Copy;
    /// Weights of `LANES` columns.
    type Weights: Copy;
    /// Stored elements of one column in one step.
    const GROUP: usize;

    fn zero(s: S) -> Self::Sum;

    /// # Safety
    /// `LANES` sums can be read.
    unsafe fn load(s: S, from: *const u32) -> Self::Sum;

    /// # Safety
    /// `LANES` sums can be written.
    unsafe fn store(s: S, to: *mut u32, sum: Self::Sum);

    /// # Safety
    /// `LANES * GROUP` stored elements can be read.
    unsafe fn weights(s: S, from: *const Self::Stored) -> Self::Weights;

    fn join(s: S, sum: Self::Sum, weights: Self::Weights, element: Self::Element) -> Self::Sum;
}

/// Forms whose sums are f32 differ in how weights are read.
macro_rules! float_forms {
    ($($(#[$doc:meta])* $name:ident: $stored:ty, $load:ident;)*) => {
        $($(#[$doc])*
        pub(super) struct $name;

        impl<S: Simd> Product<S> for $name {
            type Stored = $stored;
            type Element = f32;
            type Sum = S::F;
            type Weights = S::F;
            const GROUP: usize = 1;

            #[inline(always)]
            fn zero(s: S) -> S::F {
                s.splat(0.0)
            }

            #[inline(always)]
            unsafe fn load(s: S, from: *const u32) -> S::F {
                // SAFETY: the caller vouches for the memory.
                unsafe { s.load(from.cast()) }
            }

            #[inline(always)]
            unsafe fn store(s: S, to: *mut u32, sum: S::F) {
                // SAFETY: the caller vouches for the memory.
                unsafe { s.store(to.cast(), sum) }
            }

            #[inline(always)]
            unsafe fn weights(s: S, from: *const $stored) -> S::F {
                // SAFETY: the caller vouches for the memory.
                unsafe { s.$load(from) }
            }

            #[inline(always)]
            fn join(s: S, sum: S::F, weights: S::F, element: f32) -> S::F {
                s.fma(s.splat(element), weights, sum)
            }
        })*
    };
}

float_forms! {
    /// f32.
    Float: f32, load;
    /// binary16.
    Half: u16, load_f16;
    /// bfloat16.
    Brain: u16, load_bf16;
}

/// Signed bytes.
pub(super) struct Byte;

impl<S: Simd> Product<S> for Byte {
    type Stored = i8;
    type Element = u32;
    type Sum = S::I;
    type Weights = S::Packed;
    const GROUP: usize = S::GROUP;

    #[inline(always)]
    fn zero(s: S) -> S::I {
        s.zero_int()
    }

    #[inline(always)]
    unsafe fn load(s: S, from: *const u32) -> S::I {
        // SAFETY: the caller vouches for the memory.
        unsafe { s.load_int(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(s: S, to: *mut u32, sum: S::I) {
        // SAFETY: the caller vouches for the memory.
        unsafe { s.store_int(to.cast(), sum) }
    }

    #[inline(always)]
    unsafe fn weights(s: S, from: *const i8) -> S::Packed {
        // SAFETY: the caller vouches for the memory.
        unsafe { s.load_bytes(from) }
    }

    #[inline(always)]
    fn join(s: S, sum: S::I, weights: S::Packed, element: u32) -> S::I {
        s.join(sum, weights, element)
    }
}
