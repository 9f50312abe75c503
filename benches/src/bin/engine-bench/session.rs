//! A loaded model, driven as the host drives it: encode, forward, fork, release.

use std::time::Instant;

use drivetrain_benches::Task;
use drivetrain_benches::protocol::{Command, Done};
use drivetrain_engine::{
    AdapterId, Batch, EngineError, ModelKind, Outputs, Segment, SeqId, TokenId, TokenModel,
    TokenModelInfo, Wanted,
};

use crate::beams;

/// A model with the buffers that its results go to.
pub(crate) struct Session {
    model: Box<dyn TokenModel>,
    info: TokenModelInfo,
    logits: Vec<f32>,
    hidden: Vec<f32>,
    n_sequences_named: u64,
}

/// A piece of a sequence that a forward pass is to read.
#[derive(Clone, Debug)]
pub(crate) struct Piece<'a> {
    /// Whose it is.
    pub(crate) sequence: SeqId,
    /// Tokens that are cached already.
    pub(crate) position: usize,
    /// The tokens.
    pub(crate) tokens: &'a [TokenId],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Encoder,
    Decoder,
}

impl Session {
    pub(crate) fn new(model: Box<dyn TokenModel>) -> Self {
        let info = model.info();
        Self { model, info, logits: Vec::new(), hidden: Vec::new(), n_sequences_named: 0 }
    }

    /// Tokens of the vocabulary.
    pub(crate) fn vocab(&self) -> u32 {
        self.info.vocab
    }

    /// Columns of a row of logits.
    pub(crate) fn n_logits(&self) -> usize {
        self.info.n_logits as usize
    }

    /// Does what `command` asks, and takes the time.
    ///
    /// # Errors
    /// The engine's.
    pub(crate) fn run(&mut self, command: &Command) -> Result<Done, EngineError> {
        let sequences: Vec<SeqId> = command.ids.iter().map(|_| self.name()).collect();
        let done = match command.task {
            Task::Hidden => self.hidden(command, &sequences),
            Task::Prefill => self.prefill(command, &sequences),
            Task::Generate if command.n_beams == 1 => self.greedy(command, &sequences),
            Task::Generate => beams::generate(self, command, &sequences),
        };
        sequences.into_iter().for_each(|sequence| self.release(sequence));
        done
    }

    /// A name for a new sequence.
    pub(crate) fn name(&mut self) -> SeqId {
        self.n_sequences_named += 1;
        SeqId(self.n_sequences_named)
    }

    pub(crate) fn fork(&mut self, from: SeqId, to: SeqId, n: usize) -> Result<(), EngineError> {
        self.model.fork(from, to, n as u32)
    }

    pub(crate) fn release(&mut self, sequence: SeqId) {
        self.model.release(sequence);
    }

