//! What each format's blocks hold: bytes to multiply, and what their products are scaled by.

use super::product::PANEL;
use super::quantise::Extra;
use crate::vector::Simd;
use crate::vector::bytes::Bytes;

/// How the groups of 32 of a block are multiplied, where formats are unpacked.
pub(super) trait Shape {
    /// Groups of 32 in a block.
    const GROUPS: usize;
    /// Whether bytes are signed ones of 8 bits; they are multiplied as 16 bits.
    const IS_WIDE: bool;
    /// Parts of a group whose sums fit into 16 bits.
    const PARTS: usize;
    /// Scales of a group: none, one, or one for each part.
    const SCALES: usize;
    /// Whether weights are less an offset, which is taken from the sums.
    const HAS_OFFSET: bool;
    /// Whether groups have least values.
    const HAS_LEAST: bool;

    /// Vectors of 8 columns' weights that a group is.
    const VECTORS: usize = if Self::IS_WIDE { 16 } else { 8 };
    /// Bytes of an unpacked group of 8 columns: the weights, the scales, the least values.
    const GROUP_BYTES: usize = (Self::VECTORS + Self::SCALES + Self::HAS_LEAST as usize) * 32;
    /// Bytes of an unpacked block of 8 columns: the groups, the scale.
    const BLOCK_BYTES: usize = Self::GROUPS * Self::GROUP_BYTES + 32;
}

/// The most bytes that [`Shape::BLOCK_BYTES`] is for each 32 elements.
pub(super) const fn unpacked_bytes(is_wide: bool) -> usize {
    if is_wide { 18 * 32 } else { 12 * 32 }
}

