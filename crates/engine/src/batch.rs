//! What one forward pass works on: segments of sequences, and the buffers their results go to.

use abi_stable::StableAbi;

use crate::EngineError;

/// A token's number in the model's vocabulary.
pub type TokenId = u32;

/// The host's name for a sequence. The host never uses one twice while the model lives.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId(pub u64);

/// The host's name for a loaded adapter. The host never uses one twice while the model lives.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterId(pub u32);

impl AdapterId {
    /// No adapter: the model as it is.
    pub const NONE: Self = Self(0);
}

/// What a segment leaves in [`Outputs`].
#[repr(u8)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// Nothing: the tokens only enter the KV cache.
    Nothing,
    /// One row of logits, for the segment's last token.
    LastLogits,
    /// One row of logits for each token of the segment.
    AllLogits,
    /// One row of logits, for the sequence up to the segment's last token: what a head for
    /// [sequence classification](crate::HeadKind::SequenceClassification) says of it. Which state it
    /// reads is the engine's affair in an encoder; in a decoder it is the segment's last token's.
    SequenceLogits,
    /// One row of hidden states for each token, after the model's final norm where it has one.
    Hidden,
    /// One row: the hidden state of the first token (`[CLS]`).
    PooledFirst,
    /// One row: the mean of the hidden states.
    PooledMean,
    /// One row: the element-wise maximum of the hidden states.
    PooledMax,
    /// One row: the hidden state of the last token.
    PooledLast,
    /// One row: the output of the model's own pooler (BERT: `tanh(W x_0 + b)`).
    PooledHead,
}

impl Wanted {
    /// Rows of logits that a segment of `n_tokens` leaves.
    pub fn n_logits_rows(self, n_tokens: usize) -> usize {
        match self {
            Self::LastLogits | Self::SequenceLogits => 1,
            Self::AllLogits => n_tokens,
            _ => 0,
        }
    }

    /// Rows of hidden states that a segment of `n_tokens` leaves.
    pub fn n_hidden_rows(self, n_tokens: usize) -> usize {
        match self {
            Self::Nothing | Self::LastLogits | Self::AllLogits | Self::SequenceLogits => 0,
            Self::Hidden => n_tokens,
            Self::PooledFirst
            | Self::PooledMean
            | Self::PooledMax
            | Self::PooledLast
            | Self::PooledHead => 1,
        }
    }
}

/// A run of consecutive tokens of one sequence: a whole prompt, a chunk of one, or a decode step.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The sequence the tokens belong to.
    pub sequence: SeqId,
    /// Where the segment's tokens begin in [`Batch::tokens`].
    pub first_token: u32,
    /// How many they are; at least 1.
    pub n_tokens: u32,
    /// How many tokens of the sequence are cached already, which is the position of the first one.
    /// 0 begins a new sequence.
    pub position: u32,
    /// What to leave in the outputs.
    pub wanted: Wanted,
    /// The adapter that the tokens go through; all of a sequence's go through the same.
    pub adapter: AdapterId,
}

/// The work of one call. A sequence appears in at most one segment.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    segments: &'a [Segment],
    tokens: &'a [TokenId],
    token_types: &'a [u32],
}

/// A segment with its tokens.
#[derive(Clone, Copy, Debug)]
pub struct SegmentView<'a> {
    /// The sequence the tokens belong to.
    pub sequence: SeqId,
    /// The tokens; never empty.
    pub tokens: &'a [TokenId],
    /// The token types (BERT's segment ids) of the tokens; empty when all are 0.
    pub token_types: &'a [u32],
    /// The position of the first token.
    pub position: u32,
    /// What to leave in the outputs.
    pub wanted: Wanted,
    /// The adapter that the tokens go through.
    pub adapter: AdapterId,
}

