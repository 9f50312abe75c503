//! Engines whose answers are known beforehand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Duration;

use drivetrain_engine::{
    Batch, DefaultDecoderInput, Engine, EngineError, EngineInfo, HeadKind, LoadRequest,
    LoadedModel, ModelKind, Outputs, Reply, Request, RequestModel, RequestModelInfo, SegmentView,
    SeqId, TokenModel, TokenModelInfo, Wanted,
};

/// What a test changes while a model runs.
#[derive(Debug, Default)]
pub(crate) struct Controls {
    /// Sleep of each forward pass, in ms.
    pub(crate) pass_ms: AtomicU64,
    /// 0 answers; 1 writes NaN; from 2 on each pass fails with the kind of that number.
    pub(crate) mode: AtomicU8,
    /// Passes begun.
    pub(crate) n_passes: AtomicUsize,
    /// The position from which a decoder ends; 0 stands for 1,000.
    pub(crate) end_at: AtomicU64,
    /// Frames that a request model sent and somebody took.
    pub(crate) n_frames: AtomicUsize,
}

pub(crate) const NAN: u8 = 1;
pub(crate) const BAD_INPUT: u8 = 2;
pub(crate) const OUT_OF_MEMORY: u8 = 3;
pub(crate) const DEVICE_LOST: u8 = 4;
pub(crate) const INTERNAL: u8 = 5;

/// The end token of the shipped model's tokenizer.
const END: u32 = 2;
const DIM: u32 = 2;
/// Rows of the shipped model's embedding cover fewer ids than this.
const VOCAB: u32 = 512;

/// An encoder-decoder model. Its hidden states are `[token id, position]`; it says the token 10
/// at every position up to 1,000, where it ends.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counting(pub(crate) Arc<Controls>);

impl Engine for Counting {
    fn info(&self) -> EngineInfo {
        EngineInfo { name: "counting".to_owned(), version: "1".to_owned(), ..EngineInfo::default() }
    }

    fn load(&self, _: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        Ok(LoadedModel::Token(Box::new(CountingModel {
            controls: Arc::clone(&self.0),
            kind: ModelKind::EncoderDecoder,
            sequences: Vec::new(),
        })))
    }
}

/// The same as a decoder-only model.
#[derive(Clone, Debug, Default)]
pub(crate) struct Decoding(pub(crate) Arc<Controls>);

impl Engine for Decoding {
    fn info(&self) -> EngineInfo {
        EngineInfo { name: "decoding".to_owned(), version: "1".to_owned(), ..EngineInfo::default() }
    }

    fn load(&self, _: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        Ok(LoadedModel::Token(Box::new(CountingModel {
            controls: Arc::clone(&self.0),
            kind: ModelKind::Decoder,
            sequences: Vec::new(),
        })))
    }
}

struct CountingModel {
    controls: Arc<Controls>,
    kind: ModelKind,
    sequences: Vec<SeqId>,
}

impl CountingModel {
    fn begin_pass(&mut self, batch: &Batch<'_>) -> Result<(), EngineError> {
        self.controls.n_passes.fetch_add(1, Ordering::SeqCst);
        sleep(Duration::from_millis(self.controls.pass_ms.load(Ordering::SeqCst)));
        match self.controls.mode.load(Ordering::SeqCst) {
            0 | NAN => {}
            BAD_INPUT => return Err(EngineError::bad_input("token 7 is not welcome")),
            OUT_OF_MEMORY => return Err(EngineError::out_of_memory("needs 2 GiB of 1 GiB")),
            DEVICE_LOST => {
                return Err(EngineError::new(
                    drivetrain_engine::ErrorKind::DeviceLost,
                    "the device fell off the bus",
                ));
            }
            _ => return Err(EngineError::internal("a bug in the engine")),
        }
        for segment in batch.segments() {
            if !self.sequences.contains(&segment.sequence) {
                self.sequences.push(segment.sequence);
            }
        }
        Ok(())
    }

    fn write(&self, segment: &SegmentView<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        let n_logits = segment.wanted.n_logits_rows(segment.tokens.len());
        if n_logits > 0 {
            let end_at = match self.controls.end_at.load(Ordering::SeqCst) {
                0 => 1000,
                end_at => end_at,
            };
            let last = u64::from(segment.position) + segment.tokens.len() as u64 - 1;
            let next = if last >= end_at { END } else { 10 };
            for row in out.next_logits(n_logits)?.chunks_exact_mut(VOCAB as usize) {
                row.fill(0.0);
                row[next as usize] = 1.0;
            }
        }
        if segment.wanted == Wanted::Hidden {
            let bad = self.controls.mode.load(Ordering::SeqCst) == NAN;
            let rows = out.next_hidden(segment.tokens.len())?;
            for (idx, row) in rows.chunks_exact_mut(DIM as usize).enumerate() {
                row[0] = if bad { f32::NAN } else { segment.tokens[idx] as f32 };
                row[1] = (segment.position as usize + idx) as f32 + 0.5;
            }
        }
        Ok(())
    }
}

