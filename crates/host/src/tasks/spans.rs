//! The search for the best spans of tokens, by how well an answer begins and ends at each.
//!
//! Source: transformers 4.57, `pipelines/question_answering.py`, `select_starts_ends`.

use std::cmp::Ordering;

/// How many spans are looked for, and how long they may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Search {
    pub(super) n_spans: usize,
    /// Most tokens of a span.
    pub(super) max_len: usize,
}

/// A span of tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Span {
    pub(super) start: usize,
    /// The last token.
    pub(super) end: usize,
    pub(super) score: f64,
}

/// The best spans of `rows` `[n, 2]` whose ends are both `open`, best first, and the score of there
/// being no answer, which is the first token's. That of a place that is not open counts as -10,000.
pub(super) fn best_spans(rows: &[f32], open: &[bool], search: Search) -> (Vec<Span>, f64) {
    let column = |which: usize| {
        let masked = rows.chunks_exact(2).zip(open).map(|(row, open)| {
            let logit = row.get(which).copied().unwrap_or_default();
            if *open { f64::from(logit) } else { -10_000.0 }
        });
        let mut values: Vec<f64> = masked.collect();
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        values.iter_mut().for_each(|x| *x = (*x - most).exp());
        let sum: f64 = values.iter().sum();
        values.iter_mut().for_each(|x| *x /= sum);
        values
    };
    let (mut starts, mut ends) = (column(0), column(1));
    let null =
        starts.first().copied().unwrap_or_default() * ends.first().copied().unwrap_or_default();
    for first in [starts.first_mut(), ends.first_mut()].into_iter().flatten() {
        *first = 0.0;
    }
    // Those kept so far, best first; of equal scores the one that comes first in the text.
    let mut best: Vec<Span> = Vec::with_capacity(search.n_spans.min(1024) + 1);
    let order = |a: &Span, b: &Span| b.score.total_cmp(&a.score);
    for (start, at_start) in starts.iter().enumerate() {
        let stop = ends.len().min(start.saturating_add(search.max_len));
        for (end, at_end) in ends.iter().enumerate().take(stop).skip(start) {
            let span = Span { start, end, score: at_start * at_end };
            let is_full = best.len() >= search.n_spans;
            if is_full && best.last().is_some_and(|last| order(last, &span) != Ordering::Greater) {
                continue;
            }
            let at = best.partition_point(|other| order(other, &span) != Ordering::Greater);
            best.insert(at, span);
            best.truncate(search.n_spans);
        }
    }
    let is_open = |at: usize| open.get(at).copied().unwrap_or(false);
    best.retain(|span| is_open(span.start) && is_open(span.end));
    (best, null)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_ordered_bounded_and_open() {
        let rows: Vec<f32> = [[0.0, 0.0], [3.0, 0.0], [1.0, 1.0], [0.0, 4.0]].concat();
        let open = [true, true, true, true];
        let search = Search { n_spans: 3, max_len: 3 };
        let (spans, null) = best_spans(&rows, &open, search);
        let places: Vec<_> = spans.iter().map(|span| (span.start, span.end)).collect();
        assert_eq!(places, [(1, 3), (2, 3), (1, 2)]);
        assert!(null > 0.0 && spans[0].score > spans[1].score);
        let (spans, _) = best_spans(&rows, &open, Search { n_spans: 1, max_len: 2 });
        assert_eq!((spans[0].start, spans[0].end), (2, 3));
        let (spans, _) = best_spans(&rows, &[true, true, true, false], search);
        assert_eq!((spans[0].start, spans[0].end), (1, 2));
    }
}
