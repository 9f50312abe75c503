//! Activations as bytes.

use super::GROUP;
use crate::vector::Simd;

/// Some columns of a row of activations, as they are multiplied.
#[derive(Clone, Copy)]
pub(super) struct Row {
    /// Signed bytes.
    pub(super) bytes: *mut u8,
    /// What a byte of each group of 32 stands for.
    pub(super) scales: *mut f32,
    /// Scaled sums of so many activations as the format asks for.
    pub(super) totals: *mut f32,
}

/// Makes bytes of `values`, whole groups, and `n_totals` sums a group: 0, 1 or 2. A value that is not
/// finite makes the first scale NaN.
///
/// # Safety
/// All that `row` describes can be written.
#[inline(always)]
pub(super) unsafe fn quantise<S: Simd>(s: S, values: &[f32], n_totals: usize, row: Row) {
    let mut probe = s.splat(0.0);
    let ones = s.bytes(&[1; GROUP]);
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
            s.store_bytes_32(row.bytes.add(idx * GROUP), bytes);
            row.scales.add(idx).write(scale);
        }
        if n_totals > 0 {
            let [first, second] = s.sum_fours(s.dot(ones, bytes));
            // SAFETY: as above.
            unsafe {
                if n_totals == 1 {
                    row.totals.add(idx).write(scale * (first + second));
                } else {
                    row.totals.add(2 * idx).write(scale * first);
                    row.totals.add(2 * idx + 1).write(scale * second);
                }
            }
        }
    }
    // SAFETY: as above.
    unsafe { *row.scales += s.sum(probe) };
}
