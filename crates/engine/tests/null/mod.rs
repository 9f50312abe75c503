//! An engine that computes nothing, so that what is left is the cost of the call.

use drivetrain_engine::{
    AdapterId, Batch, DefaultDecoderInput, Engine, EngineError, EngineInfo, HeadKind, LoadRequest,
    LoadedModel, ModelKind, Options, Outputs, Segment, SeqId, Services, TokenModel, TokenModelInfo,
    Wanted,
};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

/// Columns of a row of logits.
pub(crate) const N_LOGITS: usize = 4;
/// Segments of a full batch.
pub(crate) const N_SEGMENTS: u32 = 32;

/// An engine that computes nothing.
pub(crate) struct Null;

impl Engine for Null {
    fn info(&self) -> EngineInfo {
        EngineInfo { name: "null".into(), ..EngineInfo::default() }
    }

    fn load(&self, _: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        Ok(LoadedModel::Token(Box::new(NullModel)))
    }
}

struct NullModel;

impl TokenModel for NullModel {
    fn info(&self) -> TokenModelInfo {
        TokenModelInfo {
            kind: ModelKind::Decoder,
            vocab: N_LOGITS as u32,
            head: HeadKind::LanguageModel,
            n_logits: N_LOGITS as u32,
            dim: 0,
            max_positions: 1,
            max_encoder_positions: 0,
            kv_capacity_tokens: 0,
            kv_bytes_per_token: 0,
            kv_block_tokens: 1,
            cross_capacity_tokens: 0,
            cross_bytes_per_token: 0,
            max_sequences: N_SEGMENTS,
            max_batch_tokens: N_SEGMENTS,
            weight_bytes: 0,
            n_parameters: 0,
            default_decoder_input: DefaultDecoderInput::None,
            has_pooler: false,
            has_adapters: false,
        }
    }

    fn forward(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        for segment in batch.segments() {
            out.next_logits(1)?[0] = segment.tokens[0] as f32;
        }
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

/// The null model, as `engine` loads it.
pub(crate) fn load(engine: &dyn Engine) -> Box<dyn TokenModel> {
    let request = LoadRequest {
        model_name: "null",
        model_dir: Path::new(""),
        adapter_dir: None,
        options: Options::new(&[]),
        n_threads: NonZeroUsize::MIN,
        services: Services::silent(),
    };
    match engine.load(&request) {
        Ok(LoadedModel::Token(model)) => model,
        other => panic!("{other:?}"),
    }
}

/// The null model called directly, and through the ABI.
pub(crate) fn both() -> [(&'static str, Box<dyn TokenModel>); 2] {
    let through = drivetrain_engine::through_abi(Arc::new(Null)).expect("info does not panic");
    [("direct", load(&Null)), ("through the ABI", load(&*through))]
}

/// One decode step of `n` sequences.
pub(crate) fn steps(n: u32) -> (Vec<Segment>, Vec<u32>) {
    let segment = |idx| Segment {
        sequence: SeqId(u64::from(idx)),
        first_token: idx,
        n_tokens: 1,
        position: 0,
        wanted: Wanted::LastLogits,
        adapter: AdapterId::NONE,
    };
    ((0..n).map(segment).collect(), (0..n).collect())
}
