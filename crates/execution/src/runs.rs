//! Which rows of a batch go through which adapter.

use drivetrain_engine::AdapterId;

use crate::plan::Planned;

/// The rows of a batch's matrix that go through an adapter; rows in none of the runs go through none.
#[derive(Clone, Debug, Default)]
pub struct Runs(Vec<Run>);

/// Rows that follow one another and go through one adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The adapter.
    pub adapter: AdapterId,
    /// The first of the rows.
    pub first: usize,
    /// How many they are.
    pub n: usize,
}

impl Runs {
    /// The runs of the planned segments.
    pub fn of(planned: &[Planned]) -> Self {
        let mut runs = Self::default();
        runs.set(planned);
        runs
    }

    /// Becomes the runs of the planned segments.
    pub fn set(&mut self, planned: &[Planned]) {
        self.0.clear();
        for segment in planned {
            self.push(segment.adapter, segment.first_row, segment.n);
        }
    }

    /// The runs in order.
    pub fn iter(&self) -> impl Iterator<Item = Run> {
        self.0.iter().copied()
    }

    /// Whether no row goes through an adapter.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The runs of the matrix that is made of these rows, one after the other.
    pub fn select(&self, rows: &[u32]) -> Self {
        let mut selected = Self::default();
        selected.set_selected(self, rows.iter().map(|row| *row as usize));
        selected
    }

    /// Becomes the runs of the matrix that is made of these rows of another's.
    pub fn set_selected(&mut self, all: &Self, rows: impl Iterator<Item = usize>) {
        self.0.clear();
        if all.0.is_empty() {
            return;
        }
        for (idx, row) in rows.enumerate() {
            let run = all.0.iter().find(|run| (run.first..run.first + run.n).contains(&row));
            self.push(run.map_or(AdapterId::NONE, |run| run.adapter), idx, 1);
        }
    }

    fn push(&mut self, adapter: AdapterId, first: usize, n: usize) {
        if adapter == AdapterId::NONE {
            return;
        }
        match self.0.last_mut() {
            Some(last) if last.adapter == adapter && last.first + last.n == first => last.n += n,
            _ => self.0.push(Run { adapter, first, n }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(adapter: u32, first: usize, n: usize) -> Run {
        Run { adapter: AdapterId(adapter), first, n }
    }

    #[test]
    fn runs_follow_selected_rows() {
        let mut runs = Runs::default();
        for (adapter, first, n) in [(1, 0, 2), (1, 2, 1), (0, 3, 4), (2, 7, 2)] {
            runs.push(AdapterId(adapter), first, n);
        }
        assert_eq!(runs.0, [run(1, 0, 3), run(2, 7, 2)]);
        assert_eq!(runs.select(&[2, 3, 8, 7, 0]).0, [run(1, 0, 1), run(2, 2, 2), run(1, 4, 1)]);
        assert_eq!(Runs::default().select(&[1, 2]).0, []);
    }
}