impl<'a> Batch<'a> {
    /// A batch, checked: every segment has tokens, lies inside `tokens`, and names a sequence of
    /// its own; `token_types` is empty or as long as `tokens`.
    ///
    /// # Errors
    /// `BadInput` that names the first segment which breaks a rule.
    pub fn new(
        segments: &'a [Segment],
        tokens: &'a [TokenId],
        token_types: &'a [u32],
    ) -> Result<Self, EngineError> {
        if !token_types.is_empty() && token_types.len() != tokens.len() {
            return Err(EngineError::bad_input(format!(
                "batch has {} token types for {} tokens: give one for each token, or none",
                token_types.len(),
                tokens.len()
            )));
        }
        for (idx, segment) in segments.iter().enumerate() {
            let end = u64::from(segment.first_token) + u64::from(segment.n_tokens);
            if segment.n_tokens == 0 || end > tokens.len() as u64 {
                return Err(EngineError::bad_input(format!(
                    "segment {idx} covers tokens {}..{end} of {}: it needs at least one, all inside",
                    segment.first_token,
                    tokens.len()
                )));
            }
        }
        Ok(Self { segments, tokens, token_types })
    }

    /// The segments in order.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = SegmentView<'a>> + Clone + use<'a> {
        let (tokens, token_types) = (self.tokens, self.token_types);
        self.segments.iter().map(move |segment| {
            let range =
                segment.first_token as usize..(segment.first_token + segment.n_tokens) as usize;
            SegmentView {
                sequence: segment.sequence,
                tokens: &tokens[range.clone()],
                token_types: if token_types.is_empty() { &[] } else { &token_types[range] },
                position: segment.position,
                wanted: segment.wanted,
                adapter: segment.adapter,
            }
        })
    }

    /// The segments as they cross the boundary.
    pub fn raw_segments(&self) -> &'a [Segment] {
        self.segments
    }

    /// All tokens; segments index into them.
    pub fn tokens(&self) -> &'a [TokenId] {
        self.tokens
    }

    /// All token types; empty when all are 0.
    pub fn token_types(&self) -> &'a [u32] {
        self.token_types
    }

    /// Rows of logits that the whole batch leaves.
    pub fn n_logits_rows(&self) -> usize {
        self.segments.iter().map(|s| s.wanted.n_logits_rows(s.n_tokens as usize)).sum()
    }

    /// Rows of hidden states that the whole batch leaves.
    pub fn n_hidden_rows(&self) -> usize {
        self.segments.iter().map(|s| s.wanted.n_hidden_rows(s.n_tokens as usize)).sum()
    }
}

/// Where the results of a call go: buffers of the host's, written by the engine in segment order.
///
/// Logits are f32 `[n_logits_rows, n_logits]`, hidden states f32 `[n_hidden_rows, dim]`, both
/// row-major. The engine takes the next row (or rows) of either, fills it, and goes on; the host
/// checks afterwards that exactly the rows that the batch wanted were taken.
#[derive(Debug)]
pub struct Outputs<'a> {
    pub(crate) logits: Rows<'a>,
    pub(crate) hidden: Rows<'a>,
}

#[derive(Debug)]
pub(crate) struct Rows<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) width: usize,
    pub(crate) n_taken: usize,
    pub(crate) what: &'static str,
}

impl<'a> Outputs<'a> {
    /// Buffers for logits of `n_logits` columns and hidden states of `dim` columns.
    pub fn new(logits: &'a mut [f32], n_logits: usize, hidden: &'a mut [f32], dim: usize) -> Self {
        Self {
            logits: Rows { data: logits, width: n_logits, n_taken: 0, what: "logits" },
            hidden: Rows { data: hidden, width: dim, n_taken: 0, what: "hidden states" },
        }
    }

    /// The next `n` rows of logits, to be filled: `[n, n_logits]`.
    ///
    /// # Errors
    /// `Internal` if the batch did not want that many.
    pub fn next_logits(&mut self, n: usize) -> Result<&mut [f32], EngineError> {
        self.logits.next(n)
    }

    /// The next `n` rows of hidden states, to be filled: `[n, dim]`.
    ///
    /// # Errors
    /// `Internal` if the batch did not want that many.
    pub fn next_hidden(&mut self, n: usize) -> Result<&mut [f32], EngineError> {
        self.hidden.next(n)
    }

    /// Rows of logits taken so far.
    pub fn n_logits_taken(&self) -> usize {
        self.logits.n_taken
    }

    /// Rows of hidden states taken so far.
    pub fn n_hidden_taken(&self) -> usize {
        self.hidden.n_taken
    }
}

