//! Drives a token model the way a host does, and checks the rows of every call.

use std::collections::BTreeSet;

use drivetrain_engine::{
    AdapterId, Batch, EngineError, ModelKind, Outputs, Segment, SeqId, TokenId, TokenModel,
    TokenModelInfo, Wanted,
};

use crate::random::Random;

/// What no engine computes: a row that still holds it was not written.
const UNWRITTEN: u32 = 0x7fc0_dead;

/// Tokens for one segment of a call.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) sequence: SeqId,
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) position: u32,
    pub(crate) wanted: Wanted,
}

/// What a piece left: its rows of logits, or of hidden states, one after the other.
pub(crate) type Rows = Vec<f32>;

/// The two calls that run a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    Encode,
    Forward,
}

/// A made-up input: what the encoder reads (encoder-decoder models) and the tokens that follow.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    pub(crate) source: Vec<TokenId>,
    pub(crate) tokens: Vec<TokenId>,
}

/// A model, the sequences that were begun on it, and the next free name.
pub(crate) struct Driver {
    model: Box<dyn TokenModel>,
    pub(crate) info: TokenModelInfo,
    alive: BTreeSet<SeqId>,
    next: u64,
    /// What all segments go through.
    pub(crate) adapter: AdapterId,
}

impl Driver {
    pub(crate) fn new(model: Box<dyn TokenModel>) -> Self {
        let info = model.info();
        Self { model, info, alive: BTreeSet::new(), next: 1, adapter: AdapterId::NONE }
    }

    pub(crate) fn model(&mut self) -> &mut dyn TokenModel {
        self.model.as_mut()
    }

    /// A sequence name never used before.
    pub(crate) fn name(&mut self) -> SeqId {
        self.next += 1;
        SeqId(self.next)
    }

    /// What the model's main output is: logits where it has some.
    pub(crate) fn all_rows(&self) -> Wanted {
        if self.info.head.is_per_token() { Wanted::AllLogits } else { Wanted::Hidden }
    }

    /// Columns of a row of [`Self::all_rows`].
    pub(crate) fn width(&self) -> usize {
        (if self.info.head.is_per_token() { self.info.n_logits } else { self.info.dim }) as usize
    }

    /// The longest text that `at_once` sequences can hold together, up to `wish`.
    pub(crate) fn longest(&self, wish: u32, at_once: u32) -> u32 {
        let share = |n: u64| u32::try_from(n / u64::from(at_once.max(1))).unwrap_or(u32::MAX);
        let capacity = if self.info.kind == ModelKind::Encoder {
            u32::MAX
        } else {
            share(self.info.kv_capacity_tokens)
        };
        let batch = share(u64::from(self.info.max_batch_tokens));
        wish.min(self.info.max_positions).min(capacity).min(batch).max(1)
    }

    /// A text of `n` tokens.
    pub(crate) fn text(&self, random: &mut Random, n: u32) -> Text {
        let n_source = match self.info.kind {
            ModelKind::EncoderDecoder => random.between(1, self.info.max_encoder_positions.min(9)),
            _ => 0,
        };
        let vocab = self.info.vocab;
        Text { source: random.tokens(n_source, vocab), tokens: random.tokens(n, vocab) }
    }

    /// Makes a sequence for `text` with nothing cached: encoder-decoder models read its source.
    pub(crate) fn begin(&mut self, text: &Text) -> Result<SeqId, EngineError> {
        let sequence = self.name();
        if self.info.kind == ModelKind::EncoderDecoder {
            let tokens = text.source.clone();
            let piece = Piece { sequence, tokens, position: 0, wanted: Wanted::Nothing };
            self.run(Pass::Encode, &[piece])?;
        }
        Ok(sequence)
    }

    /// Runs `tokens` of one sequence from `position` on, wanting every row.
    pub(crate) fn extend(
        &mut self,
        sequence: SeqId,
        position: u32,
        tokens: &[TokenId],
    ) -> Result<Rows, EngineError> {
        let wanted = self.all_rows();
        let piece = Piece { sequence, tokens: tokens.to_vec(), position, wanted };
        Ok(self.run(Pass::Forward, &[piece])?.pop().unwrap_or_default())
    }

