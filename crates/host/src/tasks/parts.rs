//! Texts and pairs of texts in tokens, cut and put together as transformers' tokenizers do it.
//!
//! Source: tokenizers 0.22, `utils/truncation.rs`, and transformers 4.57, `tokenization_utils_fast.py`.

use std::ops::Range;

use drivetrain_artifacts::SpecialTokens;

use super::text::{Encoded, Text};
use crate::HostError;

/// A text, or two, in tokens, with the special tokens around them apart.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    all: Encoded,
    /// The tokens of the first text, and of the second where there is one.
    texts: [Range<usize>; 2],
    has_second: bool,
}

/// What a model reads of [`Parts`].
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Input {
    pub(super) ids: Vec<u32>,
    pub(super) type_ids: Vec<u32>,
    /// Where each token comes from: which text it is part of, and its place in [`Parts`].
    pub(super) origins: Vec<Origin>,
    /// The place of one token that is not where the whole text's tokens say.
    moved: Option<(usize, (usize, usize))>,
}

impl Input {
    /// First byte and end of the token at `idx` of what was encoded.
    pub(super) fn offsets(&self, encoded: &Encoded, idx: usize) -> (usize, usize) {
        match self.moved {
            Some((moved, offsets)) if moved == idx => offsets,
            _ => encoded.offsets.get(idx).copied().unwrap_or_default(),
        }
    }
}

/// Where a token comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// 0 or 1; `None` for a special token that was put around the texts.
    pub(super) text: Option<usize>,
    /// Its place among the tokens of all that was encoded.
    pub(super) idx: usize,
}

/// How two texts are cut that are too long together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// A token at a time from the longer one.
    Longest,
    /// From the first.
    First,
}

impl Parts {
    /// One text.
    pub(super) fn single(
        text: &dyn Text,
        one: &str,
        special: SpecialTokens,
    ) -> Result<Self, HostError> {
        Ok(Self::of(text.encode(one, special)?))
    }

    /// One text that has its tokens.
    pub(super) fn of(all: Encoded) -> Self {
        let n = all.ids.len();
        let head = all.special.iter().take_while(|special| **special).count();
        let tail = all.special.iter().skip(head).rev().take_while(|special| **special).count();
        Self { texts: [head..n - tail, n..n], all, has_second: false }
    }

    /// Two texts.
    pub(super) fn pair(text: &dyn Text, first: &str, second: &str) -> Result<Self, HostError> {
        let n_first = text.encode(first, SpecialTokens::None)?.ids.len();
        let all = text.encode_pair(first, second)?;
        let n = all.ids.len();
        let n_plain = all.special.iter().filter(|special| !**special).count();
        let n_first = n_first.min(n_plain);
        // The post-processor puts its tokens before, between and behind; nothing else tells where
        // the first text ends if its tokens are followed by none.
        let run = |from: usize| {
            all.special.get(from..).unwrap_or_default().iter().take_while(|s| **s).count()
        };
        let head = run(0);
        let middle = head + n_first + run(head + n_first);
        let texts = [head..head + n_first, middle..(middle + n_plain - n_first).min(n)];
        Ok(Self { all, texts, has_second: true })
    }

    /// Tokens in all.
    pub(super) fn len(&self) -> usize {
        self.all.ids.len()
    }

    /// Special tokens around the texts.
    pub(super) fn n_around(&self) -> usize {
        self.len() - self.texts.iter().map(ExactSizeIterator::len).sum::<usize>()
    }

    /// Tokens of text 0 or 1.
    pub(super) fn n_of(&self, text: usize) -> usize {
        self.texts.get(text).map_or(0, ExactSizeIterator::len)
    }

    /// The encoding that [`Origin::idx`] points into.
    pub(super) fn encoded(&self) -> &Encoded {
        &self.all
    }

    /// All of it.
    pub(super) fn whole(&self) -> Input {
        self.take([0..self.n_of(0), 0..self.n_of(1)])
    }

