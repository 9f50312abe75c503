//! The token model: a recurrence whose state is its cache, so that every token of the past, and its
//! place, shows in every output.
//!
//! ```text
//! state[0]    = the mean of the encoder's input, embedded; 0 without one     [DIM]
//! state[i+1]  = state[i] / 2 + embed(token[i], i)                            [DIM]
//! hidden[i]   = state[i+1]
//! logits[i]   = hidden[i] · embed(v, 0) for every v of the vocabulary        [VOCAB]
//! ```

use std::collections::HashMap;

use drivetrain_engine::{
    Batch, DefaultDecoderInput, EngineError, ErrorKind, HeadKind, ModelKind, Outputs, SegmentView,
    SeqId, TokenId, TokenModel, TokenModelInfo, Wanted, pool,
};

use crate::fault::Fault;

const DIM: usize = 6;
const VOCAB: u32 = 23;
const MAX_POSITIONS: u32 = 64;
const MAX_SEQUENCES: u32 = 16;

type State = [f32; DIM];

/// A sequence's cache.
#[derive(Clone)]
struct Sequence {
    /// The state before the first token and after each one.
    states: Vec<State>,
    origin: Option<SeqId>,
}

impl Sequence {
    fn new(first: State) -> Self {
        Self { states: vec![first], origin: None }
    }

    fn len(&self) -> u32 {
        self.states.len() as u32 - 1
    }

    fn last(&self) -> State {
        self.states.last().copied().unwrap_or_default()
    }
}

pub(crate) struct Reference {
    kind: ModelKind,
    fault: Fault,
    sequences: HashMap<SeqId, Sequence>,
    /// Forks that are their origin, for the fault of that name.
    aliases: HashMap<SeqId, SeqId>,
    n_calls: u32,
}

impl Reference {
    pub(crate) fn new(kind: ModelKind, fault: Fault) -> Self {
        let (sequences, aliases) = (HashMap::new(), HashMap::new());
        Self { kind, fault, sequences, aliases, n_calls: 0 }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn wrong(&self, message: String) -> EngineError {
        let internal = self.has(Fault::WrongKind);
        EngineError::new(if internal { ErrorKind::Internal } else { ErrorKind::BadInput }, message)
    }

    fn resolve(&self, sequence: SeqId) -> SeqId {
        self.aliases.get(&sequence).copied().unwrap_or(sequence)
    }

    fn check(&self, segment: &SegmentView<'_>) -> Result<(), EngineError> {
        let SeqId(id) = segment.sequence;
        let known = self.sequences.get(&self.resolve(segment.sequence));
        if known.is_none()
            && !self.has(Fault::AnySequence)
            && (segment.position > 0 || self.kind == ModelKind::EncoderDecoder)
        {
            return Err(self.wrong(format!("sequence {id}: unknown")));
        }
        let len = known.map_or(0, Sequence::len);
        let any = self.has(Fault::AnyPosition)
            || self.has(Fault::TruncateIgnored)
            || (known.is_none() && self.has(Fault::AnySequence));
        if segment.position != len && !any {
            let found = segment.position;
            return Err(self.wrong(format!("sequence {id}: position {found}, expected {len}")));
        }
        if len as usize + segment.tokens.len() > MAX_POSITIONS as usize
            && !self.has(Fault::AnyLength)
        {
            return Err(self.wrong(format!("sequence {id}: longer than {MAX_POSITIONS}")));
        }
        self.check_tokens(segment)
    }

    fn check_tokens(&self, segment: &SegmentView<'_>) -> Result<(), EngineError> {
        let SeqId(id) = segment.sequence;
        if let Some(token) = segment.tokens.iter().find(|token| **token >= VOCAB)
            && !self.has(Fault::AnyToken)
        {
            return Err(self.wrong(format!("sequence {id}: token {token} of {VOCAB}")));
        }
        if segment.wanted == Wanted::PooledHead && !self.has(Fault::HiddenPooler) {
            return Err(self.wrong(format!("sequence {id}: there is no pooler")));
        }
        if segment.wanted == Wanted::SequenceLogits && !self.has(Fault::HiddenClassifier) {
            return Err(self.wrong(format!("sequence {id}: there is no classifier")));
        }
        Ok(())
    }

    /// Refuses new sequences and tokens beyond the capacity.
    fn check_room(&self, batch: &Batch<'_>) -> Result<(), EngineError> {
        let is_new = |segment: &SegmentView<'_>| {
            !self.sequences.contains_key(&self.resolve(segment.sequence))
        };
        let n_sequences = self.sequences.len() + batch.segments().filter(is_new).count();
        let n_cached: usize = self.sequences.values().map(|sequence| sequence.len() as usize).sum();
        let share = |fault, stated: u32| if self.has(fault) { stated / 2 } else { stated };
        let most_sequences = share(Fault::SequencesLie, MAX_SEQUENCES);
        let most_tokens = share(Fault::CapacityLie, MAX_SEQUENCES * MAX_POSITIONS);
        if n_sequences > most_sequences as usize {
            return Err(EngineError::out_of_memory(format!("{most_sequences} sequences fit")));
        }
        if n_cached + batch.tokens().len() > most_tokens as usize {
            return Err(EngineError::out_of_memory(format!("{most_tokens} tokens fit")));
        }
        Ok(())
    }

