//! A host with a model that costs nothing: its logits are copied from a template, and the time
//! between two of its passes is the host's own. Used by benches and by a test.

#![allow(dead_code, reason = "each program uses a part of it")]

use std::cell::RefCell;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use alloc_tracker::{Operation, Session, ThreadSpan};
use drivetrain_config::{Environment, ModelSpec, ServerConfig, ServerOverrides};
use drivetrain_engine::{
    Batch, DefaultDecoderInput, Engine, EngineError, EngineInfo, HeadKind, LoadRequest,
    LoadedModel, ModelKind, Outputs, SeqId, TokenId, TokenModel, TokenModelInfo, Wanted,
};
use drivetrain_host::{EngineRegistry, GenerateRequest, Host, ModelHandle, Prompt};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// Tokens of the model.
pub(crate) const VOCAB: usize = 50_257;

/// Most sequences at once.
pub(crate) const MAX_SEQUENCES: usize = 64;

/// Steps that are timed at most.
const MAX_STEPS: usize = 1 << 16;

thread_local! {
    /// Counts allocations of the model's thread while it is there.
    static SPAN: RefCell<Option<ThreadSpan>> = const { RefCell::new(None) };
}

/// What the model saw of the host; shared with whoever measures.
#[derive(Debug)]
pub(crate) struct Gauge {
    /// Sequences of the steps that are looked at.
    pub(crate) n_sequences: usize,
    /// From the end of one such pass to the start of the next.
    pub(crate) host: Vec<Duration>,
    /// Inside of such passes.
    pub(crate) engine: Duration,
    /// Passes of fewer sequences, or with prompts.
    pub(crate) n_others: usize,
    /// Passes before allocations are counted, and passes in which they are.
    pub(crate) counted: (usize, usize),
    session: Session,
    operation: Operation,
    last: Option<Instant>,
}

impl Gauge {
    fn new() -> Self {
        let session = Session::new().no_stdout().no_file();
        let operation = session.operation("steps");
        Self {
            n_sequences: 0,
            host: Vec::with_capacity(MAX_STEPS),
            engine: Duration::ZERO,
            n_others: 0,
            counted: (0, 0),
            session,
            operation,
            last: None,
        }
    }

    /// Forgets what it saw, and looks at steps of `n_sequences` from now on.
    pub(crate) fn reset(&mut self, n_sequences: usize) {
        self.n_sequences = n_sequences;
        self.host.clear();
        (self.engine, self.n_others, self.last) = (Duration::ZERO, 0, None);
        self.counted = (0, 0);
        self.session = Session::new().no_stdout().no_file();
        self.operation = self.session.operation("steps");
    }

    /// Allocations of the model's thread in the steps that were counted, and their number.
    pub(crate) fn allocations(&self) -> (u64, u64) {
        let report = self.session.to_report();
        let sum = |each: fn(&alloc_tracker::ReportOperation) -> u64| {
            report.operations().map(|(_, operation)| each(operation)).sum()
        };
        (sum(|all| all.total_allocations_count()), sum(|all| all.total_iterations()))
    }

    /// A pass begins at `now`.
    fn begin(&mut self, batch: &Batch<'_>, now: Instant) {
        let n_segments = batch.segments().len();
        let is_whole = n_segments == self.n_sequences && batch.tokens().len() == n_segments;
        if !is_whole {
            self.n_others += 1;
            self.last = None;
            return;
        }
        if let Some(last) = self.last
            && self.host.len() < MAX_STEPS
        {
            self.host.push(now - last);
        }
        let (first, n_counted) = self.counted;
        let n_done = self.host.len();
        if n_counted > 0 && n_done == first {
            let span = self.operation.measure_thread().iterations(n_counted as u64);
            SPAN.with(|place| *place.borrow_mut() = Some(span));
        } else if n_counted > 0 && n_done == first + n_counted {
            SPAN.with(|place| place.borrow_mut().take());
        }
    }

    /// The pass that began at `began` ends.
    fn end(&mut self, batch: &Batch<'_>, began: Instant) {
        if batch.tokens().len() == self.n_sequences {
            let now = Instant::now();
            self.engine += now - began;
            self.last = Some(now);
        }
    }
}

/// The engine, and its model.
struct Null {
    gauge: Arc<Mutex<Gauge>>,
    template: Arc<[f32]>,
}

impl Null {
    fn gauge(&self) -> MutexGuard<'_, Gauge> {
        self.gauge.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for Null {
    fn info(&self) -> EngineInfo {
        EngineInfo { name: "null".to_owned(), ..EngineInfo::default() }
    }

    fn load(&self, _: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        let (gauge, template) = (Arc::clone(&self.gauge), Arc::clone(&self.template));
        Ok(LoadedModel::Token(Box::new(Self { gauge, template })))
    }
}

impl TokenModel for Null {
    fn info(&self) -> TokenModelInfo {
        TokenModelInfo {
            kind: ModelKind::Decoder,
            // More rows than tokens, as models have them that round up.
            vocab: VOCAB.next_multiple_of(64) as u32,
            head: HeadKind::LanguageModel,
            n_logits: VOCAB as u32,
            dim: 1,
            max_positions: 1 << 15,
            max_encoder_positions: 0,
            kv_capacity_tokens: 1 << 30,
            kv_bytes_per_token: 1,
            kv_block_tokens: 16,
            cross_capacity_tokens: 0,
            cross_bytes_per_token: 0,
            max_sequences: 2 * MAX_SEQUENCES as u32,
            max_batch_tokens: 4096,
            weight_bytes: 1,
            n_parameters: 1,
            default_decoder_input: DefaultDecoderInput::None,
            has_pooler: false,
            has_adapters: false,
        }
    }

