//! Text that may be the beginning of a stop string is held back.

use std::sync::Arc;

/// The text of one choice on its way out, which ends at the first stop string.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    strings: Arc<[String]>,
    keeps_stop: bool,
    /// What is not certain yet.
    tail: String,
    is_over: bool,
}

impl Held {
    /// Ends at any of `strings`, none of them empty; behind it if `keeps_stop`, else before it.
    pub(crate) fn new(strings: Arc<[String]>, keeps_stop: bool) -> Self {
        Self { strings, keeps_stop, tail: String::new(), is_over: false }
    }

    /// Takes more text, and gives what is certain to belong to the answer.
    pub(crate) fn push(&mut self, text: &str) -> String {
        if self.is_over {
            return String::new();
        }
        self.tail.push_str(text);
        let first =
            self.strings.iter().filter_map(|stop| Some((self.tail.find(stop)?, stop.len())));
        if let Some((at, len)) = first.min_by_key(|(at, len)| (at + len, *at)) {
            self.is_over = true;
            self.tail.truncate(if self.keeps_stop { at + len } else { at });
            return std::mem::take(&mut self.tail);
        }
        let is_start = |rest: &str| self.strings.iter().any(|stop| stop.starts_with(rest));
        let certain =
            self.tail.char_indices().map(|(at, _)| at).find(|at| is_start(&self.tail[*at..]));
        let rest = self.tail.split_off(certain.unwrap_or(self.tail.len()));
        std::mem::replace(&mut self.tail, rest)
    }

    /// What was held back, when no more text comes.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.tail)
    }
}