    /// Runs one segment on `sequence` and writes what it wants.
    fn run(
        &self,
        sequence: &mut Sequence,
        segment: &SegmentView<'_>,
        n_segments: usize,
        out: &mut Outputs<'_>,
    ) -> Result<(), EngineError> {
        let first = sequence.states.len();
        for token in segment.tokens {
            let state = next_state(sequence.last(), *token, sequence.len());
            sequence.states.push(state);
        }
        let mut hidden: Vec<State> = sequence.states[first..].to_vec();
        let shift = match self.fault {
            Fault::Nondeterministic => self.n_calls as f32 * 1e-6,
            Fault::BatchDependent => (n_segments - 1) as f32 * 0.01,
            Fault::ChunkDependent => segment.tokens.len() as f32 * 0.01,
            _ => 0.0,
        };
        hidden.iter_mut().for_each(|state| state[0] += shift);
        self.write(segment, &hidden, out)
    }

    fn write(
        &self,
        segment: &SegmentView<'_>,
        hidden: &[State],
        out: &mut Outputs<'_>,
    ) -> Result<(), EngineError> {
        let (wanted, n_tokens) = (segment.wanted, segment.tokens.len());
        let mut rows = match wanted {
            Wanted::LastLogits if self.has(Fault::WrongLastRow) => hidden[..1].to_vec(),
            Wanted::LastLogits | Wanted::SequenceLogits => hidden[n_tokens - 1..].to_vec(),
            _ => hidden.to_vec(),
        };
        if self.has(Fault::MissingRow) && wanted == Wanted::AllLogits {
            rows.pop();
        }
        if self.has(Fault::ExtraRow) && wanted == Wanted::AllLogits {
            rows.push([0.0; DIM]);
        }
        match wanted {
            Wanted::Nothing => {}
            Wanted::LastLogits | Wanted::AllLogits | Wanted::SequenceLogits => {
                for (idx, row) in rows.iter().enumerate() {
                    let logits = out.next_logits(1)?;
                    if self.has(Fault::UnwrittenRow) && idx > 0 {
                        continue;
                    }
                    for (token, logit) in logits.iter_mut().enumerate() {
                        let column = embed(token as TokenId, 0);
                        *logit = row.iter().zip(column).map(|(a, b)| a * b).sum();
                    }
                }
            }
            Wanted::Hidden => out.next_hidden(n_tokens)?.copy_from_slice(rows.as_flattened()),
            Wanted::PooledHead => out.next_hidden(1)?.fill(1.0),
            _ => {
                let n_forgotten = usize::from(self.has(Fault::WrongPooling) && n_tokens > 1);
                pool(wanted, rows[n_forgotten..].as_flattened(), out.next_hidden(1)?);
            }
        }
        Ok(())
    }
}

impl TokenModel for Reference {
    fn info(&self) -> TokenModelInfo {
        let crosses = u32::from(self.kind == ModelKind::EncoderDecoder);
        TokenModelInfo {
            kind: self.kind,
            vocab: VOCAB,
            head: HeadKind::LanguageModel,
            n_logits: VOCAB,
            dim: DIM as u32,
            max_positions: MAX_POSITIONS,
            max_encoder_positions: crosses * MAX_POSITIONS,
            kv_capacity_tokens: u64::from(MAX_SEQUENCES * MAX_POSITIONS),
            kv_bytes_per_token: size_of::<State>() as u64,
            kv_block_tokens: MAX_POSITIONS + 1,
            cross_capacity_tokens: u64::from(crosses * MAX_SEQUENCES * MAX_POSITIONS),
            cross_bytes_per_token: 0,
            max_sequences: MAX_SEQUENCES,
            max_batch_tokens: MAX_SEQUENCES * MAX_POSITIONS,
            weight_bytes: 0,
            n_parameters: 0,
            default_decoder_input: DefaultDecoderInput::None,
            has_pooler: false,
            has_adapters: self.has(Fault::AnyAdapter),
        }
    }

