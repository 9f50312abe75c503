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
    /// 16 bytes, twice.
    fn twice(self, from: u128) -> Self::B;
    /// The low halves of the first 16 bytes of a slice, then their high halves.
    fn nibbles(self, from: &[u8]) -> Self::B;
    /// A byte for each bit, the lowest first: all ones where it is set.
    fn spread(self, bits: u32) -> Self::B;
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
    /// In each half of 16 bytes those at `places`, below 16; 0 where it has its highest bit.
    fn pick(self, a: Self::B, places: &[u8; 32]) -> Self::B;
    /// Sums of four products of signed bytes each. `b` has no -128.
    fn dot(self, a: Self::B, b: Self::B) -> Self::Eight;
    /// Sums of four products of unsigned with signed bytes, the first and the last two times one of
    /// the i16 in `scales` each. Two products add up to 32,767 at most.
    fn dot_scaled(self, a: Self::B, b: Self::B, scales: Self::B) -> Self::Eight;
    /// The 32 nearest integers to `x * inverse`, which are within a byte.
    fn round_bytes(self, from: &[f32; 32], inverse: f32) -> Self::B;
    /// All `x`.
    fn eight(self, x: f32) -> Self::Eight;
    /// 8 signed bytes.
    fn eight_of(self, bytes: u64) -> Self::Eight;
    /// `a * b`.
    fn mul_eight(self, a: Self::Eight, b: Self::Eight) -> Self::Eight;
    /// `a * b + c`.
    fn fma_eight(self, a: Self::Eight, b: Self::Eight, c: Self::Eight) -> Self::Eight;
    /// The sum of all.
    fn sum_eight(self, a: Self::Eight) -> f32;
    /// The sums of the first and the last four.
    fn sum_fours(self, a: Self::Eight) -> [f32; 2];

    /// 32 bytes from memory.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn load_bytes_32(self, from: *const u8) -> Self::B;
    /// To memory.
    ///
    /// # Safety
    /// 32 bytes can be written.
    unsafe fn store_bytes_32(self, to: *mut u8, a: Self::B);
    /// 8 f32 from memory.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn load_eight(self, from: *const f32) -> Self::Eight;
    /// To memory.
    ///
    /// # Safety
    /// 8 f32 can be written.
    unsafe fn store_eight(self, to: *mut f32, a: Self::Eight);
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
    fn twice(self, from: u128) -> [u8; 32] {
        let bytes = from.to_le_bytes();
        std::array::from_fn(|idx| bytes[idx % 16])
    }

    #[inline(always)]
    fn nibbles(self, from: &[u8]) -> [u8; 32] {
        std::array::from_fn(|idx| from[idx % 16] >> (idx / 16 * 4) & 0xf)
    }

    #[inline(always)]
    fn spread(self, bits: u32) -> [u8; 32] {
        std::array::from_fn(|idx| if bits >> idx & 1 == 1 { 0xff } else { 0 })
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
    fn pick(self, a: [u8; 32], places: &[u8; 32]) -> [u8; 32] {
        std::array::from_fn(|idx| match places[idx] {
            place if place >= 0x80 => 0,
            place => a[idx & 16 | usize::from(place & 15)],
        })
    }

    #[inline(always)]
    fn dot(self, a: [u8; 32], b: [u8; 32]) -> [f32; 8] {
        let product =
            |idx: usize| i32::from(a[idx].cast_signed()) * i32::from(b[idx].cast_signed());
        std::array::from_fn(|lane| (4 * lane..4 * lane + 4).map(product).sum::<i32>() as f32)
    }

    #[inline(always)]
    fn dot_scaled(self, a: [u8; 32], b: [u8; 32], scales: [u8; 32]) -> [f32; 8] {
        let product = |idx: usize| i32::from(a[idx]) * i32::from(b[idx].cast_signed());
        let pair = |idx: usize| {
            let scale = i16::from_le_bytes([scales[2 * idx], scales[2 * idx + 1]]);
            (product(2 * idx) + product(2 * idx + 1)) * i32::from(scale)
        };
        std::array::from_fn(|lane| (pair(2 * lane) + pair(2 * lane + 1)) as f32)
    }

    #[inline(always)]
    fn round_bytes(self, from: &[f32; 32], inverse: f32) -> [u8; 32] {
        // Added to this, a number of up to 22 bits is rounded to an integer in the lowest bits.
        const SHIFT: f32 = 12_582_912.0;
        from.map(|x| (x * inverse + SHIFT).to_bits() as u8)
    }

    #[inline(always)]
    fn eight(self, x: f32) -> [f32; 8] {
        [x; 8]
    }

    #[inline(always)]
    fn eight_of(self, bytes: u64) -> [f32; 8] {
        bytes.to_le_bytes().map(|byte| f32::from(byte.cast_signed()))
    }

    #[inline(always)]
    fn mul_eight(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|idx| a[idx] * b[idx])
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

    #[inline(always)]
    fn sum_fours(self, a: [f32; 8]) -> [f32; 2] {
        [0, 4].map(|at| (a[at] + a[at + 1]) + (a[at + 2] + a[at + 3]))
    }

    #[inline(always)]
    unsafe fn load_bytes_32(self, from: *const u8) -> [u8; 32] {
        // SAFETY: the caller says that they can be read.
        unsafe { from.cast::<[u8; 32]>().read() }
    }

    #[inline(always)]
    unsafe fn store_bytes_32(self, to: *mut u8, a: [u8; 32]) {
        // SAFETY: the caller says that they can be written.
        unsafe { to.cast::<[u8; 32]>().write(a) }
    }

    #[inline(always)]
    unsafe fn load_eight(self, from: *const f32) -> [f32; 8] {
        // SAFETY: the caller says that they can be read.
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_eight(self, to: *mut f32, a: [f32; 8]) {
        // SAFETY: the caller says that they can be written.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(a) }
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
            twice(from: u128) -> __m256i = {
                let (low, high) = (from as u64, (from >> 64) as u64);
                _mm256_broadcastsi128_si256(_mm_set_epi64x(high.cast_signed(), low.cast_signed()))
            };
            nibbles(from: &[u8]) -> __m256i = {
                let packed = _mm_loadu_si128(from[..16].as_ptr().cast());
                let both = _mm256_set_m128i(_mm_srli_epi16::<4>(packed), packed);
                _mm256_and_si256(both, _mm256_set1_epi8(0xf))
            };
            spread(bits: u32) -> __m256i = {
                // Each byte to the eight places of its bits, where all others are set.
                let places = _mm256_setr_epi64x(
                    0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303,
                );
                let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits.cast_signed()), places);
                let others = _mm256_set1_epi64x(0x7fbf_dfef_f7fb_fdfe);
                _mm256_cmpeq_epi8(_mm256_or_si256(bytes, others), _mm256_set1_epi8(-1))
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
            pick(a: __m256i, places: &[u8; 32]) -> __m256i =
                _mm256_shuffle_epi8(a, _mm256_loadu_si256(places.as_ptr().cast()));
            dot_scaled(a: __m256i, b: __m256i, scales: __m256i) -> __m256 =
                _mm256_cvtepi32_ps(_mm256_madd_epi16(_mm256_maddubs_epi16(a, b), scales));
            round_bytes(from: &[f32; 32], inverse: f32) -> __m256i = {
                let inverse = _mm256_set1_ps(inverse);
                let eight = |idx: usize| {
                    let x = _mm256_loadu_ps(from[8 * idx..8 * idx + 8].as_ptr());
                    _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse))
                };
                let (first, second) =
                    (_mm256_packs_epi32(eight(0), eight(1)), _mm256_packs_epi32(eight(2), eight(3)));
                // Packing works in halves, and leaves fours of bytes in this order.
                let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
                _mm256_permutevar8x32_epi32(_mm256_packs_epi16(first, second), order)
            };
            eight(x: f32) -> __m256 = _mm256_set1_ps(x);
            eight_of(bytes: u64) -> __m256 =
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bytes.cast_signed())));
            mul_eight(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
            fma_eight(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
            sum_eight(a: __m256) -> f32 = {
                let (low, high) = (_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let four = _mm_add_ps(low, high);
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
            };
            sum_fours(a: __m256) -> [f32; 2] = {
                let two = _mm256_add_ps(a, _mm256_movehdup_ps(a));
                let one = _mm256_add_ps(two, _mm256_permute_ps::<0b10>(two));
                [_mm256_cvtss_f32(one), _mm_cvtss_f32(_mm256_extractf128_ps::<1>(one))]
            };
        }

        of_memory! {
            load_bytes_32(from: *const u8) -> __m256i = _mm256_loadu_si256(from.cast());
            store_bytes_32(to: *mut u8, a: __m256i) -> () = _mm256_storeu_si256(to.cast(), a);
            load_eight(from: *const f32) -> __m256 = _mm256_loadu_ps(from);
            store_eight(to: *mut f32, a: __m256) -> () = _mm256_storeu_ps(to, a);
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