impl Rows<'_> {
    fn next(&mut self, n: usize) -> Result<&mut [f32], EngineError> {
        let start = self.n_taken * self.width;
        let n_rows = self.data.len().checked_div(self.width).unwrap_or(0);
        let Some(rows) = self.data.get_mut(start..start + n * self.width) else {
            return Err(EngineError::internal(format!(
                "the engine wrote {} rows of {} where the batch wants {n_rows}",
                self.n_taken + n,
                self.what,
            )));
        };
        self.n_taken += n;
        Ok(rows)
    }
}

/// Pools hidden states `rows` `[n, dim]` into `out` `[dim]` as `wanted` says. Engines that hold a
/// segment's hidden states as f32 use it for every pooled form but [`Wanted::PooledHead`].
///
/// # Panics
/// If `rows` is empty, `out` is not `[dim]`, or `wanted` is not a pooling of hidden states.
pub fn pool(wanted: Wanted, rows: &[f32], out: &mut [f32]) {
    let dim = out.len();
    assert!(!rows.is_empty() && rows.len().is_multiple_of(dim), "pool: rows are [n, dim], n > 0");
    match wanted {
        Wanted::PooledFirst => out.copy_from_slice(&rows[..dim]),
        Wanted::PooledLast => out.copy_from_slice(&rows[rows.len() - dim..]),
        Wanted::PooledMean => {
            let n_rows = (rows.len() / dim) as f32;
            out.fill(0.0);
            for row in rows.chunks_exact(dim) {
                out.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
            out.iter_mut().for_each(|sum| *sum /= n_rows);
        }
        Wanted::PooledMax => {
            out.copy_from_slice(&rows[..dim]);
            for row in rows.chunks_exact(dim).skip(1) {
                out.iter_mut().zip(row).for_each(|(max, x)| *max = max.max(*x));
            }
        }
        _ => panic!("pool: {wanted:?} is not a pooling of hidden states"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(first_token: u32, n_tokens: u32, wanted: Wanted) -> Segment {
        let sequence = SeqId(u64::from(first_token));
        Segment { sequence, first_token, n_tokens, position: 0, wanted, adapter: AdapterId::NONE }
    }

    #[test]
    fn segments_see_their_own_tokens() {
        let segments = [segment(0, 2, Wanted::Nothing), segment(2, 1, Wanted::LastLogits)];
        let batch = Batch::new(&segments, &[7, 8, 9], &[]).unwrap();
        let tokens: Vec<&[TokenId]> = batch.segments().map(|s| s.tokens).collect();
        assert_eq!(tokens, [&[7, 8][..], &[9]]);
        assert_eq!((batch.n_logits_rows(), batch.n_hidden_rows()), (1, 0));
    }

    #[test]
    fn a_segment_outside_its_tokens_is_refused() {
        for (first, n) in [(0, 0), (2, 2), (u32::MAX, 2)] {
            let segments = [segment(first, n, Wanted::Nothing)];
            let error = Batch::new(&segments, &[1, 2, 3], &[]).unwrap_err();
            assert!(error.message().starts_with("segment 0 covers"), "{error}");
        }
    }

    #[test]
    fn rows_beyond_what_is_wanted_are_refused() {
        let (mut logits, mut hidden) = ([0.0; 6], [0.0; 2]);
        let mut out = Outputs::new(&mut logits, 3, &mut hidden, 2);
        out.next_logits(2).unwrap().fill(1.0);
        assert!(out.next_logits(1).is_err());
        assert_eq!(out.next_hidden(1).unwrap().len(), 2);
        assert_eq!((out.n_logits_taken(), out.n_hidden_taken()), (2, 1));
    }

    #[test]
    fn pooling_follows_its_definition() {
        let rows = [1.0, 4.0, 3.0, 2.0];
        let mut out = [0.0; 2];
        for (wanted, expect) in [
            (Wanted::PooledFirst, [1.0, 4.0]),
            (Wanted::PooledLast, [3.0, 2.0]),
            (Wanted::PooledMean, [2.0, 3.0]),
            (Wanted::PooledMax, [3.0, 4.0]),
        ] {
            pool(wanted, &rows, &mut out);
            assert_eq!(out, expect, "{wanted:?}");
        }
    }
}