impl TokenModel for CountingModel {
    fn info(&self) -> TokenModelInfo {
        TokenModelInfo {
            kind: self.kind,
            vocab: VOCAB,
            head: HeadKind::LanguageModel,
            n_logits: VOCAB,
            dim: DIM,
            max_positions: 1024,
            max_encoder_positions: 1024,
            kv_capacity_tokens: 1 << 20,
            kv_bytes_per_token: 4,
            kv_block_tokens: 1,
            cross_capacity_tokens: 1 << 20,
            cross_bytes_per_token: 4,
            max_sequences: 64,
            max_batch_tokens: 4096,
            weight_bytes: 0,
            n_parameters: 0,
            default_decoder_input: match self.kind {
                ModelKind::EncoderDecoder => DefaultDecoderInput::ShiftRight,
                _ => DefaultDecoderInput::None,
            },
            has_pooler: false,
            has_adapters: false,
        }
    }

    fn encode(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        self.begin_pass(batch)?;
        batch.segments().try_for_each(|segment| self.write(&segment, out))
    }

    fn forward(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        self.begin_pass(batch)?;
        batch.segments().try_for_each(|segment| self.write(&segment, out))
    }

    fn fork(&mut self, _: SeqId, to: SeqId, _: u32) -> Result<(), EngineError> {
        self.sequences.push(to);
        Ok(())
    }

    fn truncate(&mut self, _: SeqId, _: u32) -> Result<(), EngineError> {
        Ok(())
    }

    fn release(&mut self, sequence: SeqId) {
        self.sequences.retain(|known| *known != sequence);
    }

    fn n_sequences(&self) -> usize {
        self.sequences.len()
    }
}

/// A request model that does what the body's first word says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Obedient(pub(crate) Arc<Controls>);

impl Engine for Obedient {
    fn info(&self) -> EngineInfo {
        EngineInfo { name: "obedient".to_owned(), version: "1".to_owned(), ..EngineInfo::default() }
    }

    fn load(&self, _: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        Ok(LoadedModel::Request(Box::new(ObedientModel(Arc::clone(&self.0)))))
    }
}

struct ObedientModel(Arc<Controls>);

impl RequestModel for ObedientModel {
    fn info(&self) -> RequestModelInfo {
        RequestModelInfo { max_concurrency: 4, max_batch: 1 }
    }

    fn call(&self, request: &Request<'_>, reply: &mut dyn Reply) -> Result<(), EngineError> {
        let data =
            request.content.iter().find(|(name, _)| *name == "data").map_or(&b"echo"[..], |e| e.1);
        let data = String::from_utf8_lossy(data).into_owned();
        let mut words = data.split(' ');
        let order = words.next().unwrap_or_default();
        let number: u64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(1);
        match order {
            "status" => {
                let headers = [
                    ("content-type", "text/x-mine"),
                    ("x-mine", "1"),
                    ("content-length", "999"),
                    ("bad header", "x"),
                ];
                reply.head(number as u16, "As I Like\r\nIt", &headers);
                reply.frame(b"mine");
            }
            "nothing" => reply.head(204, "No Content", &[]),
            "stream" => {
                for idx in 0..number {
                    if !reply.frame(format!("{idx};").as_bytes()) {
                        return Ok(());
                    }
                    self.0.n_frames.fetch_add(1, Ordering::SeqCst);
                    sleep(Duration::from_millis(10));
                }
            }
            "flood" => {
                let frame = vec![b'x'; 64 << 10];
                while reply.frame(&frame) {
                    self.0.n_frames.fetch_add(1, Ordering::SeqCst);
                }
            }
            "fail" => return Err(EngineError::bad_input("refused before the first frame")),
            "break" => {
                reply.frame(b"some");
                sleep(Duration::from_millis(30));
                return Err(EngineError::internal("broke after the first frame"));
            }
            "sleep" => {
                sleep(Duration::from_millis(number));
                reply.frame(b"slept");
            }
            _ => {
                let mut text = String::new();
                for (name, value) in request.properties {
                    text.push_str(&format!("{name}={value}\n"));
                }
                for (name, value) in request.content {
                    text.push_str(&format!("[{name}] {}\n", String::from_utf8_lossy(value)));
                }
                reply.head(200, "OK", &[("content-type", "text/plain")]);
                reply.frame(text.as_bytes());
            }
        }
        Ok(())
    }
}
