//! The engine with a witness: what it was asked to do, and what it holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use drivetrain_engine::{
    Batch, Engine, EngineError, EngineInfo, EngineLibrary, LoadRequest, LoadedModel, Outputs,
    SeqId, TokenModel, TokenModelInfo, Wanted,
};
use drivetrain_tests::library;

/// What was seen of the engine's models.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Sequences alive after the last call.
    pub(super) n_held: AtomicUsize,
    /// Most segments of one pass.
    pub(super) most_segments: AtomicUsize,
    /// Segments of several tokens with logits after each: looked-up tokens, or whole prompts.
    pub(super) n_checked: AtomicUsize,
}

/// The accelerate engine through its library, and a witness.
pub(super) struct WatchedEngine {
    inner: EngineLibrary,
    seen: Arc<Seen>,
}

impl WatchedEngine {
    pub(super) fn open(seen: Arc<Seen>) -> Self {
        Self { inner: EngineLibrary::open(&library("drivetrain-accelerate")).unwrap(), seen }
    }
}

impl Engine for WatchedEngine {
    fn info(&self) -> EngineInfo {
        self.inner.info()
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        let LoadedModel::Token(inner) = self.inner.load(request)? else {
            panic!("the engine's models are scheduled by the host")
        };
        Ok(LoadedModel::Token(Box::new(WatchedModel { inner, seen: Arc::clone(&self.seen) })))
    }
}

struct WatchedModel {
    inner: Box<dyn TokenModel>,
    seen: Arc<Seen>,
}

impl WatchedModel {
    fn count(&self) {
        self.seen.n_held.store(self.inner.n_sequences(), Ordering::SeqCst);
    }
}

impl TokenModel for WatchedModel {
    fn info(&self) -> TokenModelInfo {
        self.inner.info()
    }

    fn encode(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        let end = self.inner.encode(batch, out);
        self.count();
        end
    }

    fn forward(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        let segments = batch.raw_segments();
        self.seen.most_segments.fetch_max(segments.len(), Ordering::SeqCst);
        let n_checked =
            segments.iter().filter(|s| s.n_tokens > 1 && s.wanted == Wanted::AllLogits).count();
        self.seen.n_checked.fetch_add(n_checked, Ordering::SeqCst);
        let end = self.inner.forward(batch, out);
        self.count();
        end
    }

    fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<(), EngineError> {
        let end = self.inner.fork(from, to, len);
        self.count();
        end
    }

    fn truncate(&mut self, sequence: SeqId, len: u32) -> Result<(), EngineError> {
        self.inner.truncate(sequence, len)
    }

    fn release(&mut self, sequence: SeqId) {
        self.inner.release(sequence);
        self.count();
    }

    fn n_sequences(&self) -> usize {
        self.inner.n_sequences()
    }

    fn health(&mut self) -> Result<(), EngineError> {
        self.inner.health()
    }
}
