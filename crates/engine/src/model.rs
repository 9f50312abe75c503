//! What an engine author implements: an [`Engine`] that loads models, and the two kinds of model.

use std::num::NonZeroUsize;
use std::path::Path;
use std::str::FromStr;

use abi_stable::StableAbi;

use crate::batch::{AdapterId, Batch, Outputs, SeqId};
use crate::{EngineError, LoadPlan, Services};

/// An engine: what a plugin library exports with [`export_engine!`](crate::export_engine).
///
/// One value lives for the whole process and is called from any thread, several at a time.
pub trait Engine: Send + Sync {
    /// Name, version and powers. Cheap; asked for when the library is opened.
    fn info(&self) -> EngineInfo;

    /// Loads a model. Called on the thread that will drive it; may take minutes, during which it
    /// reports progress to `request.services` and stops with `Cancelled` soon after
    /// `request.services.cancelled()` turns true.
    ///
    /// # Errors
    /// `BadInput` for model files or options that can't be served (naming file, key or field),
    /// `OutOfMemory` with the figures, `Unsupported` for a model this engine has no code for.
    fn load(&self, request: &LoadRequest<'_>) -> Result<LoadedModel, EngineError>;

    /// Says what [`Self::load`] would do with this request, on one device or more: the same checks of
    /// files, options and limits, and the same figures, from names and sizes alone. Takes no memory for
    /// weights and reads none of them; what it opened is closed when it returns. Called from any thread,
    /// also while models are loaded, and may be followed by `load` or by nothing. `None`, which is the
    /// default, says that the engine may load the model and states no plan of it.
    ///
    /// # Errors
    /// Those of `load`, a model that would not fit included, so that a plan is a model that loads.
    fn plan(&self, request: &LoadRequest<'_>) -> Result<Option<LoadPlan>, EngineError> {
        let _ = request;
        Ok(None)
    }
}

/// The capability of an engine that heeds [`LoadRequest::adapter_dir`].
pub const MERGES_ADAPTERS: &str = "merges-adapters";

/// The capability of an engine whose models may be loaded again after `DeviceLost`: what was lost was outside
/// of this process.
pub const RELOADS_LOST_MODELS: &str = "reloads-lost-models";

/// What an engine says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineInfo {
    /// The name that `option.engine` selects, in lower case.
    pub name: String,
    /// Further names, matched like `name`.
    pub aliases: Vec<String>,
    /// The engine's own version.
    pub version: String,
    /// One line for `drivetrain engines`.
    pub description: String,
    /// The devices it can use on this machine: `cpu`, `cuda:0`, ...
    pub devices: Vec<String>,
    /// Optional powers by name. The host asks for these, never for a version.
    pub capabilities: Vec<String>,
}

/// What to load.
#[derive(Clone, Debug)]
pub struct LoadRequest<'a> {
    /// The name the model is served under, for messages.
    pub model_name: &'a str,
    /// The directory that holds the model's files.
    pub model_dir: &'a Path,
    /// A directory with a low-rank adapter that is to become a part of the weights. Given only to
    /// engines with the capability [`MERGES_ADAPTERS`].
    pub adapter_dir: Option<&'a Path>,
    /// The model's options as text, keys without their `option.` prefix.
    pub options: Options<'a>,
    /// How many threads the model may compute on.
    pub n_threads: NonZeroUsize,
    /// The host's services. Clone it to keep it for the model's life.
    pub services: Services,
}

/// The options of a model: text values by key.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    pairs: &'a [(&'a str, &'a str)],
}

impl<'a> Options<'a> {
    /// Options from key and value pairs; of equal keys the last one counts.
    pub fn new(pairs: &'a [(&'a str, &'a str)]) -> Self {
        Self { pairs }
    }

