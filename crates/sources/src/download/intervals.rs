//! Which bytes of a file are there.

use std::ops::Range;

/// Disjoint ranges of bytes in order; ranges that touch are one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Intervals(Vec<Range<u64>>);

impl Intervals {
    /// Adds a range, which may overlap what is there.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let first = self.0.partition_point(|known| known.end < range.start);
        let after = self.0.partition_point(|known| known.start <= range.end);
        let touched = self.0.get(first..after).unwrap_or_default();
        let start = touched.first().map_or(range.start, |known| known.start.min(range.start));
        let end = touched.last().map_or(range.end, |known| known.end.max(range.end));
        self.0.splice(first..after.max(first), std::iter::once(start..end));
    }

    /// How many bytes are there.
    pub(super) fn covered(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// What is missing of a file of `size` bytes, in pieces of at most `piece_bytes`.
    pub(super) fn gaps(&self, size: u64, piece_bytes: u64) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = 0;
        let ends = self.0.iter().map(|range| (range.start, range.end)).chain([(size, size)]);
        for (start, end) in ends {
            while at < start {
                let piece = at..start.min(at.saturating_add(piece_bytes.max(1)));
                at = piece.end;
                gaps.push(piece);
            }
            at = at.max(end);
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_merge_and_leave_gaps() {
        let mut there = Intervals::default();
        for range in [10..20, 30..40, 20..25, 50..50, 5..12, 38..45] {
            there.insert(range);
        }
        assert_eq!(there.0, [5..25, 30..45]);
        assert_eq!(there.covered(), 35);
        assert_eq!(there.gaps(60, 10), [0..5, 25..30, 45..55, 55..60]);
        assert_eq!(Intervals::default().gaps(0, 10), []);
        there.insert(0..100);
        assert_eq!((there.covered(), there.gaps(100, 7)), (100, vec![]));
    }

    #[test]
    fn any_order_gives_what_a_map_of_bytes_gives() {
        // A fixed linear congruence stands for chance, so that a failure can be seen again.
        let mut state = 20_261_126_u64;
        let mut number = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..500 {
            let mut there = Intervals::default();
            let mut bytes = [false; 64];
            for _ in 0..number(12) {
                let start = number(64);
                let end = start + number(65 - start);
                there.insert(start..end);
                bytes[start as usize..end as usize].fill(true);
            }
            assert_eq!(there.covered(), bytes.iter().filter(|there| **there).count() as u64);
            let mut missing: Vec<u64> =
                there.gaps(64, 1 + number(20)).into_iter().flatten().collect();
            missing.sort_unstable();
            let wanted: Vec<u64> = (0..64).filter(|at| !bytes[*at as usize]).collect();
            assert_eq!(missing, wanted);
        }
    }
}
