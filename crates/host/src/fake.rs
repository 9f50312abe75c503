//! An engine for tests: its next token is a function of all tokens before it, so what it says does
//! not depend on company, chunks or order, and it keeps book of every rule the host might break.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use drivetrain_engine::{
    AdapterId, Batch, DefaultDecoderInput, Engine, EngineError, EngineInfo, ErrorKind, HeadKind,
    LoadPlan, LoadRequest, LoadedModel, ModelKind, Outputs, SeqId, TokenId, TokenModel,
    TokenModelInfo, Wanted,
};

pub(crate) const VOCAB: u32 = 40;
pub(crate) const DIM: usize = 2;

/// A token that the engine can't stand: a batch with it fails.
pub(crate) const POISON: TokenId = 39;

/// A token after which the logits are no numbers.
pub(crate) const NAN: TokenId = 38;

/// What the engine is, does and has seen; shared with the test.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// Rules the host broke.
    pub(crate) sins: Vec<String>,
    pub(crate) n_encodes: usize,
    pub(crate) n_forwards: usize,
    /// Most tokens and sequences at once.
    pub(crate) most_tokens: u64,
    pub(crate) most_sequences: usize,
    pub(crate) largest_batch: usize,
    /// Forward call, counted from 0, from which on the engine fails so.
    pub(crate) fails_at: Option<(usize, Failure)>,
    pub(crate) n_released: usize,
    pub(crate) n_forks: usize,
    pub(crate) most_adapters: usize,
    pub(crate) n_unloaded: usize,
    /// What `health` says.
    pub(crate) illness: Option<EngineError>,
}

/// How a forward call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    DeviceLost,
    Internal,
    Panic,
    /// One row of logits less than wanted.
    RowMissing,
    /// It does not come back for this many milliseconds.
    Sleeps(u64),
}

/// A model, one for each test.
#[derive(Debug)]
pub(crate) struct Fake {
    pub(crate) info: TokenModelInfo,
    pub(crate) book: Arc<Mutex<Book>>,
    sequences: HashMap<SeqId, Held>,
    n_alive: Arc<AtomicUsize>,
    /// The loaded adapters, with what they do to what is said.
    adapters: HashMap<AdapterId, u32>,
}

#[derive(Clone, Debug, Default)]
struct Held {
    /// Shared by forks, so that it counts once.
    encoder: Arc<Vec<TokenId>>,
    /// What it goes through, once something has.
    adapter: Option<AdapterId>,
    tokens: Vec<TokenId>,
    /// Enough for the tokens; forks share them until they are written.
    blocks: Vec<Arc<()>>,
}

impl Held {
    fn push(&mut self, token: TokenId, block: usize) {
        let idx = self.tokens.len() / block;
        match self.blocks.get_mut(idx) {
            Some(own) if Arc::strong_count(own) > 1 => *own = Arc::new(()),
            Some(_) => {}
            None => self.blocks.push(Arc::new(())),
        }
        self.tokens.push(token);
    }

    fn cut(&mut self, len: usize, block: usize) {
        self.tokens.truncate(len);
        self.blocks.truncate(len.div_ceil(block));
    }
}

pub(crate) fn info(kind: ModelKind) -> TokenModelInfo {
    TokenModelInfo {
        kind,
        vocab: VOCAB,
        head: if kind == ModelKind::Encoder { HeadKind::None } else { HeadKind::LanguageModel },
        n_logits: if kind == ModelKind::Encoder { 0 } else { VOCAB },
        dim: DIM as u32,
        max_positions: 64,
        max_encoder_positions: if kind == ModelKind::EncoderDecoder { 64 } else { 0 },
        kv_capacity_tokens: 1000,
        kv_bytes_per_token: 8,
        kv_block_tokens: 4,
        cross_capacity_tokens: 1000,
        cross_bytes_per_token: 8,
        max_sequences: 8,
        max_batch_tokens: 128,
        weight_bytes: 100,
        n_parameters: 25,
        default_decoder_input: match kind {
            ModelKind::EncoderDecoder => DefaultDecoderInput::ShiftRight,
            _ => DefaultDecoderInput::None,
        },
        has_pooler: false,
        has_adapters: false,
    }
}

