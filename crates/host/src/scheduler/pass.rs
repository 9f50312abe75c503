//! One call of the engine: its segments, and the buffers of its results, used again and again.

use std::ops::Range;

use drivetrain_engine::{
    AdapterId, Batch, EngineError, Outputs, Segment, SeqId, TokenId, TokenModel, Wanted,
};

/// Which call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Encode,
    Forward,
}

/// A batch in the making, then its results. Nothing is allocated once the buffers have grown to
/// the largest step.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    segments: Vec<Segment>,
    tokens: Vec<TokenId>,
    token_types: Vec<u32>,
    owners: Vec<Owner>,
    logits: Vec<f32>,
    hidden: Vec<f32>,
    n_logits: usize,
    dim: usize,
}

/// Whose segment it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The group's place among the running ones.
    pub(crate) group: usize,
    /// The row's place in the group.
    pub(crate) row: usize,
}

/// What a sequence puts into a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) sequence: SeqId,
    pub(crate) tokens: &'a [TokenId],
    pub(crate) token_types: &'a [u32],
    pub(crate) position: u32,
    pub(crate) wanted: Wanted,
    pub(crate) adapter: AdapterId,
}

/// Rows that the segments before one left, which is where its own start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowCursor {
    logits: usize,
    hidden: usize,
}

impl Pass {
    pub(crate) fn new(n_logits: u32, dim: u32) -> Self {
        Self { n_logits: n_logits as usize, dim: dim as usize, ..Self::default() }
    }

    pub(crate) fn clear(&mut self) {
        self.segments.clear();
        self.tokens.clear();
        self.token_types.clear();
        self.owners.clear();
    }

    pub(crate) fn push(&mut self, owner: Owner, piece: Piece<'_>) {
        let first_token = self.tokens.len();
        self.tokens.extend_from_slice(piece.tokens);
        if !piece.token_types.is_empty() {
            self.token_types.resize(first_token, 0);
            self.token_types.extend_from_slice(piece.token_types);
        }
        if !self.token_types.is_empty() {
            self.token_types.resize(self.tokens.len(), 0);
        }
        self.owners.push(owner);
        self.segments.push(Segment {
            sequence: piece.sequence,
            first_token: first_token as u32,
            n_tokens: piece.tokens.len() as u32,
            position: piece.position,
            wanted: piece.wanted,
            adapter: piece.adapter,
        });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    pub(crate) fn n_segments(&self) -> usize {
        self.segments.len()
    }

    pub(crate) fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// A segment, and whose it is.
    pub(crate) fn segment(&self, idx: usize) -> Option<(Owner, Segment)> {
        Some((*self.owners.get(idx)?, *self.segments.get(idx)?))
    }

    /// The segments from `first` on that are one group's, which follow each other.
    pub(crate) fn unit(&self, first: usize) -> Range<usize> {
        let Some(owner) = self.owners.get(first) else { return first..first };
        let rest = self.owners.get(first..).unwrap_or_default();
        first..first + rest.iter().take_while(|other| other.group == owner.group).count()
    }

    /// Runs all segments in one call; the results of segment 0 are the first.
    pub(crate) fn run_all(
        &mut self,
        call: Call,
        model: &mut dyn TokenModel,
    ) -> Result<(), EngineError> {
        self.run_some(call, model, 0..self.segments.len())
    }

    /// Runs some segments alone; the results of their first are the first.
    pub(crate) fn run_some(
        &mut self,
        call: Call,
        model: &mut dyn TokenModel,
        which: Range<usize>,
    ) -> Result<(), EngineError> {
        let segments = self.segments.get(which).unwrap_or_default();
        let batch = Batch::new(segments, &self.tokens, &self.token_types)?;
        let (n_logits_rows, n_hidden_rows) = (batch.n_logits_rows(), batch.n_hidden_rows());
        grow(&mut self.logits, n_logits_rows * self.n_logits);
        grow(&mut self.hidden, n_hidden_rows * self.dim);
        let mut out = Outputs::new(
            &mut self.logits[..n_logits_rows * self.n_logits],
            self.n_logits,
            &mut self.hidden[..n_hidden_rows * self.dim],
            self.dim,
        );
        match call {
            Call::Encode => model.encode(&batch, &mut out)?,
            Call::Forward => model.forward(&batch, &mut out)?,
        }
        let taken = (out.n_logits_taken(), out.n_hidden_taken());
        if taken != (n_logits_rows, n_hidden_rows) {
            return Err(EngineError::internal(format!(
                "the engine wrote {} rows of logits and {} of hidden states where the batch wants \
                 {n_logits_rows} and {n_hidden_rows}",
                taken.0, taken.1
            )));
        }
        Ok(())
    }

    /// The rows that a segment left, `[n, n_logits]` and `[n, dim]`, and its tokens; moves `cursor`
    /// past the rows.
    pub(crate) fn take_rows(&mut self, segment: &Segment, cursor: &mut RowCursor) -> Rows<'_> {
        let n_tokens = segment.n_tokens as usize;
        let logits = cursor.logits * self.n_logits;
        let hidden = cursor.hidden * self.dim;
        cursor.logits += segment.wanted.n_logits_rows(n_tokens);
        cursor.hidden += segment.wanted.n_hidden_rows(n_tokens);
        let first = segment.first_token as usize;
        Rows {
            logits: self.logits.get_mut(logits..cursor.logits * self.n_logits).unwrap_or_default(),
            hidden: self.hidden.get_mut(hidden..cursor.hidden * self.dim).unwrap_or_default(),
            tokens: self.tokens.get(first..first + n_tokens).unwrap_or_default(),
            n_logits: self.n_logits,
        }
    }

    /// The logits that segments of one row each left, `[n_rows, n_logits]`; moves `cursor` past them.
    pub(crate) fn take_logits(&mut self, n_rows: usize, cursor: &mut RowCursor) -> &mut [f32] {
        let start = cursor.logits * self.n_logits;
        cursor.logits += n_rows;
        self.logits.get_mut(start..cursor.logits * self.n_logits).unwrap_or_default()
    }
}

/// What a segment left.
#[derive(Debug)]
pub(crate) struct Rows<'a> {
    /// `[n, n_logits]`.
    pub(crate) logits: &'a mut [f32],
    /// `[n, dim]`.
    pub(crate) hidden: &'a mut [f32],
    /// The segment's tokens.
    pub(crate) tokens: &'a [TokenId],
    pub(crate) n_logits: usize,
}

#[cfg(test)]
impl Pass {
    /// How much the buffers hold without growing.
    pub(crate) fn capacities(&self) -> [usize; 6] {
        [
            self.segments.capacity(),
            self.tokens.capacity(),
            self.token_types.capacity(),
            self.owners.capacity(),
            self.logits.capacity(),
            self.hidden.capacity(),
        ]
    }
}

fn grow(buffer: &mut Vec<f32>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
}
