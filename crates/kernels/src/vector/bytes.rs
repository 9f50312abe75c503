//! 32 bytes and 8 sums: what blocks of a few bits an element are computed with.

/// Vectors of 256 bits, whatever else the instruction set has: blocks are that small.
pub(crate) trait Bytes: Copy {
    /// 32 bytes.
    type B: Copy;
    /// 8 f32.
    type Eight: Copy;

    /// A binary16 as f32.
    fn half(self, bits: u16) -> f32;
    /// The first 32 bytes of a slice.
    fn bytes(self, from: &[u8]) -> Self::B;
    /// The low halves of the first 16 bytes of a slice, then their high halves.
    fn nibbles(self, from: &[u8]) -> Self::B;
    /// Each byte's bits, up by `n <= 7`; the `n` lowest are of no use.
    fn up(self, a: Self::B, n: usize) -> Self::B;
    /// Each byte's bits, down by `n <= 7`; the `n` highest are of no use.
    fn down(self, a: Self::B, n: usize) -> Self::B;
    /// The bits that `mask` has, too.
    fn and(self, a: Self::B, mask: u8) -> Self::B;
    /// The bits of both.
    fn or(self, a: Self::B, b: Self::B) -> Self::B;
    /// Each byte less `x`.
    fn less(self, a: Self::B, x: u8) -> Self::B;
    /// Sums of four products of signed bytes each. `b` has no -128.
    fn dot(self, a: Self::B, b: Self::B) -> Self::Eight;
    /// All `x`.
    fn eight(self, x: f32) -> Self::Eight;
    /// Four times `a`, then four times `b`.
    fn halves(self, a: f32, b: f32) -> Self::Eight;
    /// The first 8 of a slice.
    fn load_eight(self, from: &[f32]) -> Self::Eight;
    /// `a * b + c`.
    fn fma_eight(self, a: Self::Eight, b: Self::Eight, c: Self::Eight) -> Self::Eight;
    /// The sum of all.
    fn sum_eight(self, a: Self::Eight) -> f32;
}

impl Bytes for super::Scalar {
    type B = [u8; 32];
    type Eight = [f32; 8];

    #[inline(always)]
    fn half(self, bits: u16) -> f32 {
        half::f16::from_bits(bits).to_f32()
    }

    #[inline(always)]
    fn bytes(self, from: &[u8]) -> [u8; 32] {
        std::array::from_fn(|idx| from[idx])
    }

    #[inline(always)]
    fn nibbles(self, from: &[u8]) -> [u8; 32] {
        std::array::from_fn(|idx| from[idx % 16] >> (idx / 16 * 4) & 0xf)
    }

    #[inline(always)]
    fn up(self, a: [u8; 32], n: usize) -> [u8; 32] {
        a.map(|byte| byte << n)
    }

    #[inline(always)]
    fn down(self, a: [u8; 32], n: usize) -> [u8; 32] {
        a.map(|byte| byte >> n)
    }

    #[inline(always)]
    fn and(self, a: [u8; 32], mask: u8) -> [u8; 32] {
        a.map(|byte| byte & mask)
    }

    #[inline(always)]
    fn or(self, a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
        std::array::from_fn(|idx| a[idx] | b[idx])
    }

    #[inline(always)]
    fn less(self, a: [u8; 32], x: u8) -> [u8; 32] {
        a.map(|byte| byte.wrapping_sub(x))
    }

    #[inline(always)]
    fn dot(self, a: [u8; 32], b: [u8; 32]) -> [f32; 8] {
        let product =
            |idx: usize| i32::from(a[idx].cast_signed()) * i32::from(b[idx].cast_signed());
        std::array::from_fn(|lane| (4 * lane..4 * lane + 4).map(product).sum::<i32>() as f32)
    }

    #[inline(always)]
    fn eight(self, x: f32) -> [f32; 8] {
        [x; 8]
    }

    #[inline(always)]
    fn halves(self, a: f32, b: f32) -> [f32; 8] {
        [a, a, a, a, b, b, b, b]
    }

    #[inline(always)]
    fn load_eight(self, from: &[f32]) -> [f32; 8] {
        std::array::from_fn(|idx| from[idx])
    }

    #[inline(always)]
    fn fma_eight(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|idx| a[idx] * b[idx] + c[idx])
    }

    #[inline(always)]
    fn sum_eight(self, a: [f32; 8]) -> f32 {
        let four: [f32; 4] = std::array::from_fn(|lane| a[lane] + a[lane + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }
}

/// What the tokens of x86 share; they differ in the product of bytes.
#[cfg(target_arch = "x86_64")]
macro_rules! bytes_of_256 {
    () => {
        type B = __m256i;
        type Eight = __m256;

        of_registers! {
            half(bits: u16) -> f32 =
                _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))));
            bytes(from: &[u8]) -> __m256i = _mm256_loadu_si256(from[..32].as_ptr().cast());
            nibbles(from: &[u8]) -> __m256i = {
                let packed = _mm_loadu_si128(from[..16].as_ptr().cast());
                let both = _mm256_set_m128i(_mm_srli_epi16::<4>(packed), packed);
                _mm256_and_si256(both, _mm256_set1_epi8(0xf))
            };
            up(a: __m256i, n: usize) -> __m256i =
                _mm256_sll_epi16(a, _mm_cvtsi32_si128(n as i32));
            down(a: __m256i, n: usize) -> __m256i =
                _mm256_srl_epi16(a, _mm_cvtsi32_si128(n as i32));
            and(a: __m256i, mask: u8) -> __m256i =
                _mm256_and_si256(a, _mm256_set1_epi8(mask.cast_signed()));
            or(a: __m256i, b: __m256i) -> __m256i = _mm256_or_si256(a, b);
            less(a: __m256i, x: u8) -> __m256i =
                _mm256_sub_epi8(a, _mm256_set1_epi8(x.cast_signed()));
            eight(x: f32) -> __m256 = _mm256_set1_ps(x);
            halves(a: f32, b: f32) -> __m256 = _mm256_set_m128(_mm_set1_ps(b), _mm_set1_ps(a));
            load_eight(from: &[f32]) -> __m256 = _mm256_loadu_ps(from[..8].as_ptr());
            fma_eight(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
            sum_eight(a: __m256) -> f32 = {
                let (low, high) = (_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let four = _mm_add_ps(low, high);
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
            };
        }
    };
}

/// Signed times signed by the instructions for unsigned times signed: the sign goes over to `b`. Two
/// products add up to 32,512 at most, within 16 bits.
#[cfg(target_arch = "x86_64")]
macro_rules! dot_of_pairs {
    () => {
        of_registers! {
            dot(a: __m256i, b: __m256i) -> __m256 = {
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a));
                _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
            };
        }
    };
}

#[cfg(target_arch = "x86_64")]
pub(super) use {bytes_of_256, dot_of_pairs};