macro_rules! shapes {
    ($($(#[$about:meta])* $name:ident: $groups:expr, $wide:expr, $parts:expr, $scales:expr, $offset:expr,
        $least:expr;)*) => {
        $($(#[$about])*
        pub(super) struct $name;

        impl Shape for $name {
            const GROUPS: usize = $groups;
            const IS_WIDE: bool = $wide;
            const PARTS: usize = $parts;
            const SCALES: usize = $scales;
            const HAS_OFFSET: bool = $offset;
            const HAS_LEAST: bool = $least;
        }

        const _: () = assert!($name::BLOCK_BYTES <= $groups * unpacked_bytes($wide));)*
    };
}

// Groups, is wide, parts, scales, has an offset, has least values.
shapes! {
    /// 4 or 5 bits less an offset: sums of 32 of either are within 16 bits once it is taken away.
    Offset: 1, false, 1, 0, true, false;
    /// 4 bits.
    Least: 1, false, 1, 0, false, true;
    /// 5 bits: sums of 32 are not within 16 bits.
    Least5: 1, false, 2, 0, false, true;
    /// 8 bits.
    Wide: 1, true, 1, 0, false, false;
    /// 8 bits, with a least value.
    WideLeast: 1, true, 1, 0, false, true;
    /// 4 bits, and one scale a group.
    Scaled: 8, false, 1, 1, false, true;
    /// 5 bits, and one scale a group.
    Scaled5: 8, false, 2, 1, false, true;
    /// 6 bits less 32, and two scales a group: sums of 16 are within 16 bits.
    Scaled6: 8, false, 2, 2, true, false;
}

/// A block of each of some columns.
pub(super) type Blocks<'a> = [&'a [u8]; PANEL];

/// Vectors of a block of 8 columns side by side: of each four bytes, as the blocks hold them.
pub(super) type Planes<S> = [<S as Bytes>::B; 48];

/// What the products of a block of 8 columns are scaled by.
pub(super) struct Joint<S: Bytes> {
    /// The scales of the blocks.
    pub(super) d: S::Eight,
    /// The least values; or what those of groups are multiplied by.
    least: S::Eight,
    /// The scales of groups, or of their halves: four signed bytes a vector.
    scales: [S::B; 4],
    /// The least values of groups: four signed bytes a vector.
    leasts: [S::B; 2],
}

impl<S: Simd> Joint<S> {
    /// Of blocks without groups.
    #[inline(always)]
    fn new(s: S, d: S::Eight, least: S::Eight) -> Self {
        let none = s.as_bytes(s.sixteen(0));
        Self { d, least, scales: [none; 4], leasts: [none; 2] }
    }

    /// The scales of a part of a group, each twice.
    #[inline(always)]
    pub(super) fn scales<H: Shape>(&self, s: S, group_idx: usize, part: usize) -> S::Pairs {
        if H::SCALES == 0 {
            return s.sixteen(1);
        }
        let idx = group_idx * H::SCALES + part % H::SCALES;
        s.twice(self.scales[idx / 4], idx % 4)
    }

    /// The least values of a group.
    #[inline(always)]
    pub(super) fn least<H: Shape>(&self, s: S, group_idx: usize) -> S::Eight {
        if H::GROUPS == 1 {
            return self.least;
        }
        let steps = s.ints_of(self.leasts[group_idx / 4], group_idx % 4);
        s.mul_eight(s.float(steps), self.least)
    }
}

/// A format of blocks.
///
/// An element is `d * scale * (byte - offset) + least`. The block's share of a column's sum is, in this
/// order and whatever the path,
///
/// ```text
/// for each group of 32:
///   whole = sum over 32 of scale * (byte - offset) * x                    exact, in i32
///   t += scale of x * whole;  sum += least * total of x                   fused
/// sum += d * t
/// ```
pub(super) trait Format {
    /// Elements of a block.
    const LEN: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// What is taken from each byte.
    const OFFSET: u8 = 0;
    /// How its groups are multiplied.
    type Shape: Shape;

    /// Turns blocks, so that columns lie side by side.
    fn turn<S: Simd>(s: S, blocks: &Blocks<'_>, planes: &mut Planes<S>);

    /// The next four bytes of each column, the `four`-th of their group.
    fn bytes<S: Simd>(s: S, planes: &Planes<S>, group_idx: usize, four: usize) -> S::B;

    /// The bytes of a block of 32, as they lie; of wide ones.
    #[inline(always)]
    fn wide<S: Simd>(s: S, block: &[u8]) -> S::B {
        s.bytes(block)
    }

    /// What joins the products.
    fn joint<S: Simd>(s: S, blocks: &Blocks<'_>) -> Joint<S>;
}

/// What a format's products want of activations beside their bytes.
pub(super) const fn extra<F: Format>() -> Extra {
    match (F::Shape::HAS_LEAST, F::Shape::HAS_OFFSET) {
        (true, _) => Extra::Totals,
        (_, false) => Extra::Nothing,
        _ if F::Shape::SCALES == 2 => Extra::Offsets(F::OFFSET),
        _ => Extra::Offset(F::OFFSET),
    }
}

/// The 32 bits at a byte of each block, behind which are 12 bytes more. (Put together one by one, those of
/// which half is used became byte by byte in the compiler's hands.)
#[inline(always)]
fn words<S: Bytes>(s: S, blocks: &Blocks<'_>, at: usize) -> S::B {
    let mut turned = [s.as_bytes(s.sixteen(0)); 4];
    turn_16(s, blocks, at, &mut turned);
    turned[0]
}

/// Turns the 16 bytes at a byte of each block.
#[inline(always)]
fn turn_16<S: Bytes>(s: S, blocks: &Blocks<'_>, at: usize, planes: &mut [S::B]) {
    let mut from = *blocks;
    for from in &mut from {
        *from = &from[at..at + 16];
    }
    planes[..4].copy_from_slice(&s.turn(from));
}

/// Turns the 32 bytes at a byte of each block.
#[inline(always)]
fn turn_32<S: Bytes>(s: S, blocks: &Blocks<'_>, at: usize, planes: &mut [S::B]) {
    turn_16(s, blocks, at, planes);
    turn_16(s, blocks, at + 16, &mut planes[4..]);
}

/// Of 16 bytes whose low and high halves are the first and the second 16 elements.
#[inline(always)]
fn nibbles<S: Simd>(s: S, planes: &Planes<S>, four: usize) -> S::B {
    match four {
        0..4 => s.and(planes[four], 0xf),
        _ => s.and(s.down(planes[four - 4], 4), 0xf),
    }
}

/// As [`nibbles`], with fifth bits behind.
#[inline(always)]
fn fifths<S: Simd>(s: S, planes: &Planes<S>, four: usize) -> S::B {
    s.or(nibbles(s, planes, four), s.and(s.spread(planes[4], four), 0x10))
}

/// What joins the products of blocks that have a scale alone.
#[inline(always)]
fn scale_alone<S: Simd>(s: S, blocks: &Blocks<'_>) -> Joint<S> {
    let [d, _] = s.halves(words(s, blocks, 0));
    Joint::new(s, d, s.eight(0.0))
}

/// What joins the products of blocks that begin with a scale and a least value.
#[inline(always)]
fn scale_and_least<S: Simd>(s: S, blocks: &Blocks<'_>) -> Joint<S> {
    let [d, least] = s.halves(words(s, blocks, 0));
    Joint::new(s, d, least)
}

/// What joins the products of blocks that begin with a scale and a zero, which are less `middle`. What
/// it leaves is a least value: a small whole number of `d`, which f32 holds exactly.
#[inline(always)]
fn scale_and_zero<S: Simd>(s: S, blocks: &Blocks<'_>, middle: u8) -> Joint<S> {
    let words = words(s, blocks, 0);
    let [d, _] = s.halves(words);
    let zeros = s.float(s.ints_of(s.less(words, middle), 2));
    Joint::new(s, d, s.mul_eight(zeros, s.mul_eight(d, s.eight(-1.0))))
}

/// `d`, 32 signed bytes.
pub(super) struct Q8Zero;

impl Format for Q8Zero {
    const LEN: usize = 32;
    const BYTES: usize = 34;
    type Shape = Wide;

    #[inline(always)]
    fn turn<S: Simd>(s: S, blocks: &Blocks<'_>, planes: &mut Planes<S>) {
        turn_32(s, blocks, 2, planes);
    }

    #[inline(always)]
    fn bytes<S: Simd>(_: S, planes: &Planes<S>, _: usize, four: usize) -> S::B {
        planes[four]
    }

    #[inline(always)]
    fn wide<S: Simd>(s: S, block: &[u8]) -> S::B {
        s.bytes(&block[2..])
    }

    #[inline(always)]
    fn joint<S: Simd>(s: S, blocks: &Blocks<'_>) -> Joint<S> {
        scale_alone(s, blocks)
    }
}

/// `d`, the zero, 32 unsigned bytes; elements are less the zero. Bytes and zeros are signed less 128.
pub(super) struct Group8;

impl Format for Group8 {
    const LEN: usize = 32;
    const BYTES: usize = 35;
    type Shape = WideLeast;

    #[inline(always)]
    fn turn<S: Simd>(s: S, blocks: &Blocks<'_>, planes: &mut Planes<S>) {
        turn_32(s, blocks, 3, planes);
    }

    #[inline(always)]
    fn bytes<S: Simd>(s: S, planes: &Planes<S>, _: usize, four: usize) -> S::B {
        s.less(planes[four], 128)
    }

    #[inline(always)]
    fn wide<S: Simd>(s: S, block: &[u8]) -> S::B {
        s.less(s.bytes(&block[3..]), 128)
    }

    #[inline(always)]
    fn joint<S: Simd>(s: S, blocks: &Blocks<'_>) -> Joint<S> {
        scale_and_zero(s, blocks, 128)
    }
}

/// The formats of 4 and 5 bits whose blocks are one group.
macro_rules! of_one_group {
    ($($(#[$about:meta])* $name:ident: $bytes:expr, $offset:expr, $shape:ty, $joint:expr, $nibbles:expr,
        $fifths:expr;)*) => {
        $($(#[$about])*
        pub(super) struct $name;

        impl Format for $name {
            const LEN: usize = 32;
            const BYTES: usize = $bytes;
            const OFFSET: u8 = $offset;
            type Shape = $shape;

            #[inline(always)]
            fn turn<S: Simd>(s: S, blocks: &Blocks<'_>, planes: &mut Planes<S>) {
                turn_16(s, blocks, $nibbles, planes);
                let fifths: Option<usize> = $fifths;
                if let Some(at) = fifths {
                    planes[4] = words(s, blocks, at);
                }
            }

            #[inline(always)]
            fn bytes<S: Simd>(s: S, planes: &Planes<S>, _: usize, four: usize) -> S::B {
                let has_fifths = Option::<usize>::is_some(&$fifths);
                if has_fifths { fifths(s, planes, four) } else { nibbles(s, planes, four) }
            }

            #[inline(always)]
            fn joint<S: Simd>(s: S, blocks: &Blocks<'_>) -> Joint<S> {
                $joint(s, blocks)
            }
        })*
    };
}

// Bytes, offset, shape, what begins the block, where its halves of bytes and its fifth bits are.
of_one_group! {
    /// `d`, 16 bytes whose low and high halves, less 8, are the first and the second 16 elements.
    Q4Zero: 18, 8, Offset, scale_alone, 2, None;
    /// `d`, the least value, then as `Q4Zero`, with nothing less.
    Q4One: 20, 0, Least, scale_and_least, 4, None;
    /// `d`, 32 fifth bits, then as `Q4Zero`; elements are less 16.
    Q5Zero: 22, 16, Offset, scale_alone, 6, Some(2);
    /// `d`, the least value, 32 fifth bits, then as `Q4One`.
    Q5One: 24, 0, Least5, scale_and_least, 8, Some(4);
    /// `d`, the zero, then as `Q4One`; elements are less the zero.
    Group4: 19, 0, Least, |s, blocks| scale_and_zero(s, blocks, 0), 3, None;
}

/// What joins the products of blocks that begin with `d`, `d` of least values, and eight scales and
/// eight least values of 6 bits in 12 bytes.
#[inline(always)]
fn scales_and_leasts<S: Simd>(s: S, blocks: &Blocks<'_>) -> Joint<S> {
    let mut turned = [s.as_bytes(s.sixteen(0)); 4];
    turn_16(s, blocks, 0, &mut turned);
    let [both, first, second, third] = turned;
    let [d, least] = s.halves(both);
    let mut joint = Joint::new(s, d, s.mul_eight(least, s.eight(-1.0)));
    let [four, upper] = [s.and(third, 0xf), s.and(s.down(first, 2), 0x30)];
    joint.scales[0] = s.and(first, 0x3f);
    joint.scales[1] = s.or(four, upper);
    let [four, upper] = [s.and(s.down(third, 4), 0xf), s.and(s.down(second, 2), 0x30)];
    joint.leasts[0] = s.and(second, 0x3f);
    joint.leasts[1] = s.or(four, upper);
    joint
}

/// The half of bytes `four` of 32 that hold 64 elements, the low halves first.
#[inline(always)]
fn half_of_32<S: Simd>(s: S, planes: &Planes<S>, group_idx: usize, four: usize) -> S::B {
    s.and(s.down(planes[group_idx / 2 * 8 + four], group_idx % 2 * 4), 0xf)
}

/// `d`, `d` of least values, 12 bytes of scales, 128 bytes of which 32 hold 64 elements, the low
/// halves first.
pub(super) struct Q4K;

impl Format for Q4K {
    const LEN: usize = 256;
    const BYTES: usize = 144;
    type Shape = Scaled;

    #[inline(always)]
    fn turn<S: Simd>(s: S, blocks: &Blocks<'_>, planes: &mut Planes<S>) {
        for idx in 0..4 {
            turn_32(s, blocks, 16 + 32 * idx, &mut planes[8 * idx..]);
        }
    }

    #[inline(always)]
    fn bytes<S: Simd>(s: S, planes: &Planes<S>, group_idx: usize, four: usize) -> S::B {
        half_of_32(s, planes, group_idx, four)
    }

    #[inline(always)]
    fn joint<S: Simd>(s: S, blocks: &Blocks<'_>) -> Joint<S> {
        scales_and_leasts(s, blocks)
    }
}

/// As `Q4K`, with 32 bytes of fifth bits before: bit `g` of byte `i` belongs to element `32 g + i`.
pub(super) struct Q5K;

impl Format for Q5K {
    const LEN: usize = 256;
    const BYTES: usize = 176;
    type Shape = Scaled5;

    #[inline(always)]
    fn turn<S: Simd>(s: S, blocks: &Blocks<'_>, planes: &mut Planes<S>) {
        for idx in 0..4 {
            turn_32(s, blocks, 48 + 32 * idx, &mut planes[8 * idx..]);
        }
        turn_32(s, blocks, 16, &mut planes[32..]);
    }

    #[inline(always)]
    fn bytes<S: Simd>(s: S, planes: &Planes<S>, group_idx: usize, four: usize) -> S::B {
        let fifths = planes[32 + four];
        let moved = match group_idx {
            0..4 => s.up(fifths, 4 - group_idx),
            _ => s.down(fifths, group_idx - 4),
        };
        s.or(half_of_32(s, planes, group_idx, four), s.and(moved, 0x10))
    }

    #[inline(always)]
    fn joint<S: Simd>(s: S, blocks: &Blocks<'_>) -> Joint<S> {
        scales_and_leasts(s, blocks)
    }
}

/// Four low bits of each element in 128 bytes, of which 64 hold 128; two high bits in 64 bytes, of which
/// 32 hold 128; 16 signed scales, `d`. Elements are less 32.
pub(super) struct Q6K;

impl Format for Q6K {
    const LEN: usize = 256;
    const BYTES: usize = 210;
    const OFFSET: u8 = 32;
    type Shape = Scaled6;

    #[inline(always)]
    fn turn<S: Simd>(s: S, blocks: &Blocks<'_>, planes: &mut Planes<S>) {
        for idx in 0..6 {
            turn_32(s, blocks, 32 * idx, &mut planes[8 * idx..]);
        }
    }

    #[inline(always)]
    fn bytes<S: Simd>(s: S, planes: &Planes<S>, group_idx: usize, four: usize) -> S::B {
        let (part, group) = (group_idx / 4, group_idx % 4);
        let low = s.down(planes[part * 16 + group % 2 * 8 + four], group / 2 * 4);
        let twos = planes[32 + part * 8 + four];
        let moved = match group {
            0..2 => s.up(twos, 4 - 2 * group),
            _ => s.down(twos, 2 * group - 4),
        };
        s.or(s.and(low, 0xf), s.and(moved, 0x30))
    }

    #[inline(always)]
    fn joint<S: Simd>(s: S, blocks: &Blocks<'_>) -> Joint<S> {
        let mut turned = [s.as_bytes(s.sixteen(0)); 4];
        turn_16(s, blocks, 194, &mut turned);
        let [_, d] = s.halves(turned[3]);
        let mut joint = Joint::new(s, d, s.eight(0.0));
        turn_16(s, blocks, 192, &mut joint.scales);
        joint
    }
}