    fn encode(&mut self, _: &Batch<'_>, _: &mut Outputs<'_>) -> Result<(), EngineError> {
        Err(EngineError::bad_input("there is no encoder"))
    }

    fn forward(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        let began = Instant::now();
        self.gauge().begin(batch, began);
        for segment in batch.segments() {
            if segment.wanted != Wanted::LastLogits {
                continue;
            }
            let row = out.next_logits(1)?;
            row.copy_from_slice(&self.template);
            let last = segment.tokens.last().copied().unwrap_or(0);
            let next = 300 + (last as usize * 31 + segment.position as usize * 7) % 45_000;
            if let Some(score) = row.get_mut(next) {
                *score += 12.0;
            }
        }
        self.gauge().end(batch, began);
        Ok(())
    }

    fn fork(&mut self, _: SeqId, _: SeqId, _: u32) -> Result<(), EngineError> {
        Ok(())
    }

    fn truncate(&mut self, _: SeqId, _: u32) -> Result<(), EngineError> {
        Ok(())
    }

    fn release(&mut self, _: SeqId) {}

    fn n_sequences(&self) -> usize {
        0
    }
}

/// Logits as a model has them, more or less: sums of a few random numbers; the end token never comes.
fn template() -> Arc<[f32]> {
    let mut state = 1_u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 16_777_216.0 - 0.5
    };
    let mut logits: Vec<f32> =
        (0..VOCAB).map(|_| 4.0 * (0..4).map(|_| random()).sum::<f32>()).collect();
    if let Some(end) = logits.first_mut() {
        *end = -100.0;
    }
    logits.into()
}

/// A host with the null model, ready.
pub(crate) struct Served {
    _dir: TempDir,
    _host: Host,
    pub(crate) model: ModelHandle,
    gauge: Arc<Mutex<Gauge>>,
}

impl Served {
    pub(crate) fn new() -> Result<Self, Box<dyn Error>> {
        let dir = tempfile::tempdir()?;
        write_model(&dir)?;
        let overrides =
            ServerOverrides { sagemaker_root: "/nonexistent".into(), ..ServerOverrides::default() };
        let env = Environment::default();
        let config = Arc::new(ServerConfig::resolve(&overrides, &env)?.0);
        let gauge = Arc::new(Mutex::new(Gauge::new()));
        let engine = Null { gauge: Arc::clone(&gauge), template: template() };
        let host = Host::new(config, env, EngineRegistry::with(Arc::new(engine)));
        let model = host.load(&ModelSpec::at(dir.path().display().to_string()))?;
        model.wait_ready_blocking()?;
        Ok(Self { _dir: dir, _host: host, model, gauge })
    }

    pub(crate) fn gauge(&self) -> MutexGuard<'_, Gauge> {
        self.gauge.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that continues a short text.
pub(crate) fn request(idx: usize, is_streamed: bool, parameters: &Value) -> GenerateRequest {
    GenerateRequest {
        id: "r".to_owned(),
        prompts: vec![Prompt::Text(format!("{idx} the quick brown fox jumps over the lazy dog"))],
        parameters: parameters.as_object().cloned().unwrap_or_default(),
        is_streamed,
        ..GenerateRequest::default()
    }
}

/// A model directory with byte-level tokens: the single characters, then made-up words of one to four
/// letters with a space before each.
fn write_model(dir: &TempDir) -> Result<(), Box<dyn Error>> {
    let letters = ('!'..='~').map(String::from).chain(["Ġ".to_owned()]);
    let words = (0..).map(|idx: usize| {
        let mut word = "Ġ".to_owned();
        let mut rest = idx + 26;
        while rest > 0 {
            word.push(char::from(b'a' + (rest % 26) as u8));
            rest /= 26;
        }
        word
    });
    let vocab: Map<String, Value> = std::iter::once("</s>".to_owned())
        .chain(letters)
        .chain(words)
        .take(VOCAB)
        .enumerate()
        .map(|(id, token)| (token, json!(id as TokenId)))
        .collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [{
            "id": 0, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }],
        "pre_tokenizer": byte_level, "decoder": byte_level, "post_processor": null,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    let files = [
        ("tokenizer.json", tokenizer.to_string()),
        ("tokenizer_config.json", json!({"eos_token": "</s>"}).to_string()),
        ("generation_config.json", json!({"eos_token_id": 0}).to_string()),
        (
            "config.json",
            json!({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}).to_string(),
        ),
        (
            "serving.properties",
            format!("engine=null\noption.max_rolling_batch_size={}\n", 2 * MAX_SEQUENCES),
        ),
    ];
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text)?;
    }
    Ok(())
}
