//! What of a text can be given out before it is known where it stops.

use std::sync::Arc;

use super::stops::{find, floor, longest};

/// Holds back the end of a text while it may be the beginning of a stop string, and cuts the text at
/// the first stop string that is in it: the one that ends first, then the first in the list, which is
/// also how [`super::StopWatch`] decides.
///
/// The texts of all [`Held::push`] and that of [`Held::finish`] together are the whole text, up to the
/// stop string, with or without it.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    strings: Arc<[String]>,
    /// Whether the stop string stays in the text.
    keeps_stop: KeepStop,
    /// Not given out yet.
    text: String,
    stop: Option<usize>,
}

/// Whether a stop string stays in the text that it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum KeepStop {
    /// The text ends before it.
    #[default]
    No,
    /// The text ends with it.
    Yes,
}

impl Held {
    /// For the text of one choice; none of `strings` is empty.
    pub(crate) fn new(strings: Arc<[String]>, keeps_stop: KeepStop) -> Self {
        Self { strings, keeps_stop, text: String::new(), stop: None }
    }

    /// Takes the next piece of the text and gives out what is certain now; may be empty. After a stop
    /// string nothing is.
    pub(crate) fn push(&mut self, piece: &str) -> String {
        if self.stop.is_some() {
            return String::new();
        }
        let n_known = self.text.len();
        self.text.push_str(piece);
        if let Some((idx, range)) = find(&self.strings, &self.text, n_known) {
            self.stop = Some(idx);
            let end = match self.keeps_stop {
                KeepStop::No => range.start,
                KeepStop::Yes => range.end,
            };
            self.text.truncate(end);
            return std::mem::take(&mut self.text);
        }
        let rest = self.text.split_off(self.certain_len());
        std::mem::replace(&mut self.text, rest)
    }

    /// Gives out the rest, when no more pieces come.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.text)
    }

    /// The stop string that ended the text, by its place in the list.
    #[cfg(test)]
    pub(crate) fn stop(&self) -> Option<usize> {
        self.stop
    }

    /// The text up to where a stop string may begin.
    fn certain_len(&self) -> usize {
        let n = self.text.len();
        let from = floor(&self.text, n.saturating_sub(longest(&self.strings).saturating_sub(1)));
        let may_begin = |at: &usize| {
            let end = self.text.get(*at..);
            end.is_some_and(|end| self.strings.iter().any(|string| string.starts_with(end)))
        };
        (from..n).find(may_begin).unwrap_or(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Arc<[String]> {
        list.iter().map(|string| (*string).to_owned()).collect()
    }

    fn held(list: &[&str], keeps_stop: KeepStop, pieces: &[&str]) -> (Vec<String>, Option<usize>) {
        let mut held = Held::new(strings(list), keeps_stop);
        let mut out: Vec<_> = pieces.iter().map(|piece| held.push(piece)).collect();
        out.push(held.finish());
        (out, held.stop())
    }

    #[test]
    fn what_may_begin_a_stop_string_waits() {
        let (out, stop) = held(&["END"], KeepStop::No, &["the E", "N", "d E", "ND", "x"]);
        assert_eq!(out, ["the ", "", "ENd ", "", "", ""]);
        assert_eq!(stop, Some(0));
        let (out, stop) = held(&["END"], KeepStop::Yes, &["the E", "ND of"]);
        assert_eq!((out.concat().as_str(), stop), ("the END", Some(0)));
        let (out, stop) = held(&["END"], KeepStop::No, &["the EN"]);
        assert_eq!((out, stop), (vec!["the ".to_owned(), "EN".to_owned()], None));
        let (out, stop) = held(&[], KeepStop::No, &["a", "b"]);
        assert_eq!((out, stop), (vec!["a".to_owned(), "b".to_owned(), String::new()], None));
    }

    #[test]
    fn the_first_to_end_wins() {
        let (out, stop) = held(&["bcd", "c", "bc"], KeepStop::No, &["abcd"]);
        assert_eq!((out.concat().as_str(), stop), ("ab", Some(1)));
        let (out, stop) = held(&["xbc", "bc", "c!"], KeepStop::Yes, &["axb", "c!"]);
        assert_eq!((out.concat().as_str(), stop), ("axbc", Some(0)));
    }

    #[test]
    fn however_a_text_is_cut_it_comes_out_the_same() {
        let text = "grün, ☃ aab ☃☃! und aabaab ☃ü Ende";
        for list in [&["☃☃"][..], &["aabaab", "ab ☃ü"], &["ü E"], &["nowhere", "aabc"], &["ü"]]
        {
            let (whole, stop) = held(list, KeepStop::No, &[text]);
            let whole = whole.concat();
            for seed in 0..200_u64 {
                let mut pieces = vec![String::new()];
                for (at, c) in text.chars().enumerate() {
                    if (seed >> (at % 8)) & 1 == 1 || (at as u64 * seed).is_multiple_of(5) {
                        pieces.push(String::new());
                    }
                    pieces.last_mut().unwrap().push(c);
                }
                let pieces: Vec<_> = pieces.iter().map(String::as_str).collect();
                let (out, found) = held(list, KeepStop::No, &pieces);
                assert_eq!((out.concat(), found), (whole.clone(), stop), "{pieces:?}");
            }
        }
    }
}