    /// Lets the encoder, if there is one, read the input; returns what the decoder reads first.
    pub(crate) fn begin<'a>(
        &mut self,
        ids: &'a [Vec<TokenId>],
        sequences: &[SeqId],
        decoder_start: &'a TokenId,
    ) -> Result<Vec<&'a [TokenId]>, EngineError> {
        if self.info.kind != ModelKind::EncoderDecoder {
            return Ok(ids.iter().map(Vec::as_slice).collect());
        }
        self.encode(ids, sequences)?;
        Ok(vec![std::slice::from_ref(decoder_start); ids.len()])
    }

    /// The logits of the last token of each piece, row by row.
    pub(crate) fn last_logits(&mut self, pieces: &[Piece<'_>]) -> Result<&[f32], EngineError> {
        self.call(Side::Decoder, pieces, Wanted::LastLogits)?;
        Ok(&self.logits[..pieces.len() * self.n_logits()])
    }

    fn hidden(&mut self, command: &Command, names: &[SeqId]) -> Result<Done, EngineError> {
        let has_encoder = self.info.kind == ModelKind::EncoderDecoder;
        let shifted = |ids: &Vec<TokenId>| {
            let kept = ids[..ids.len() - 1].iter().copied();
            std::iter::once(command.decoder_start).chain(kept).collect()
        };
        let inputs: Vec<Vec<TokenId>> = match has_encoder {
            true => command.ids.iter().map(shifted).collect(),
            false => command.ids.clone(),
        };
        let started = Instant::now();
        if has_encoder {
            self.encode(&command.ids, names)?;
        }
        self.call(Side::Decoder, &whole(&inputs, names), Wanted::Hidden)?;
        let mut done = Done { seconds: started.elapsed().as_secs_f64(), ..Done::default() };
        if command.wants_output {
            let dim = self.info.dim as usize;
            let mut first = 0;
            for ids in &command.ids {
                for row in [0, ids.len() / 2, ids.len() - 1] {
                    done.values.extend_from_slice(&self.hidden[(first + row) * dim..][..dim]);
                }
                first += ids.len();
            }
        }
        Ok(done)
    }

    fn prefill(&mut self, command: &Command, names: &[SeqId]) -> Result<Done, EngineError> {
        let started = Instant::now();
        let inputs = self.begin(&command.ids, names, &command.decoder_start)?;
        let pieces = pieces(&inputs, names);
        let width = self.n_logits();
        let logits = self.last_logits(&pieces)?;
        let seconds = started.elapsed().as_secs_f64();
        let values = if command.wants_output { logits[..width].to_vec() } else { Vec::new() };
        Ok(Done { seconds, values, tokens: Vec::new() })
    }

    fn greedy(&mut self, command: &Command, names: &[SeqId]) -> Result<Done, EngineError> {
        let started = Instant::now();
        let inputs = self.begin(&command.ids, names, &command.decoder_start)?;
        let mut position = inputs[0].len();
        let mut tokens: Vec<Vec<TokenId>> = vec![Vec::with_capacity(command.n_new); names.len()];
        let mut last = self.best(&pieces(&inputs, names), command.eos)?;
        loop {
            tokens.iter_mut().zip(&last).for_each(|(tokens, token)| tokens.push(*token));
            if tokens[0].len() == command.n_new {
                break;
            }
            let singles: Vec<&[TokenId]> = last.iter().map(std::slice::from_ref).collect();
            let mut steps = pieces(&singles, names);
            steps.iter_mut().for_each(|step| step.position = position);
            last = self.best(&steps, command.eos)?;
            position += 1;
        }
        Ok(Done { seconds: started.elapsed().as_secs_f64(), values: Vec::new(), tokens })
    }

    /// The best token after each piece, other than `eos`.
    fn best(&mut self, pieces: &[Piece<'_>], eos: TokenId) -> Result<Vec<TokenId>, EngineError> {
        let width = self.n_logits();
        let rows = self.last_logits(pieces)?.chunks_exact(width);
        Ok(rows.map(|row| arg_max(row, eos)).collect())
    }

    fn encode(&mut self, ids: &[Vec<TokenId>], names: &[SeqId]) -> Result<(), EngineError> {
        self.call(Side::Encoder, &whole(ids, names), Wanted::Nothing)
    }

    /// Runs all pieces, in as many batches as the engine's bound on tokens asks for.
    fn call(
        &mut self,
        side: Side,
        pieces: &[Piece<'_>],
        wanted: Wanted,
    ) -> Result<(), EngineError> {
        let (width, dim) = (self.n_logits(), self.info.dim as usize);
        let rows = |count: fn(Wanted, usize) -> usize, pieces: &[Piece<'_>]| -> usize {
            pieces.iter().map(|piece| count(wanted, piece.tokens.len())).sum()
        };
        grow(&mut self.logits, rows(Wanted::n_logits_rows, pieces) * width);
        grow(&mut self.hidden, rows(Wanted::n_hidden_rows, pieces) * dim);
        let (mut n_logits, mut n_hidden) = (0, 0);
        for pieces in batches(pieces, self.info.max_batch_tokens as usize) {
            let (tokens, segments) = batch_of(pieces, wanted);
            let batch = Batch::new(&segments, &tokens, &[])?;
            let logits_end = n_logits + batch.n_logits_rows() * width;
            let hidden_end = n_hidden + batch.n_hidden_rows() * dim;
            let mut out = Outputs::new(
                &mut self.logits[n_logits..logits_end],
                width,
                &mut self.hidden[n_hidden..hidden_end],
                dim,
            );
            match side {
                Side::Encoder => self.model.encode(&batch, &mut out)?,
                Side::Decoder => self.model.forward(&batch, &mut out)?,
            }
            (n_logits, n_hidden) = (logits_end, hidden_end);
        }
        Ok(())
    }
}

/// Sequences from their beginning.
fn whole<'a>(ids: &'a [Vec<TokenId>], names: &[SeqId]) -> Vec<Piece<'a>> {
    let inputs: Vec<&[TokenId]> = ids.iter().map(Vec::as_slice).collect();
    pieces(&inputs, names)
}