    /// The value of `key`, if it is set.
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.pairs.iter().rev().find(|(k, _)| *k == key).map(|(_, value)| *value)
    }

    /// The value of `key` as a `T`, if it is set.
    ///
    /// # Errors
    /// `BadInput` that names the key, the value and `expected` (as in "a whole number above 0").
    pub fn parse<T: FromStr>(&self, key: &str, expected: &str) -> Result<Option<T>, EngineError> {
        self.get(key)
            .map(|value| {
                value.trim().parse().map_err(|_| {
                    EngineError::bad_input(format!("option.{key}={value}: expected {expected}"))
                })
            })
            .transpose()
    }

    /// All pairs.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        self.pairs.iter().copied()
    }
}

/// A loaded model of either kind.
pub enum LoadedModel {
    /// The host schedules, samples and streams; the engine runs forward passes.
    Token(Box<dyn TokenModel>),
    /// The engine answers whole requests.
    Request(Box<dyn RequestModel>),
}

impl std::fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Token(_) => "LoadedModel::Token(..)",
            Self::Request(_) => "LoadedModel::Request(..)",
        })
    }
}

/// The shape of a token model.
#[repr(u8)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModelKind {
    /// Causal, with a KV cache: GPT-2, LLaMA.
    Decoder,
    /// `encode` reads the input, `forward` decodes against it: BART, T5.
    EncoderDecoder,
    /// Bidirectional and without a cache: every segment is a whole input at position 0, and leaves
    /// nothing behind. BERT.
    Encoder,
}

/// The decoder input that an encoder-decoder model makes of its encoder input when none is given,
/// which is what feature extraction runs.
#[repr(u8)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DefaultDecoderInput {
    /// The model has no such rule (T5, Marian, Pegasus), or is no encoder-decoder model.
    None,
    /// `[decoder_start] + ids[..n - 1]` (BART).
    ShiftRight,
    /// The ids rotated so that the last one comes first (mBART).
    RotateLast,
}

/// What makes logits of a model's hidden states. A model has one head at most.
#[repr(u8)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeadKind {
    /// Nothing does: `n_logits` is 0.
    None,
    /// Each token's row is of the vocabulary and for the token that follows it.
    LanguageModel,
    /// Each token's row is of the vocabulary and for that token itself: BERT's masked language model.
    MaskedLanguageModel,
    /// One row of labels for the whole sequence, which [`Wanted::SequenceLogits`] asks for.
    ///
    /// [`Wanted::SequenceLogits`]: crate::Wanted::SequenceLogits
    SequenceClassification,
    /// Each token's row is of labels.
    TokenClassification,
    /// Each token's row is of two: how well an answer begins there, and how well it ends there.
    QuestionAnswering,
}

impl HeadKind {
    /// Whether rows are for single tokens: [`Wanted::LastLogits`](crate::Wanted::LastLogits) and
    /// [`Wanted::AllLogits`](crate::Wanted::AllLogits) are then available.
    pub fn is_per_token(self) -> bool {
        !matches!(self, Self::None | Self::SequenceClassification)
    }
}

/// What the host has to know of a token model. Fixed for the model's life.
///
/// Capacities count *cached tokens*: the sum over live sequences of their lengths, where a prefix
/// shared through [`TokenModel::fork`] counts once per whole block of `kv_block_tokens`. The host
/// never exceeds them. `u64::MAX` means without limit.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenModelInfo {
    /// Encoder, decoder, or both.
    pub kind: ModelKind,
    /// Rows of the input embedding: every token id is below it.
    pub vocab: u32,
    /// What makes its logits.
    pub head: HeadKind,
    /// Columns of a row of logits: tokens of the vocabulary, labels, or 2 for question answering; 0
    /// if the model has no head.
    pub n_logits: u32,
    /// Columns of a row of hidden states.
    pub dim: u32,
    /// The longest sequence `forward` takes.
    pub max_positions: u32,
    /// The longest input `encode` takes; 0 without an encoder-decoder's encoder.
    pub max_encoder_positions: u32,
    /// Tokens the KV cache holds.
    pub kv_capacity_tokens: u64,
    /// Bytes of KV cache for a token.
    pub kv_bytes_per_token: u64,
    /// The cache is shared in blocks of this many tokens; at least 1.
    pub kv_block_tokens: u32,
    /// Encoder tokens the cross-attention cache holds.
    pub cross_capacity_tokens: u64,
    /// Bytes of cross-attention cache for an encoder token.
    pub cross_bytes_per_token: u64,
    /// Most sequences alive at once.
    pub max_sequences: u32,
    /// Most tokens in one batch.
    pub max_batch_tokens: u32,
    /// Bytes that the weights occupy.
    pub weight_bytes: u64,
    /// Parameters of the model.
    pub n_parameters: u64,
    /// The decoder input to use when a task has none.
    pub default_decoder_input: DefaultDecoderInput,
    /// Whether [`Wanted::PooledHead`](crate::Wanted::PooledHead) is available.
    pub has_pooler: bool,
    /// Whether [`TokenModel::load_adapter`] is available.
    pub has_adapters: bool,
}

