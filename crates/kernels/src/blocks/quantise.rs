//! Activations as bytes.

use super::GROUP;
use crate::vector::Simd;

/// Some columns of a row of activations, as they are multiplied.
#[derive(Clone, Copy)]
pub(super) struct Row {
    /// Signed bytes; or, where several rows meet wide weights, i16: of each 32 those at even places, then
    /// those at odd ones.
    pub(super) bytes: *mut u8,
    /// What a byte of each group of 32 stands for.
    pub(super) scales: *mut f32,
    /// What a group's offset or least value is multiplied by, as the format asks for.
    pub(super) extras: Extras,
}

/// A row's sums, in the same memory whatever they are: a format has one of them at most.
#[derive(Clone, Copy)]
pub(super) struct Extras(pub(super) *mut u8);

impl Extras {
    /// The scaled sums of each group, for least values.
    pub(super) fn totals(self) -> *mut f32 {
        self.0.cast()
    }

    /// What offsets add to the sums of 16 bits of each part of a group: two i16 in 32 bits.
    pub(super) fn offsets(self) -> *mut u32 {
        self.0.cast()
    }
}

/// What a format's products want beside the bytes.
#[derive(Clone, Copy)]
pub(super) enum Extra {
    Nothing,
    /// Scaled sums of groups.
    Totals,
    /// What this offset adds to sums of groups.
    Offset(u8),
    /// What it adds to sums of halves of groups.
    Offsets(u8),
}

/// Makes bytes of `values`, whole groups, and what else is wanted of them; wide bytes are i16. A value
/// that is not finite makes the first scale NaN.
///
/// # Safety
/// All that `row` describes can be written.
#[inline(always)]
pub(super) unsafe fn quantise<S: Simd>(
    s: S,
    values: &[f32],
    (extra, is_wide): (Extra, bool),
    row: Row,
) {
    let mut probe = s.splat(0.0);
    let (groups, _) = values.as_chunks::<GROUP>();
    for (idx, group) in groups.iter().enumerate() {
        let mut largest = s.splat(0.0);
        for chunk in group.chunks_exact(S::LANES) {
            // SAFETY: the chunk is as long as that.
            let x = unsafe { s.load(chunk.as_ptr()) };
            largest = s.max(s.abs(x), largest);
            probe = s.fma(x, s.splat(0.0), probe);
        }
        let largest = s.largest(largest);
        let scale = largest / 127.0;
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let bytes = s.round_bytes(group, inverse);
        // SAFETY: the caller says that the row has this group.
        unsafe {
            if is_wide {
                let [even, odd] = s.widen(bytes).map(|pairs| s.as_bytes(pairs));
                s.store_bytes_32(row.bytes.add(2 * idx * GROUP), even);
                s.store_bytes_32(row.bytes.add((2 * idx + 1) * GROUP), odd);
            } else {
                s.store_bytes_32(row.bytes.add(idx * GROUP), bytes);
            }
            row.scales.add(idx).write(scale);
        }
        // Of each half of the group two sums.
        let halves = s.fold(s.pairs(s.bytes(&[1; GROUP]), bytes));
        let [first, second] = halves.map(|sums| [sums as i16, (sums >> 16) as i16]);
        let whole = [first[0] + second[0], first[1] + second[1]];
        let (totals, offsets) = (row.extras.totals(), row.extras.offsets());
        // SAFETY: as above.
        unsafe {
            match extra {
                Extra::Nothing => {}
                Extra::Totals => totals.add(idx).write(scale * f32::from(whole[0] + whole[1])),
                Extra::Offset(offset) => offsets.add(idx).write(taken(offset, whole)),
                Extra::Offsets(offset) => {
                    offsets.add(2 * idx).write(taken(offset, first));
                    offsets.add(2 * idx + 1).write(taken(offset, second));
                }
            }
        }
    }
    // SAFETY: as above.
    unsafe { *row.scales += s.sum(probe) };
}

/// What is taken from two sums of 16 bits if each weight is less `offset`, as it is added to them.
fn taken(offset: u8, sums: [i16; 2]) -> u32 {
    let [low, high] = sums.map(|sum| sum.wrapping_mul(-i16::from(offset)).cast_unsigned());
    u32::from(low) | u32::from(high) << 16
}
