//! 32 bytes and 8 sums: what blocks of a few bits an element are computed with.

/// Vectors of 256 bits, whatever else the instruction set has: blocks are that small.
///
/// Sums of 16 bits wrap around.
pub(crate) trait Bytes: Copy {
    /// 32 bytes.
    type B: Copy;
    /// 16 i16.
    type Pairs: Copy;
    /// 8 i32.
    type Ints: Copy;
    /// 8 f32.
    type Eight: Copy;

    /// The lower and the upper binary16 of each 32 bits, as f32.
    fn halves(self, a: Self::B) -> [Self::Eight; 2];
    /// The first 32 bytes of a slice.
    fn bytes(self, from: &[u8]) -> Self::B;
    /// Of the first 16 bytes of 8 slices: 4 vectors of 8 times 4 bytes.
    fn turn(self, from: [&[u8]; 8]) -> [Self::B; 4];
    /// Bits `4 four..` of each 32 to 4 bytes: all ones where a bit is set.
    fn spread(self, a: Self::B, four: usize) -> Self::B;
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
    /// The 32 nearest integers to `x * inverse`, which are within a byte.
    fn round_bytes(self, from: &[f32; 32], inverse: f32) -> Self::B;
    /// The signed bytes at even places and at odd ones.
    fn widen(self, a: Self::B) -> [Self::Pairs; 2];