/// A decoder that has nothing: what an author does not set.
impl Default for TokenModelInfo {
    fn default() -> Self {
        Self {
            kind: ModelKind::Decoder,
            vocab: 0,
            head: HeadKind::None,
            n_logits: 0,
            dim: 0,
            max_positions: 0,
            max_encoder_positions: 0,
            kv_capacity_tokens: 0,
            kv_bytes_per_token: 0,
            kv_block_tokens: 1,
            cross_capacity_tokens: 0,
            cross_bytes_per_token: 0,
            max_sequences: 0,
            max_batch_tokens: 0,
            weight_bytes: 0,
            n_parameters: 0,
            default_decoder_input: DefaultDecoderInput::None,
            has_pooler: false,
            has_adapters: false,
        }
    }
}

/// A model whose forward passes the host schedules. Driven by one thread, hence `Send` without
/// `Sync`.
///
/// A sequence is born by `encode` (encoder-decoder models) or by a segment at position 0, grows by
/// `forward`, and lives until `release`. After any error but `DeviceLost` every sequence is as it
/// was before the call, and the model may be used again; after `DeviceLost` it may only be dropped.
pub trait TokenModel: Send {
    /// The model's figures; the same at every call.
    fn info(&self) -> TokenModelInfo;

    /// Runs the encoder over whole inputs, one segment a sequence, each at position 0, and keeps
    /// what the decoder needs of them (cross-attention K and V) until `release`. A segment may want
    /// `Nothing`, `Hidden` or a pooling, of the encoder's output.
    ///
    /// # Errors
    /// `Unsupported` for a model without encoder, which is the default; else as [`Self::forward`].
    fn encode(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        let _ = (batch, out);
        Err(EngineError::unsupported("this model has no encoder beside its decoder"))
    }