fn pieces<'a>(inputs: &[&'a [TokenId]], names: &[SeqId]) -> Vec<Piece<'a>> {
    let piece = |(tokens, sequence): (&&'a [TokenId], &SeqId)| Piece {
        sequence: *sequence,
        position: 0,
        tokens,
    };
    inputs.iter().zip(names).map(piece).collect()
}

/// Cuts `pieces` where their tokens would pass `most`.
fn batches<'a, 'b>(pieces: &'b [Piece<'a>], most: usize) -> Vec<&'b [Piece<'a>]> {
    let (mut batches, mut start, mut n_tokens) = (Vec::new(), 0, 0);
    for (idx, piece) in pieces.iter().enumerate() {
        if idx > start && n_tokens + piece.tokens.len() > most {
            batches.push(&pieces[start..idx]);
            (start, n_tokens) = (idx, 0);
        }
        n_tokens += piece.tokens.len();
    }
    batches.push(&pieces[start..]);
    batches
}

fn batch_of(pieces: &[Piece<'_>], wanted: Wanted) -> (Vec<TokenId>, Vec<Segment>) {
    let mut tokens = Vec::new();
    let segments = pieces
        .iter()
        .map(|piece| {
            let first_token = tokens.len() as u32;
            tokens.extend_from_slice(piece.tokens);
            Segment {
                sequence: piece.sequence,
                first_token,
                n_tokens: piece.tokens.len() as u32,
                position: piece.position as u32,
                wanted,
                adapter: AdapterId::NONE,
            }
        })
        .collect();
    (tokens, segments)
}

fn grow(buffer: &mut Vec<f32>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
}

fn arg_max(row: &[f32], never: TokenId) -> TokenId {
    let mut best = (0, f32::NEG_INFINITY);
    for (idx, value) in row.iter().enumerate() {
        if *value > best.1 && idx != never as usize {
            best = (idx, *value);
        }
    }
    best.0 as TokenId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_stay_within_the_bound() {
        let tokens = [0; 10];
        let piece =
            |n: usize| Piece { sequence: SeqId(n as u64), position: 0, tokens: &tokens[..n] };
        let all = [piece(3), piece(4), piece(5), piece(10), piece(1)];
        let sizes: Vec<usize> = batches(&all, 8).iter().map(|batch| batch.len()).collect();
        assert_eq!(sizes, [2, 1, 1, 1]);
        assert_eq!(batches(&all, 100).len(), 1);
    }

    #[test]
    fn the_best_token_is_never_the_forbidden_one() {
        assert_eq!(arg_max(&[0.0, 3.0, 2.0, 1.0], 9), 1);
        assert_eq!(arg_max(&[0.0, 3.0, 2.0, 1.0], 1), 2);
    }
}