    /// All `x`.
    fn sixteen(self, x: i16) -> Self::Pairs;
    /// As they lie.
    fn as_pairs(self, a: Self::B) -> Self::Pairs;
    /// As they lie.
    fn as_bytes(self, a: Self::Pairs) -> Self::B;
    /// The signed byte `idx` of each 32 bits, twice.
    fn twice(self, a: Self::B, idx: usize) -> Self::Pairs;
    /// Sums of two products of unsigned with signed bytes, which are within 16 bits.
    fn pairs(self, a: Self::B, b: Self::B) -> Self::Pairs;
    /// `a + b`.
    fn add_pairs(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs;
    /// The sums of the first eight and of the last eight, those at even places apart from those at odd
    /// ones: as they lie in 32 bits.
    fn fold(self, a: Self::Pairs) -> [u32; 2];

    /// All `x`.
    fn ints(self, x: i32) -> Self::Ints;
    /// The signed byte `idx` of each 32 bits.
    fn ints_of(self, a: Self::B, idx: usize) -> Self::Ints;
    /// `a + b`.
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// Sums of two products.
    fn join_pairs(self, a: Self::Pairs, b: Self::Pairs) -> Self::Ints;
    /// Sums of four products of signed bytes. `b` has no -128.
    fn fours(self, a: Self::B, b: Self::B) -> Self::Ints;
    /// The sum of each vector.
    fn sums(self, all: [Self::Ints; 8]) -> Self::Ints;

    /// As f32.
    fn float(self, a: Self::Ints) -> Self::Eight;
    /// As they lie.
    fn bytes_of(self, a: Self::Eight) -> Self::B;
    /// All `x`.
    fn eight(self, x: f32) -> Self::Eight;
    /// `a * b`.
    fn mul_eight(self, a: Self::Eight, b: Self::Eight) -> Self::Eight;
    /// `a * b + c`.
    fn fma_eight(self, a: Self::Eight, b: Self::Eight, c: Self::Eight) -> Self::Eight;

    /// 4 bytes from memory, 8 times.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn quad(self, from: *const u8) -> Self::B;
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
    type Pairs = [i16; 16];
    type Ints = [i32; 8];
    type Eight = [f32; 8];

    #[inline(always)]
    fn halves(self, a: [u8; 32]) -> [[f32; 8]; 2] {
        [0, 2].map(|at| {
            std::array::from_fn(|idx| {
                half::f16::from_le_bytes([a[4 * idx + at], a[4 * idx + at + 1]]).to_f32()
            })
        })
    }

    #[inline(always)]
    fn bytes(self, from: &[u8]) -> [u8; 32] {
        std::array::from_fn(|idx| from[idx])
    }

    #[inline(always)]
    fn turn(self, from: [&[u8]; 8]) -> [[u8; 32]; 4] {
        std::array::from_fn(|four| std::array::from_fn(|at| from[at / 4][4 * four + at % 4]))
    }

    #[inline(always)]
    fn spread(self, a: [u8; 32], four: usize) -> [u8; 32] {
        std::array::from_fn(|idx| {
            let bit = 4 * four + idx % 4;
            if a[idx / 4 * 4 + bit / 8] >> (bit % 8) & 1 == 1 { 0xff } else { 0 }
        })
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
    fn round_bytes(self, from: &[f32; 32], inverse: f32) -> [u8; 32] {
        // Added to this, a number of up to 22 bits is rounded to an integer in the lowest bits.
        const SHIFT: f32 = 12_582_912.0;
        from.map(|x| (x * inverse + SHIFT).to_bits() as u8)
    }

    #[inline(always)]
    fn widen(self, a: [u8; 32]) -> [[i16; 16]; 2] {
        [0, 1].map(|odd| std::array::from_fn(|idx| i16::from(a[2 * idx + odd].cast_signed())))
    }

    #[inline(always)]
    fn sixteen(self, x: i16) -> [i16; 16] {
        [x; 16]
    }

    #[inline(always)]
    fn as_pairs(self, a: [u8; 32]) -> [i16; 16] {
        std::array::from_fn(|idx| i16::from_le_bytes([a[2 * idx], a[2 * idx + 1]]))
    }

    #[inline(always)]
    fn as_bytes(self, a: [i16; 16]) -> [u8; 32] {
        std::array::from_fn(|idx| a[idx / 2].to_le_bytes()[idx % 2])
    }

    #[inline(always)]
    fn twice(self, a: [u8; 32], idx: usize) -> [i16; 16] {
        std::array::from_fn(|at| i16::from(a[at / 2 * 4 + idx].cast_signed()))
    }

    #[inline(always)]
    fn pairs(self, a: [u8; 32], b: [u8; 32]) -> [i16; 16] {
        let product = |idx: usize| i16::from(a[idx]).wrapping_mul(i16::from(b[idx].cast_signed()));
        std::array::from_fn(|idx| product(2 * idx).wrapping_add(product(2 * idx + 1)))
    }

    #[inline(always)]
    fn add_pairs(self, a: [i16; 16], b: [i16; 16]) -> [i16; 16] {
        std::array::from_fn(|idx| a[idx].wrapping_add(b[idx]))
    }

    #[inline(always)]
    fn fold(self, a: [i16; 16]) -> [u32; 2] {
        let sum = |at: usize| (0..4).map(|idx| a[at + 2 * idx]).sum::<i16>();
        [0, 8].map(|at| u32::from(sum(at) as u16) | u32::from(sum(at + 1) as u16) << 16)
    }

    #[inline(always)]
    fn ints(self, x: i32) -> [i32; 8] {
        [x; 8]
    }

    #[inline(always)]
    fn ints_of(self, a: [u8; 32], idx: usize) -> [i32; 8] {
        std::array::from_fn(|at| i32::from(a[at * 4 + idx].cast_signed()))
    }

    #[inline(always)]
    fn add_ints(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        std::array::from_fn(|idx| a[idx] + b[idx])
    }

    #[inline(always)]
    fn join_pairs(self, a: [i16; 16], b: [i16; 16]) -> [i32; 8] {
        let product = |idx: usize| i32::from(a[idx]) * i32::from(b[idx]);
        std::array::from_fn(|idx| product(2 * idx) + product(2 * idx + 1))
    }

    #[inline(always)]
    fn fours(self, a: [u8; 32], b: [u8; 32]) -> [i32; 8] {
        let product =
            |idx: usize| i32::from(a[idx].cast_signed()) * i32::from(b[idx].cast_signed());
        std::array::from_fn(|lane| (4 * lane..4 * lane + 4).map(product).sum())
    }

    #[inline(always)]
    fn sums(self, all: [[i32; 8]; 8]) -> [i32; 8] {
        all.map(|one| one.iter().sum())
    }

    #[inline(always)]
    fn float(self, a: [i32; 8]) -> [f32; 8] {
        a.map(|x| x as f32)
    }

    #[inline(always)]
    fn bytes_of(self, a: [f32; 8]) -> [u8; 32] {
        std::array::from_fn(|idx| a[idx / 4].to_le_bytes()[idx % 4])
    }

    #[inline(always)]
    fn eight(self, x: f32) -> [f32; 8] {
        [x; 8]
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
    unsafe fn quad(self, from: *const u8) -> [u8; 32] {
        // SAFETY: the caller says that they can be read.
        let four = unsafe { from.cast::<[u8; 4]>().read() };
        std::array::from_fn(|idx| four[idx % 4])
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

/// What the tokens of x86 share.
#[cfg(target_arch = "x86_64")]
macro_rules! bytes_of_256 {
    () => {
        type B = __m256i;
        type Pairs = __m256i;
        type Ints = __m256i;
        type Eight = __m256;

        #[inline(always)]
        fn as_pairs(self, a: __m256i) -> __m256i {
            a
        }

        #[inline(always)]
        fn as_bytes(self, a: __m256i) -> __m256i {
            a
        }

        of_registers! {
            halves(a: __m256i) -> [__m256; 2] = {
                let low = _mm256_and_si256(a, _mm256_set1_epi32(0xffff));
                let both = _mm256_packus_epi32(low, _mm256_srli_epi32::<16>(a));
                // Packing works in halves.
                let both = _mm256_permute4x64_epi64::<0b11_01_10_00>(both);
                [
                    _mm256_cvtph_ps(_mm256_castsi256_si128(both)),
                    _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(both)),
                ]
            };
            bytes(from: &[u8]) -> __m256i = _mm256_loadu_si256(from[..32].as_ptr().cast());
            // Loops, not closures: those stay apart, without the features.
            turn(from: [&[u8]; 8]) -> [__m256i; 4] = {
                let mut pairs = [_mm256_setzero_si256(); 4];
                for idx in 0..4 {
                    let low = _mm_loadu_si128(from[idx][..16].as_ptr().cast());
                    let high = _mm_loadu_si128(from[4 + idx][..16].as_ptr().cast());
                    pairs[idx] = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high);
                }
                let [a, b, c, d] = pairs;
                let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
                let (ef, gh) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
                [
                    _mm256_unpacklo_epi64(ab, cd),
                    _mm256_unpackhi_epi64(ab, cd),
                    _mm256_unpacklo_epi64(ef, gh),
                    _mm256_unpackhi_epi64(ef, gh),
                ]
            };
            spread(a: __m256i, four: usize) -> __m256i = {
                // The byte that has the bits, to all four; then to each its bit.
                let byte = (four / 2) as i32 * 0x0101_0101;
                let places = _mm256_add_epi8(
                    _mm256_set1_epi32(byte),
                    _mm256_setr_epi32(
                        0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c, 0, 0x0404_0404, 0x0808_0808,
                        0x0c0c_0c0c,
                    ),
                );
                let bits = _mm256_set1_epi32(0x0804_0201 << (four % 2 * 4));
                _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(a, places), bits), bits)
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
            widen(a: __m256i) -> [__m256i; 2] =
                [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(a)), _mm256_srai_epi16::<8>(a)];
            sixteen(x: i16) -> __m256i = _mm256_set1_epi16(x);
            twice(a: __m256i, idx: usize) -> __m256i = {
                let upper = _mm256_sll_epi32(a, _mm_cvtsi32_si128(24 - 8 * idx as i32));
                let lower = _mm256_srai_epi32::<24>(upper);
                _mm256_blend_epi16::<0b1010_1010>(lower, _mm256_srai_epi16::<8>(upper))
            };
            pairs(a: __m256i, b: __m256i) -> __m256i = _mm256_maddubs_epi16(a, b);
            add_pairs(a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi16(a, b);
            fold(a: __m256i) -> [u32; 2] = {
                let two = _mm256_add_epi16(a, _mm256_shuffle_epi32::<0b0100_1110>(a));
                let one = _mm256_add_epi16(two, _mm256_shuffle_epi32::<0b1011_0001>(two));
                let high = _mm256_extracti128_si256::<1>(one);
                [_mm256_cvtsi256_si32(one), _mm_cvtsi128_si32(high)].map(i32::cast_unsigned)
            };
            ints(x: i32) -> __m256i = _mm256_set1_epi32(x);
            ints_of(a: __m256i, idx: usize) -> __m256i = {
                let upper = _mm256_sll_epi32(a, _mm_cvtsi32_si128(24 - 8 * idx as i32));
                _mm256_srai_epi32::<24>(upper)
            };
            add_ints(a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi32(a, b);
            join_pairs(a: __m256i, b: __m256i) -> __m256i = _mm256_madd_epi16(a, b);
            fours(a: __m256i, b: __m256i) -> __m256i = {
                // Signed times signed by the instruction for unsigned times signed: the sign goes over
                // to `b`. Two products add up to 32,512 at most, within 16 bits.
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a));
                _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
            };
            // Shuffles and sums take half the time of the instruction for sums of neighbours.
            sums(all: [__m256i; 8]) -> __m256i = {
                let mut two = [_mm256_setzero_si256(); 4];
                for idx in 0..4 {
                    let (a, b) = (all[2 * idx], all[2 * idx + 1]);
                    two[idx] =
                        _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
                }
                let mut four = [_mm256_setzero_si256(); 2];
                for idx in 0..2 {
                    let (a, b) = (two[2 * idx], two[2 * idx + 1]);
                    four[idx] =
                        _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
                }
                let [first, second] = four;
                _mm256_add_epi32(
                    _mm256_permute2x128_si256::<0x20>(first, second),
                    _mm256_permute2x128_si256::<0x31>(first, second),
                )
            };
            float(a: __m256i) -> __m256 = _mm256_cvtepi32_ps(a);
            bytes_of(a: __m256) -> __m256i = _mm256_castps_si256(a);
            eight(x: f32) -> __m256 = _mm256_set1_ps(x);
            mul_eight(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
            fma_eight(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
        }

        of_memory! {
            quad(from: *const u8) -> __m256i =
                _mm256_set1_epi32(from.cast::<i32>().read_unaligned());
            load_bytes_32(from: *const u8) -> __m256i = _mm256_loadu_si256(from.cast());
            store_bytes_32(to: *mut u8, a: __m256i) -> () = _mm256_storeu_si256(to.cast(), a);
            load_eight(from: *const f32) -> __m256 = _mm256_loadu_ps(from);
            store_eight(to: *mut f32, a: __m256) -> () = _mm256_storeu_ps(to, a);
        }
    };
}

#[cfg(target_arch = "x86_64")]
pub(super) use bytes_of_256;