    /// Runs the segments of `batch`, prompt chunks and single steps mixed, and writes what each
    /// asked for to `out` in segment order. The result for a sequence does not depend on the other
    /// segments of the batch, nor on how its tokens were cut into segments.
    ///
    /// # Errors
    /// `BadInput` for a token id outside the vocabulary, a position that is not the sequence's
    /// length, a sequence past `max_positions`, an unknown sequence or adapter, or an output the
    /// model does not have; `OutOfMemory` past the stated capacity.
    fn forward(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError>;

    /// Makes `to`, a new sequence, share the first `len` cached tokens of `from` (and all of its
    /// encoder state). What is appended to either later does not show in the other.
    ///
    /// # Errors
    /// `BadInput` if `from` is unknown or shorter than `len`, or `to` exists.
    fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<(), EngineError>;

    /// Cuts `sequence` to its first `len` cached tokens.
    ///
    /// # Errors
    /// `BadInput` if the sequence is unknown or shorter than `len`.
    fn truncate(&mut self, sequence: SeqId, len: u32) -> Result<(), EngineError>;

    /// Frees everything held for `sequence`. A sequence that is not known is not an error.
    fn release(&mut self, sequence: SeqId);

    /// Sequences alive. The host compares it with its own count when the model is idle.
    fn n_sequences(&self) -> usize;

    /// Loads the low-rank adapter in `dir` beside the model's weights, as `adapter`, which is new and
    /// not [`AdapterId::NONE`]. From then on segments may name it. The model's own weights stay as
    /// they are, so segments of several adapters and of none can share a batch.
    ///
    /// # Errors
    /// `Unsupported` for a model without them, which is the default, and for an adapter of a kind that
    /// can't be computed beside others; `BadInput` for files that are broken or don't fit the model;
    /// `OutOfMemory`.
    fn load_adapter(&mut self, adapter: AdapterId, dir: &Path) -> Result<(), EngineError> {
        let _ = (adapter, dir);
        Err(EngineError::unsupported("this engine computes no adapters beside a model"))
    }

    /// Frees an adapter. No segment names it any more; sequences it was used for may still live, to be
    /// released. One that is not known is not an error.
    fn unload_adapter(&mut self, adapter: AdapterId) {
        let _ = adapter;
    }

    /// Whether the model can still compute; called between batches and when idle. Cheap.
    ///
    /// # Errors
    /// `DeviceLost` when the model is gone for good; anything else is reported as unhealthy.
    fn health(&mut self) -> Result<(), EngineError> {
        Ok(())
    }
}

/// What the host has to know of a request model.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestModelInfo {
    /// Most calls at once; at least 1.
    pub max_concurrency: u32,
    /// Most requests of one [`RequestModel::call_batch`]; at 1 or less there is none, and every
    /// request comes by [`RequestModel::call`].
    pub max_batch: u32,
}

/// A request as a [`RequestModel`] sees it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The request's id.
    pub id: &'a str,
    /// Header names and values as the client sent them, custom attributes included.
    pub properties: &'a [(&'a str, &'a str)],
    /// The content entries: name and bytes. A plain body is one entry named `data`.
    pub content: &'a [(&'a str, &'a [u8])],
}

/// Where the answer to a [`Request`] goes.
pub trait Reply {
    /// Sets the status code, its reason, and the headers. Before the first frame, at most once; 200
    /// without headers if never called.
    fn head(&mut self, status: u16, reason: &str, headers: &[(&str, &str)]);

    /// Sends a piece of the body. `false` means that nobody waits for the rest: stop.
    fn frame(&mut self, bytes: &[u8]) -> bool;
}

/// A request of a batch, and where its answer goes.
pub struct Call<'a> {
    /// The request.
    pub request: Request<'a>,
    /// Its own reply.
    pub reply: &'a mut dyn Reply,
}

/// A model that answers whole requests: bytes in, a stream of frames out.
pub trait RequestModel: Send + Sync {
    /// The model's figures; the same at every call.
    fn info(&self) -> RequestModelInfo;

    /// Answers one request; returns when the answer is complete. Called from up to
    /// `max_concurrency` threads at once.
    ///
    /// # Errors
    /// Before the first frame the error becomes the client's; after it, the stream ends there.
    fn call(&self, request: &Request<'_>, reply: &mut dyn Reply) -> Result<(), EngineError>;

    /// Answers several requests together, up to `max_batch` of them; returns when all answers are
    /// complete, with the end of each in order. The host gathers them by the model's `batch_size`
    /// and `max_batch_delay`. One call counts as one of `max_concurrency`. By default the requests
    /// are answered one after the other.
    ///
    /// # Errors
    /// Each request's end as of [`Self::call`]. A list of another length fails those without an end.
    fn call_batch(&self, calls: &mut [Call<'_>]) -> Vec<Result<(), EngineError>> {
        calls.iter_mut().map(|call| self.call(&call.request, call.reply)).collect()
    }

    /// As [`TokenModel::health`].
    ///
    /// # Errors
    /// As [`TokenModel::health`].
    fn health(&self) -> Result<(), EngineError> {
        Ok(())
    }
}
