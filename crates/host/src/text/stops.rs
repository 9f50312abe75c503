//! Stop strings.

use std::ops::Range;
use std::sync::Arc;

use drivetrain_artifacts::DecodeStream;
use drivetrain_engine::TokenId;

/// Looks for stop strings in the text of one choice. A copy costs no more than the last few tokens.
#[derive(Clone, Debug)]
pub(crate) struct StopWatch {
    strings: Arc<[String]>,
    stream: DecodeStream,
    /// The end of the text, in which a stop string may have begun.
    tail: String,
}

impl StopWatch {
    /// Looks for `strings` (none of them empty) in the text that `stream` makes of the new tokens.
    pub(crate) fn new(strings: Arc<[String]>, stream: DecodeStream) -> Self {
        Self { strings, stream, tail: String::new() }
    }

    /// Takes the choice's next token; the place in the list of the stop string that its text now
    /// contains, if there is one: of several, the one that ends first, then the first in the list.
    ///
    /// What a later token may still change is looked at as if none came, so that a line feed that is a
    /// byte token is found at once.
    pub(crate) fn push(&mut self, id: TokenId) -> Option<usize> {
        let n_known = self.tail.len();
        if let Some(piece) = self.stream.push(id) {
            self.tail.push_str(&piece);
        }
        let n_certain = self.tail.len();
        if let Some(pending) = self.stream.pending() {
            self.tail.push_str(&pending);
        }
        let found = find(&self.strings, &self.tail, n_known);
        self.tail.truncate(n_certain);
        let n_kept = longest(&self.strings).saturating_sub(1);
        let start = floor(&self.tail, n_certain.saturating_sub(n_kept));
        self.tail.drain(..start);
        found.map(|(idx, _)| idx)
    }
}

/// The longest string's length in bytes.
pub(super) fn longest(strings: &[String]) -> usize {
    strings.iter().map(String::len).max().unwrap_or(0)
}

/// The last place at or before `at` where a character begins.
pub(super) fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// Of the strings that end in `text` behind its first `n_known` bytes, the one that ends first, then
/// the first in the list: its place in the list, and in the text.
pub(super) fn find(
    strings: &[String],
    text: &str,
    n_known: usize,
) -> Option<(usize, Range<usize>)> {
    let mut first: Option<(usize, Range<usize>)> = None;
    for (idx, string) in strings.iter().enumerate().filter(|(_, string)| !string.is_empty()) {
        let from = floor(text, (n_known + 1).saturating_sub(string.len()));
        let Some(at) = text.get(from..).and_then(|text| text.find(string.as_str())) else {
            continue;
        };
        let range = from + at..from + at + string.len();
        if first.as_ref().is_none_or(|(_, known)| range.end < known.end) {
            first = Some((idx, range));
        }
    }
    first
}

#[cfg(test)]
mod tests;