    /// As much of it as fits into `limit` tokens; `None` where the special tokens, or the text that
    /// is not cut, are too many alone.
    pub(super) fn cut(&self, limit: usize, how: Cut) -> Option<Input> {
        if self.len() <= limit {
            return Some(self.whole());
        }
        let room = limit.checked_sub(self.n_around())?;
        let (n0, n1) = (self.n_of(0), self.n_of(1));
        let kept = match (self.has_second, how) {
            (false, _) => [room.min(n0), 0],
            (true, Cut::First) => {
                let kept = room.checked_sub(n1).filter(|kept| *kept > 0)?;
                [kept, n1]
            }
            (true, Cut::Longest) => longest_first(n0, n1, room),
        };
        Some(self.take([0..kept[0], 0..kept[1]]))
    }

    /// Windows over text `which` that leave the other whole, each of `limit` tokens at most, of which
    /// the first `stride` of the window are those that the one before ended with.
    ///
    /// # Errors
    /// The room that a window has when there is none for it, or none beyond the stride.
    pub(super) fn windows(
        &self,
        which: usize,
        limit: usize,
        stride: usize,
    ) -> Result<Vec<Input>, i64> {
        let n = self.n_of(which);
        let other = self.n_of(1 - which);
        let rest = self.n_around() + other;
        if self.len() <= limit {
            return Ok(vec![self.whole()]);
        }
        let room = limit as i64 - rest as i64;
        if room <= 0 || stride as i64 >= room {
            return Err(room);
        }
        let (room, step) = (room as usize, room as usize - stride);
        let mut windows = Vec::new();
        let mut start = 0;
        loop {
            let end = (start + room).min(n);
            let mut ranges = [0..other, 0..other];
            if let Some(range) = ranges.get_mut(which) {
                *range = start..end;
            }
            windows.push(self.take(ranges));
            if end == n {
                return Ok(windows);
            }
            start += step;
        }
    }

    /// Gives the first tokens of all windows over text `which` but the first their spaces back, which
    /// some tokenizers leave out of the places of all tokens but those.
    pub(super) fn untrim(&self, windows: &mut [Input], which: usize, text: &dyn Text) {
        if !text.keeps_first_space() {
            return;
        }
        for window in windows.iter_mut().skip(1) {
            let own = window.origins.iter().zip(&window.ids);
            let first = own.into_iter().find(|(origin, _)| origin.text == Some(which));
            let Some((origin, id)) = first else { continue };
            let token = text.id_to_token(*id).unwrap_or_default();
            let is_space = |letter: &char| *letter == 'Ġ' || letter.is_whitespace();
            let n_spaces = token.chars().take_while(is_space).count();
            let (start, end) = window.offsets(&self.all, origin.idx);
            let start = start.saturating_sub(n_spaces);
            let end = if n_spaces == token.chars().count() { start } else { end };
            window.moved = Some((origin.idx, (start, end)));
        }
    }

    /// The special tokens, with these tokens of the texts.
    fn take(&self, kept: [Range<usize>; 2]) -> Input {
        let mut input = Input::default();
        for (idx, id) in self.all.ids.iter().enumerate() {
            let text = self.texts.iter().position(|range| range.contains(&idx));
            let is_kept = text.is_none_or(|text| {
                let (range, kept) = (self.texts.get(text), kept.get(text));
                range.zip(kept).is_some_and(|(range, kept)| kept.contains(&(idx - range.start)))
            });
            if is_kept {
                input.ids.push(*id);
                input.type_ids.push(self.all.type_ids.get(idx).copied().unwrap_or(0));
                input.origins.push(Origin { text, idx });
            }
        }
        input
    }
}

/// What is left of two texts that are cut, a token at a time from the longer one, to `room`.
fn longest_first(n0: usize, n1: usize, room: usize) -> [usize; 2] {
    let (short, long) = (n0.min(n1), n0.max(n1));
    let (mut a, mut b) = (short, if short > room { short } else { short.max(room - short) });
    if a + b > room {
        a = room / 2;
        b = a + room % 2;
    }
    let (short, long) = (a.min(short), b.min(long));
    if n0 > n1 { [long, short] } else { [short, long] }
}

/// Places in a text counted in letters, as transformers counts them, for places in bytes.
#[derive(Debug)]
pub(super) struct Letters<'a> {
    text: &'a str,
    /// The letter that each byte is part of; empty where each byte is one.
    of_byte: Vec<u32>,
}

