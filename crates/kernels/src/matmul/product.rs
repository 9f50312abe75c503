//! How one step of a product works for each form of weights.

use super::SHARED;
use crate::vector::Simd;

/// What a group of a row's activations share.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Scale {
    /// What a byte stands for.
    pub(super) scale: f32,
    /// Where the group's sums begin: weights that are stored unsigned add to each.
    pub(super) start: i32,
}

/// A form of weights: what is stored, what it becomes in registers, and how it joins a sum.
pub(super) trait Product<S: Simd> {
    /// An element of a panel.
    type Stored;
    /// What a row contributes to one step, as packed.
    type Element: Copy;
    /// Sums of `LANES` columns over a group of steps.
    type Partial: Copy;
    /// Weights of `LANES` columns.
    type Weights: Copy;
    /// Stored elements of one column in one step.
    const GROUP: usize;
    /// Steps of a group: what they sum up to joins the sums as f32.
    const STEPS: usize;

    fn zero(s: S) -> Self::Partial;

    /// Where a group's sums begin, for a row whose group has the scale at `scale`.
    ///
    /// # Safety
    /// The scale can be read, if the form has groups.
    unsafe fn begin(s: S, sum: S::F, scale: *const Scale) -> Self::Partial;

    /// The sums with a group's.
    ///
    /// # Safety
    /// As for `begin`.
    unsafe fn end(s: S, partial: Self::Partial, sum: S::F, scale: *const Scale) -> S::F;

    /// # Safety
    /// `LANES * GROUP` stored elements can be read.
    unsafe fn weights(s: S, from: *const Self::Stored) -> Self::Weights;

    fn join(
        s: S,
        partial: Self::Partial,
        weights: Self::Weights,
        element: Self::Element,
    ) -> Self::Partial;
}

/// Forms whose activations are f32 differ in how weights are read.
macro_rules! float_forms {
    ($($(#[$doc:meta])* $name:ident: $stored:ty, $load:ident;)*) => {
        $($(#[$doc])*
        pub(super) struct $name;

        impl<S: Simd> Product<S> for $name {
            type Stored = $stored;
            type Element = f32;
            type Partial = S::F;
            type Weights = S::F;
            const GROUP: usize = 1;
            const STEPS: usize = usize::MAX;

            #[inline(always)]
            fn zero(s: S) -> S::F {
                s.splat(0.0)
            }

            #[inline(always)]
            unsafe fn begin(_: S, sum: S::F, _: *const Scale) -> S::F {
                sum
            }

            #[inline(always)]
            unsafe fn end(_: S, partial: S::F, _: S::F, _: *const Scale) -> S::F {
                partial
            }

            #[inline(always)]
            unsafe fn weights(s: S, from: *const $stored) -> S::F {
                // SAFETY: the caller vouches for the memory.
                unsafe { s.$load(from) }
            }

            #[inline(always)]
            fn join(s: S, partial: S::F, weights: S::F, element: f32) -> S::F {
                s.fma(s.splat(element), weights, partial)
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
    /// Signed bytes, multiplied as f32.
    WeightByte: i8, load_i8;
}

/// Signed bytes times signed bytes.
pub(super) struct Byte;

impl<S: Simd> Product<S> for Byte {
    type Stored = i8;
    type Element = u32;
    type Partial = S::I;
    type Weights = S::Packed;
    const GROUP: usize = S::GROUP;
    const STEPS: usize = SHARED / S::GROUP;

    #[inline(always)]
    fn zero(s: S) -> S::I {
        s.splat_int(0)
    }

    #[inline(always)]
    unsafe fn begin(s: S, _: S::F, scale: *const Scale) -> S::I {
        if S::OFFSET == 0 {
            return s.splat_int(0);
        }
        // SAFETY: the caller vouches for the scale.
        s.splat_int(unsafe { (*scale).start })
    }

    #[inline(always)]
    unsafe fn end(s: S, partial: S::I, sum: S::F, scale: *const Scale) -> S::F {
        // SAFETY: the caller vouches for the scale.
        let scale = unsafe { (*scale).scale };
        s.fma(s.to_float(partial), s.splat(scale), sum)
    }

    #[inline(always)]
    unsafe fn weights(s: S, from: *const i8) -> S::Packed {
        // SAFETY: the caller vouches for the memory.
        unsafe { s.load_bytes(from) }
    }

    #[inline(always)]
    fn join(s: S, partial: S::I, weights: S::Packed, element: u32) -> S::I {
        s.join(partial, weights, element)
    }
}