/// What the next token follows from beside the tokens: the encoder's input and the adapter.
pub(crate) fn context(encoder: &[TokenId], adapter: u32) -> Vec<TokenId> {
    let adapter = Some(1000 + adapter).filter(|_| adapter > 0);
    encoder.iter().copied().chain(adapter).collect()
}

/// The token that follows these.
pub(crate) fn next_token(encoder: &[TokenId], tokens: &[TokenId]) -> TokenId {
    let mix = |hash: u32, token: &TokenId| hash.wrapping_mul(31).wrapping_add(*token + 7);
    let hash = tokens.iter().fold(encoder.iter().fold(17, mix), mix);
    // 0 is the end token and comes about once in twenty; poison never comes by itself.
    if hash % 20 == 0 { 0 } else { 1 + (hash >> 3) % 30 }
}

/// The logits after these tokens: the next token's is the highest, and the others differ, so that
/// beams and draws have something to choose from.
pub(crate) fn fill_logits(encoder: &[TokenId], tokens: &[TokenId], row: &mut [f32]) {
    let next = next_token(encoder, tokens);
    let mut hash = 1 + tokens.iter().fold(next, |h, t| h.wrapping_mul(37).wrapping_add(*t));
    for (id, score) in row.iter_mut().enumerate() {
        hash = hash.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *score = (hash >> 16) as f32 / 65536.0;
        if id as TokenId == next {
            *score += 2.0;
        }
        if id as TokenId >= 31 {
            // Poison and its like never come by themselves.
            *score = -20.0;
        }
    }
    if tokens.last() == Some(&NAN) {
        row.fill(f32::NAN);
    }
}

/// The hidden state at the last of these.
pub(crate) fn hidden(encoder: &[TokenId], tokens: &[TokenId]) -> [f32; DIM] {
    let sum: u32 = encoder.iter().chain(tokens).sum();
    [sum as f32, tokens.len() as f32]
}