impl<'a> Letters<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let mut of_byte = Vec::new();
        if !text.is_ascii() {
            of_byte.reserve_exact(text.len());
            for (idx, letter) in text.chars().enumerate() {
                of_byte.extend(std::iter::repeat_n(idx as u32, letter.len_utf8()));
            }
        }
        Self { text, of_byte }
    }

    /// The letters that a token's bytes are of.
    pub(super) fn range(&self, (start, end): (usize, usize)) -> (usize, usize) {
        let n = self.text.len();
        let (start, end) = (start.min(n), end.min(n));
        if self.of_byte.is_empty() {
            return (start, end);
        }
        let n_letters = self.of_byte.last().map_or(0, |last| *last as usize + 1);
        let at = |byte: usize| self.of_byte.get(byte).map(|letter| *letter as usize);
        let first = at(start).unwrap_or(n_letters);
        let last = if end > start { at(end - 1).map_or(first, |letter| letter + 1) } else { first };
        // A token that ends inside a letter has all of it, as its neighbour does.
        (first, last)
    }

    /// The letters from `start` to `end`.
    pub(super) fn slice(&self, start: usize, end: usize) -> &'a str {
        if self.of_byte.is_empty() {
            return self.text.get(start..end.max(start)).unwrap_or_default();
        }
        let byte = |letter: usize| {
            self.of_byte.partition_point(|own| (*own as usize) < letter).min(self.text.len())
        };
        self.text.get(byte(start)..byte(end.max(start))).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(special: &[u8], first: Range<usize>, second: Option<Range<usize>>) -> Parts {
        let n = special.len();
        let all = Encoded {
            ids: (0..n as u32).collect(),
            special: special.iter().map(|s| *s == 1).collect(),
            ..Encoded::default()
        };
        let has_second = second.is_some();
        Parts { all, texts: [first, second.unwrap_or(n..n)], has_second }
    }

    #[test]
    fn pairs_are_cut_as_tokenizers_cuts_them() {
        // tokenizers 0.22, `truncate_encodings` with `LongestFirst`: lengths before, room, after.
        for (n0, n1, room, expect) in [
            (5, 3, 8, [5, 3]),
            (5, 3, 7, [4, 3]),
            (9, 2, 6, [4, 2]),
            (2, 9, 6, [2, 4]),
            (9, 9, 7, [3, 4]),
            (9, 8, 7, [4, 3]),
            (9, 9, 0, [0, 0]),
        ] {
            assert_eq!(longest_first(n0, n1, room), expect, "{n0} {n1} {room}");
        }
    }

    #[test]
    fn windows_overlap_and_keep_the_other_text() {
        // [C] q q [S] c*6 [S]
        let parts = parts(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1], 1..3, Some(4..10));
        let ids = |limit, stride| {
            let windows = parts.windows(1, limit, stride)?;
            Ok::<_, i64>(windows.into_iter().map(|window| window.ids).collect::<Vec<_>>())
        };
        assert_eq!(ids(11, 1).unwrap().len(), 1);
        assert_eq!(
            ids(9, 2).unwrap(),
            [vec![0, 1, 2, 3, 4, 5, 6, 7, 10], vec![0, 1, 2, 3, 6, 7, 8, 9, 10]]
        );
        assert_eq!(ids(8, 1).unwrap().len(), 3);
        assert_eq!(ids(7, 2), Err(2));
        assert_eq!(ids(4, 0), Err(-1));
        // The second text and what stands around leave no room for the first.
        assert!(parts.cut(9, Cut::First).is_none());
        assert_eq!(parts.cut(10, Cut::First).unwrap().ids, [0, 1, 3, 4, 5, 6, 7, 8, 9, 10]);
    }

    #[test]
    fn letters_are_counted() {
        let letters = Letters::new("aé日b");
        assert_eq!(letters.range((0, 1)), (0, 1));
        assert_eq!(letters.range((1, 3)), (1, 2));
        assert_eq!(letters.range((3, 7)), (2, 4));
        assert_eq!(letters.range((7, 7)), (4, 4));
        assert_eq!(letters.slice(1, 3), "é日");
        assert_eq!(Letters::new("abc").slice(1, 9), "");
        assert_eq!(Letters::new("abc").range((1, 2)), (1, 2));
    }
}