    fn encode(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        if self.kind != ModelKind::EncoderDecoder {
            return Err(EngineError::unsupported("this model has no encoder beside its decoder"));
        }
        for segment in batch.segments() {
            self.check_tokens(&segment)?;
            if segment.tokens.len() > MAX_POSITIONS as usize {
                return Err(self.wrong(format!("an input longer than {MAX_POSITIONS}")));
            }
        }
        if self.sequences.len() + batch.segments().len() > MAX_SEQUENCES as usize {
            return Err(EngineError::out_of_memory(format!("{MAX_SEQUENCES} sequences fit")));
        }
        let n_segments = batch.segments().len();
        for segment in batch.segments() {
            let mut input = Sequence::new([0.0; DIM]);
            self.run(&mut input, &segment, n_segments, out)?;
            let first = if self.has(Fault::IgnoresEncoder) { [0.0; DIM] } else { input.last() };
            self.sequences.insert(segment.sequence, Sequence::new(first));
        }
        Ok(())
    }

    fn forward(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        if self.has(Fault::PanicInForward) {
            panic!("forward gave up");
        }
        self.n_calls += 1;
        for segment in batch.segments() {
            let checked = self.check(&segment);
            if checked.is_ok() && self.has(Fault::HalfBatch) {
                let sequence = self.resolve(segment.sequence);
                if let Some(known) = self.sequences.get_mut(&sequence)
                    && batch.segments().len() > 1
                {
                    known.states.push([0.5; DIM]);
                }
            }
            checked?;
        }
        if self.kind != ModelKind::Encoder {
            self.check_room(batch)?;
        }
        let n_segments = batch.segments().len();
        let mut changed = Vec::with_capacity(n_segments);
        for segment in batch.segments() {
            let name = self.resolve(segment.sequence);
            let known = self.sequences.get(&name).cloned();
            let mut sequence = known.unwrap_or_else(|| Sequence::new([0.0; DIM]));
            self.run(&mut sequence, &segment, n_segments, out)?;
            changed.push((name, sequence));
        }
        if self.kind != ModelKind::Encoder || self.has(Fault::EncoderKeeps) {
            self.sequences.extend(changed);
        }
        Ok(())
    }

    fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<(), EngineError> {
        if self.has(Fault::PanicInFork) {
            panic!("fork gave up");
        }
        let from = self.resolve(from);
        let Some(origin) = self.sequences.get(&from).filter(|origin| origin.len() >= len) else {
            return Err(self.wrong(format!("sequence {}: unknown or shorter than {len}", from.0)));
        };
        if self.sequences.contains_key(&to) && !self.has(Fault::ForkOverwrites) {
            return Err(self.wrong(format!("sequence {}: exists already", to.0)));
        }
        if self.has(Fault::ForkAliases) {
            self.aliases.insert(to, from);
            return Ok(());
        }
        let mut copy = Sequence { origin: Some(from), ..origin.clone() };
        if !self.has(Fault::ForkIgnoresLength) {
            copy.states.truncate(len as usize + 1);
        }
        if self.has(Fault::ForkLosesEncoder) {
            copy.states[0] = [0.0; DIM];
        }
        self.sequences.insert(to, copy);
        Ok(())
    }

    fn truncate(&mut self, sequence: SeqId, len: u32) -> Result<(), EngineError> {
        let (ignored, stale) = (self.has(Fault::TruncateIgnored), self.has(Fault::TruncateStale));
        let grows = self.has(Fault::TruncateGrows);
        let wrong = self.wrong(format!("sequence {}: unknown or shorter than {len}", sequence.0));
        let Some(known) =
            self.sequences.get_mut(&self.aliases.get(&sequence).copied().unwrap_or(sequence))
        else {
            return Err(wrong);
        };
        if known.len() < len && !grows {
            return Err(wrong);
        }
        if stale && known.len() > len {
            known.states[len as usize] = known.states[len as usize + 1];
        }
        if !ignored {
            known.states.truncate(len as usize + 1);
        }
        Ok(())
    }

    fn release(&mut self, sequence: SeqId) {
        if self.has(Fault::PanicInRelease) {
            panic!("release gave up");
        }
        if self.has(Fault::LeaksSequence) {
            return;
        }
        if self.aliases.remove(&sequence).is_none() {
            self.sequences.remove(&sequence);
        }
        if self.has(Fault::ForkDiesWithOrigin) {
            self.sequences.retain(|_, other| other.origin != Some(sequence));
        }
    }

    fn n_sequences(&self) -> usize {
        self.sequences.len() + self.aliases.len()
    }
}

fn next_state(state: State, token: TokenId, position: u32) -> State {
    let embedded = embed(token % VOCAB, position);
    std::array::from_fn(|i| state[i] / 2.0 + embedded[i])
}

/// Numbers between -1 and 1 that differ for every token and position.
fn embed(token: TokenId, position: u32) -> State {
    std::array::from_fn(|i| {
        let angle = (token * 7 + position * 3 + 1) as f32 * (i as f32 + 1.3);
        angle.sin()
    })
}