impl Fake {
    pub(crate) fn new(info: TokenModelInfo) -> Self {
        Self {
            info,
            book: Arc::default(),
            sequences: HashMap::new(),
            n_alive: Arc::default(),
            adapters: HashMap::new(),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn sin(&self, what: String) {
        self.book().sins.push(what);
    }

    /// What an adapter does. Where the engine has none to load, its number stands for it.
    fn adapter(&self, id: AdapterId) -> u32 {
        if id == AdapterId::NONE || !self.info.has_adapters {
            return id.0;
        }
        self.adapters.get(&id).copied().unwrap_or_else(|| {
            self.sin(format!("adapter {} is not loaded", id.0));
            u32::MAX
        })
    }

    fn check_batch(&self, batch: &Batch<'_>) -> Result<(), EngineError> {
        let mut names: Vec<SeqId> = batch.segments().map(|s| s.sequence).collect();
        names.sort();
        names.dedup();
        if names.len() != batch.segments().len() {
            self.sin("a sequence is in two segments".to_owned());
        }
        if batch.tokens().len() > self.info.max_batch_tokens as usize {
            self.sin(format!("{} tokens in a batch", batch.tokens().len()));
        }
        if batch.segments().any(|s| s.tokens.contains(&POISON)) {
            return Err(EngineError::bad_input("poison"));
        }
        Ok(())
    }

    fn check_capacity(&self) {
        // Tokens in each block and of each encoder input, whoever shares them.
        let mut blocks: HashMap<*const (), usize> = HashMap::new();
        let mut encoders: HashMap<*const Vec<TokenId>, usize> = HashMap::new();
        let block = self.info.kv_block_tokens.max(1) as usize;
        for held in self.sequences.values() {
            for (own, filled) in held.blocks.iter().zip(held.tokens.chunks(block)) {
                let most = blocks.entry(Arc::as_ptr(own)).or_default();
                *most = (*most).max(filled.len());
            }
            encoders.insert(Arc::as_ptr(&held.encoder), held.encoder.len());
        }
        let (kv, cross): (usize, usize) = (blocks.values().sum(), encoders.values().sum());
        if kv as u64 > self.info.kv_capacity_tokens {
            self.sin(format!("{kv} tokens cached"));
        }
        if cross as u64 > self.info.cross_capacity_tokens {
            self.sin(format!("{cross} encoder tokens cached"));
        }
        if self.sequences.len() > self.info.max_sequences as usize {
            self.sin(format!("{} sequences", self.sequences.len()));
        }
        let mut book = self.book();
        book.most_tokens = book.most_tokens.max(kv as u64);
        book.most_sequences = book.most_sequences.max(self.sequences.len());
    }

    fn fail(&self, call: usize) -> Result<bool, EngineError> {
        let failure = self.book().fails_at.filter(|(from, _)| call >= *from).map(|(_, how)| how);
        match failure {
            Some(Failure::DeviceLost) => {
                Err(EngineError::new(ErrorKind::DeviceLost, "the device is gone"))
            }
            Some(Failure::Internal) => Err(EngineError::internal("a bug")),
            Some(Failure::Panic) => panic!("a panic in the engine"),
            Some(Failure::Sleeps(millis)) => {
                std::thread::sleep(std::time::Duration::from_millis(millis));
                Ok(false)
            }
            Some(Failure::RowMissing) => Ok(true),
            None => Ok(false),
        }
    }
}

impl TokenModel for Fake {
    fn info(&self) -> TokenModelInfo {
        self.info
    }

    fn encode(&mut self, batch: &Batch<'_>, _: &mut Outputs<'_>) -> Result<(), EngineError> {
        self.book().n_encodes += 1;
        self.check_batch(batch)?;
        for segment in batch.segments() {
            if self.sequences.contains_key(&segment.sequence) || segment.position != 0 {
                self.sin("encodes what is encoded".to_owned());
            }
            let adapter = Some(segment.adapter);
            let encoder = Arc::new(segment.tokens.to_vec());
            let held = Held { encoder, adapter, ..Held::default() };
            self.sequences.insert(segment.sequence, held);
        }
        self.check_capacity();
        Ok(())
    }

    fn forward(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        let call = self.book().n_forwards;
        {
            let mut book = self.book();
            book.n_forwards += 1;
            book.largest_batch = book.largest_batch.max(batch.segments().len());
        }
        let block = self.info.kv_block_tokens.max(1) as usize;
        let mut skips_row = self.fail(call)?;
        self.check_batch(batch)?;
        for segment in batch.segments() {
            let is_encoder = self.info.kind == ModelKind::Encoder;
            let known = self.sequences.get(&segment.sequence).map(|held| held.tokens.len());
            if known.unwrap_or(0) != segment.position as usize {
                self.sin(format!("position {} of {known:?}", segment.position));
            }
            if self.info.kind == ModelKind::EncoderDecoder && known.is_none() {
                self.sin("decodes what is not encoded".to_owned());
            }
            let adapter = self.adapter(segment.adapter);
            let held = self.sequences.entry(segment.sequence).or_default();
            if *held.adapter.get_or_insert(segment.adapter) != segment.adapter {
                let what = "a sequence changes its adapter".to_owned();
                self.book.lock().unwrap().sins.push(what);
            }
            let context = context(&held.encoder, adapter);
            for (idx, token) in segment.tokens.iter().enumerate() {
                held.push(*token, block);
                if segment.wanted == Wanted::Hidden {
                    out.next_hidden(1)?.copy_from_slice(&hidden(&context, &held.tokens));
                }
                let is_last = idx + 1 == segment.tokens.len();
                let wants = match segment.wanted {
                    Wanted::AllLogits => true,
                    Wanted::LastLogits | Wanted::SequenceLogits => is_last,
                    _ => false,
                };
                if wants && !std::mem::take(&mut skips_row) {
                    fill_logits(&context, &held.tokens, out.next_logits(1)?);
                }
            }
            if held.tokens.len() > self.info.max_positions as usize {
                self.book.lock().unwrap().sins.push(format!("{} positions", held.tokens.len()));
            }
            if is_encoder {
                self.sequences.remove(&segment.sequence);
            }
        }
        self.check_capacity();
        Ok(())
    }

    fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<(), EngineError> {
        let (len, block) = (len as usize, self.info.kv_block_tokens.max(1) as usize);
        let Some(mut fork) = self.sequences.get(&from).filter(|h| h.tokens.len() >= len).cloned()
        else {
            self.sin(format!("forks {len} tokens of what has fewer"));
            return Err(EngineError::bad_input("fork"));
        };
        fork.cut(len, block);
        if self.sequences.insert(to, fork).is_some() {
            self.sin("forks to what is there".to_owned());
        }
        self.book().n_forks += 1;
        self.check_capacity();
        Ok(())
    }

    fn truncate(&mut self, sequence: SeqId, len: u32) -> Result<(), EngineError> {
        let (len, block) = (len as usize, self.info.kv_block_tokens.max(1) as usize);
        match self.sequences.get_mut(&sequence) {
            Some(held) if held.tokens.len() >= len => held.cut(len, block),
            _ => self.sin(format!("cuts to {len} tokens what has fewer")),
        }
        Ok(())
    }

    fn release(&mut self, sequence: SeqId) {
        self.sequences.remove(&sequence);
        self.book().n_released += 1;
    }

    fn n_sequences(&self) -> usize {
        self.sequences.len()
    }

    /// What it does is in the file `number`.
    fn load_adapter(
        &mut self,
        adapter: AdapterId,
        dir: &std::path::Path,
    ) -> Result<(), EngineError> {
        let number = std::fs::read_to_string(dir.join("number")).ok();
        let number = number.and_then(|text| text.trim().parse().ok());
        let number = number.ok_or_else(|| EngineError::bad_input("number: no such file"))?;
        if self.adapters.insert(adapter, number).is_some() {
            self.sin(format!("adapter {} is loaded twice", adapter.0));
        }
        let mut book = self.book();
        book.most_adapters = book.most_adapters.max(self.adapters.len());
        Ok(())
    }

    fn unload_adapter(&mut self, adapter: AdapterId) {
        self.adapters.remove(&adapter);
        self.book().n_unloaded += 1;
    }

    fn health(&mut self) -> Result<(), EngineError> {
        self.book().illness.clone().map_or(Ok(()), Err)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.n_alive.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An engine whose models share one book.
#[derive(Debug)]
pub(crate) struct FakeEngine {
    pub(crate) name: &'static str,
    pub(crate) info: TokenModelInfo,
    pub(crate) book: Arc<Mutex<Book>>,
    /// Models that live.
    pub(crate) n_alive: Arc<AtomicUsize>,
    /// Why it does not load.
    pub(crate) refuses: Option<EngineError>,
    /// What it says it would do, with the options as notes.
    pub(crate) plan: Option<LoadPlan>,
    pub(crate) capabilities: Vec<String>,
}

impl FakeEngine {
    pub(crate) fn new(name: &'static str, info: TokenModelInfo) -> Self {
        Self {
            name,
            info,
            book: Arc::default(),
            n_alive: Arc::default(),
            refuses: None,
            plan: None,
            capabilities: Vec::new(),
        }
    }
}

impl Engine for FakeEngine {
    fn info(&self) -> EngineInfo {
        let aliases = vec![format!("{}-alias", self.name)];
        let capabilities = self.capabilities.clone();
        EngineInfo { name: self.name.to_owned(), aliases, capabilities, ..EngineInfo::default() }
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        if let Some(error) = &self.refuses {
            return Err(error.clone());
        }
        if request.options.get("stuck") == Some("true") {
            while !request.services.cancelled() {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            return Err(EngineError::new(ErrorKind::Cancelled, "told to stop"));
        }
        request.services.progress("fake weights", 1, 2);
        self.n_alive.fetch_add(1, Ordering::SeqCst);
        Ok(LoadedModel::Token(Box::new(Fake {
            info: self.info,
            book: Arc::clone(&self.book),
            sequences: HashMap::new(),
            n_alive: Arc::clone(&self.n_alive),
            adapters: HashMap::new(),
        })))
    }

    fn plan(&self, request: &LoadRequest<'_>) -> Result<Option<LoadPlan>, EngineError> {
        if let Some(error) = &self.refuses {
            return Err(error.clone());
        }
        let options = request.options.iter().map(|(key, value)| format!("{key}={value}"));
        let mut plan = self.plan.clone();
        if let Some(plan) = &mut plan {
            plan.notes.extend(options);
        }
        Ok(plan)
    }
}
