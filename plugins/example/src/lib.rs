//! The smallest engine: a bigram language model over bytes, counted from `corpus.txt` in its model
//! directory. It is what an engine's author copies; `docs/plugins/tutorial.md` walks through it.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::num::NonZeroU32;

use drivetrain_engine::{
    Batch, Engine, EngineError, EngineInfo, ErrorKind, HeadKind, LoadRequest, LoadedModel,
    ModelKind, Outputs, SegmentView, SeqId, TokenId, TokenModel, TokenModelInfo, Wanted,
    export_engine,
};

/// Every byte is a token, and its own id.
const VOCAB: usize = 256;
const MAX_POSITIONS: usize = 1024;
const MAX_SEQUENCES: usize = 256;

export_engine!(Example);

/// The engine: one value for the whole process.
pub struct Example;

impl Engine for Example {
    fn info(&self) -> EngineInfo {
        EngineInfo {
            name: "example".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            description: "a bigram language model, to copy when writing an engine".into(),
            devices: vec!["cpu".into()],
            ..EngineInfo::default()
        }
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        let smoothing = request.options.parse::<NonZeroU32>("smoothing", "1 or more")?;
        let path = request.model_dir.join("corpus.txt");
        let unreadable = format!("{}: can't be read", path.display());
        let corpus = std::fs::read(&path)
            .map_err(|error| EngineError::wrap(ErrorKind::BadInput, unreadable, &error))?;
        let mut table = vec![smoothing.map_or(1, NonZeroU32::get) as f32; VOCAB * VOCAB];
        for (done, pair) in corpus.windows(2).enumerate() {
            table[usize::from(pair[0]) * VOCAB + usize::from(pair[1])] += 1.0;
            if done % (1 << 20) == 0 {
                request.services.progress("counting", done as u64, corpus.len() as u64);
                if request.services.cancelled() {
                    return Err(EngineError::new(ErrorKind::Cancelled, "loading was cancelled"));
                }
            }
        }
        for row in table.chunks_exact_mut(VOCAB) {
            let total: f32 = row.iter().sum();
            row.iter_mut().for_each(|n| *n = (*n / total).ln());
        }
        Ok(LoadedModel::Token(Box::new(Bigram { table, sequences: HashMap::new() })))
    }
}

/// A loaded model: the table, and the tokens of every sequence alive, which are its "KV cache".
struct Bigram {
    /// `ln p(next | previous)`: `[VOCAB, VOCAB]`, a row for each previous token.
    table: Vec<f32>,
    sequences: HashMap<SeqId, Vec<TokenId>>,
}

impl TokenModel for Bigram {
    fn info(&self) -> TokenModelInfo {
        TokenModelInfo {
            kind: ModelKind::Decoder,
            vocab: VOCAB as u32,
            head: HeadKind::LanguageModel,
            n_logits: VOCAB as u32,
            max_positions: MAX_POSITIONS as u32,
            kv_capacity_tokens: (MAX_SEQUENCES * MAX_POSITIONS) as u64,
            kv_bytes_per_token: size_of::<TokenId>() as u64,
            // `fork` copies: a block that no sequence fills is never counted as shared.
            kv_block_tokens: MAX_POSITIONS as u32 + 1,
            max_sequences: MAX_SEQUENCES as u32,
            max_batch_tokens: 16 * MAX_POSITIONS as u32,
            weight_bytes: size_of_val(self.table.as_slice()) as u64,
            n_parameters: self.table.len() as u64,
            // No encoder, no hidden states, no adapters.
            ..TokenModelInfo::default()
        }
    }

    fn forward(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        let mut n_sequences = self.sequences.len();
        for segment in batch.segments() {
            self.check(&segment)?;
            n_sequences += usize::from(!self.sequences.contains_key(&segment.sequence));
        }
        fits(n_sequences)?;
        for SegmentView { tokens, wanted, .. } in batch.segments() {
            let n_silent = tokens.len() - wanted.n_logits_rows(tokens.len());
            for token in &tokens[n_silent..] {
                let row = *token as usize * VOCAB;
                out.next_logits(1)?.copy_from_slice(&self.table[row..row + VOCAB]);
            }
        }
        // Nothing fails from here on: an error has changed no sequence.
        for SegmentView { sequence, tokens, .. } in batch.segments() {
            let cached = self.sequences.entry(sequence).or_insert_with(empty);
            cached.extend_from_slice(tokens);
        }
        Ok(())
    }

    fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<(), EngineError> {
        if self.sequences.contains_key(&to) {
            return Err(EngineError::bad_input(format!("sequence {}: exists already", to.0)));
        }
        fits(self.sequences.len() + 1)?;
        let mut copy = empty();
        copy.extend(&self.known(from, len)?[..len as usize]);
        self.sequences.insert(to, copy);
        Ok(())
    }

    fn truncate(&mut self, sequence: SeqId, len: u32) -> Result<(), EngineError> {
        self.known(sequence, len)?.truncate(len as usize);
        Ok(())
    }

    fn release(&mut self, sequence: SeqId) {
        self.sequences.remove(&sequence);
    }

    fn n_sequences(&self) -> usize {
        self.sequences.len()
    }
}

/// A sequence without tokens, which will not have to grow.
fn empty() -> Vec<TokenId> {
    Vec::with_capacity(MAX_POSITIONS)
}

/// Refuses more sequences than the model has said it takes.
fn fits(n_sequences: usize) -> Result<(), EngineError> {
    match n_sequences {
        ..=MAX_SEQUENCES => Ok(()),
        n => Err(EngineError::out_of_memory(format!("{n} sequences: {MAX_SEQUENCES} fit"))),
    }
}

impl Bigram {
    /// Refuses a segment that can't run; checked for the whole batch before anything changes.
    fn check(&self, segment: &SegmentView<'_>) -> Result<(), EngineError> {
        let SegmentView { sequence: SeqId(id), position, tokens, wanted, .. } = *segment;
        let len = self.sequences.get(&segment.sequence).map_or(0, Vec::len);
        let end = len + tokens.len();
        let problem = if position as usize != len {
            format!("holds {len} tokens, so the next position is {len}, not {position}")
        } else if end > MAX_POSITIONS {
            format!("would hold {end} tokens, at most {MAX_POSITIONS} fit")
        } else if let Some(token) = tokens.iter().find(|token| **token as usize >= VOCAB) {
            format!("token {token} is outside of the vocabulary of {VOCAB}")
        } else if !matches!(wanted, Wanted::Nothing | Wanted::LastLogits | Wanted::AllLogits) {
            format!("{wanted:?} is wanted, and this model has logits only")
        } else {
            return Ok(());
        };
        Err(EngineError::bad_input(format!("sequence {id}: {problem}")))
    }

    /// The tokens of a sequence that has to hold at least `len`.
    fn known(&mut self, sequence: SeqId, len: u32) -> Result<&mut Vec<TokenId>, EngineError> {
        let tokens = self.sequences.get_mut(&sequence);
        tokens.filter(|tokens| tokens.len() >= len as usize).ok_or_else(|| {
            let id = sequence.0;
            EngineError::bad_input(format!("sequence {id}: unknown, or shorter than {len} tokens"))
        })
    }
}