    /// All rows of `text`, run at once on a sequence of its own that is released again.
    pub(crate) fn fresh(&mut self, text: &Text) -> Result<Rows, EngineError> {
        let sequence = self.begin(text)?;
        let rows = self.extend(sequence, 0, &text.tokens)?;
        self.release(sequence);
        Ok(rows)
    }

    /// Runs `pieces` as one batch and returns what each left.
    ///
    /// # Errors
    /// The engine's own; `Internal` if it took another number of rows than the batch wants, or left
    /// one unwritten.
    pub(crate) fn run(&mut self, pass: Pass, pieces: &[Piece]) -> Result<Vec<Rows>, EngineError> {
        let (mut segments, mut tokens) = (Vec::new(), Vec::new());
        for piece in pieces {
            segments.push(Segment {
                sequence: piece.sequence,
                first_token: tokens.len() as u32,
                n_tokens: piece.tokens.len() as u32,
                position: piece.position,
                wanted: piece.wanted,
                adapter: self.adapter,
            });
            tokens.extend_from_slice(&piece.tokens);
        }
        let batch = Batch::new(&segments, &tokens, &[])?;
        let (n_logits, dim) = (self.info.n_logits as usize, self.info.dim as usize);
        let (n_logits_rows, n_hidden_rows) = (batch.n_logits_rows(), batch.n_hidden_rows());
        let mut logits = vec![f32::from_bits(UNWRITTEN); n_logits_rows * n_logits];
        let mut hidden = vec![f32::from_bits(UNWRITTEN); n_hidden_rows * dim];
        let mut out = Outputs::new(&mut logits, n_logits, &mut hidden, dim);
        if self.info.kind != ModelKind::Encoder {
            self.alive.extend(pieces.iter().map(|piece| piece.sequence));
        }
        match pass {
            Pass::Encode => self.model.encode(&batch, &mut out)?,
            Pass::Forward => self.model.forward(&batch, &mut out)?,
        }
        let taken = (out.n_logits_taken(), out.n_hidden_taken());
        if taken != (n_logits_rows, n_hidden_rows) {
            return Err(EngineError::internal(format!(
                "the engine wrote {} rows of logits and {} of hidden states where the batch wants \
                 {n_logits_rows} and {n_hidden_rows}",
                taken.0, taken.1
            )));
        }
        if logits.iter().chain(&hidden).any(|value| value.to_bits() == UNWRITTEN) {
            return Err(EngineError::internal("the engine took a row and left it unwritten"));
        }
        Ok(split(pieces, &logits, n_logits, &hidden, dim))
    }

    pub(crate) fn fork(&mut self, from: SeqId, len: u32) -> Result<SeqId, EngineError> {
        let to = self.name();
        self.model.fork(from, to, len)?;
        self.alive.insert(to);
        Ok(to)
    }

    pub(crate) fn release(&mut self, sequence: SeqId) {
        self.alive.remove(&sequence);
        self.model.release(sequence);
    }

    /// Releases whatever a case left; the sequences that the model holds after that.
    pub(crate) fn release_all(&mut self) -> usize {
        for sequence in std::mem::take(&mut self.alive) {
            self.model.release(sequence);
        }
        self.model.n_sequences()
    }
}

fn split(
    pieces: &[Piece],
    mut logits: &[f32],
    n_logits: usize,
    mut hidden: &[f32],
    dim: usize,
) -> Vec<Rows> {
    let rows = pieces.iter().map(|piece| {
        let n_tokens = piece.tokens.len();
        let (own_logits, rest) = logits.split_at(piece.wanted.n_logits_rows(n_tokens) * n_logits);
        logits = rest;
        let (own_hidden, rest) = hidden.split_at(piece.wanted.n_hidden_rows(n_tokens) * dim);
        hidden = rest;
        [own_logits, own_hidden].concat()
    });
    rows.collect()
}
