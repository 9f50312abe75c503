//! The engine: finds out what a model is, checks that it fits, loads it.

use std::collections::HashSet;

use candle_core::Device;
use drivetrain_artifacts::{ModelConfig, ModelDir, UnpackOptions, Weights};
use drivetrain_engine::{
    DefaultDecoderInput, Engine, EngineError, EngineInfo, ErrorKind, HeadKind, LoadRequest,
    LoadedModel, LogLevel, MERGES_ADAPTERS, ModelKind, TokenModelInfo,
};
use drivetrain_transformer::{
    AdapterFiles, Architecture, Attention, CanonicalWeights, Kind, Stack,
};

use crate::cache::{BLOCK_TOKENS, Cache, Limits};
use crate::error;
use crate::head::Head;
use crate::load::Loader;
use crate::memory;
use crate::model::{CandleModel, ModelWeights};
use crate::options::LoadOptions;
use crate::plan::Tables;

/// Most tokens in one batch, unless a whole input is longer.
const MAX_BATCH_TOKENS: u32 = 2048;
/// Bytes of an f32.
const F32: u64 = 4;

/// The device-map engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Accelerate;

impl Engine for Accelerate {
    fn info(&self) -> EngineInfo {
        EngineInfo {
            name: "accelerate".into(),
            aliases: vec!["huggingface".into()],
            version: env!("CARGO_PKG_VERSION").into(),
            description: "transformer models on candle, layers placed by device map".into(),
            devices: devices(),
            capabilities: vec![MERGES_ADAPTERS.into()],
        }
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        let options = LoadOptions::parse(&request.options, &request.services)?;
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(request.n_threads.get())
            .thread_name(|idx| format!("accelerate-{idx}"))
            .build()
            .map_err(|error| {
                EngineError::wrap(ErrorKind::OutOfMemory, "no threads to compute on", &error)
            })?;
        let dir = ModelDir::open(request.model_dir, &UnpackOptions::default())
            .map_err(|error| error::model(&error))?;
        let config = ModelConfig::read(&dir).map_err(|error| error::model(&error))?;
        let architecture =
            Architecture::from_config(&config).map_err(|error| error::model(&error))?;
        let files = Weights::open(&dir).map_err(|error| error::model(&error))?;
        let adapter = request.adapter_dir.map(AdapterFiles::open).transpose();
        let adapter = adapter.map_err(|error| error::model(&error))?;
        let weights = match &adapter {
            Some(adapter) => CanonicalWeights::with_adapter(&architecture, &files, adapter),
            None => CanonicalWeights::new(&architecture, &files),
        }
        .map_err(|error| error::model(&error))?;
        warn_of_unused(request, &weights);
        let weight_bytes = weights.n_parameters() * F32;
        check_memory(request.model_name, weight_bytes)?;

        let loader = Loader::new(&architecture, &weights, &options.device, &request.services);
        let model_weights = threads.install(|| load_weights(&architecture, &loader))?;
        let mut info = describe(&architecture, &weights, &model_weights, &options);
        info.weight_bytes = weight_bytes;
        let limits = set_capacity(&mut info, &options)?;
        request.services.log(
            LogLevel::Info,
            &format!(
                "model {}: {} of {} parameters on {}, f32; KV cache of {} tokens",
                request.model_name,
                architecture.family,
                info.n_parameters,
                name(&options.device),
                info.kv_capacity_tokens
            ),
        );
        let cache = Cache::new(architecture.decoder.as_ref(), &options.device, limits);
        let tables = |stack: &Option<Stack>| {
            stack.as_ref().map_or_else(Tables::default, |stack| Tables {
                n_tokens: stack.embedding.n_tokens,
                n_token_types: stack.embedding.n_token_types,
            })
        };
        Ok(LoadedModel::Token(Box::new(CandleModel {
            info,
            encoder_tables: tables(&architecture.encoder),
            decoder_tables: tables(&architecture.decoder),
            weights: model_weights,
            cache,
            architecture,
            adapters: HashSet::new(),
            max_lora_rank: options.max_lora_rank,
            threads,
        })))
    }
}

fn devices() -> Vec<String> {
    let mut devices = vec!["cpu".to_owned()];
    if candle_core::utils::cuda_is_available() {
        devices.push("cuda:0".to_owned());
    }
    devices
}

fn name(device: &Device) -> &'static str {
    if device.is_cuda() { "cuda:0" } else { "cpu" }
}

/// Says which tensors of the files nothing is computed with.
fn warn_of_unused(request: &LoadRequest<'_>, weights: &CanonicalWeights<'_>) {
    const LISTED: usize = 8;
    let unused = weights.unused();
    if unused.is_empty() {
        return;
    }
    let more = if unused.len() > LISTED { ", ..." } else { "" };
    let names = unused[..unused.len().min(LISTED)].join(", ");
    request.services.log(
        LogLevel::Warn,
        &format!(
            "model {}: {} tensors of its files are not used: {names}{more}",
            request.model_name,
            unused.len()
        ),
    );
}

/// Refuses weights that would not fit, before they are read.
fn check_memory(model: &str, weight_bytes: u64) -> Result<(), EngineError> {
    match memory::available_bytes() {
        Some(available) if weight_bytes > available => Err(EngineError::out_of_memory(format!(
            "model {model} needs {} MiB for its weights in f32, {} MiB are available",
            weight_bytes >> 20,
            available >> 20
        ))),
        _ => Ok(()),
    }
}

fn load_weights(
    architecture: &Architecture,
    loader: &Loader<'_>,
) -> Result<ModelWeights, EngineError> {
    let stack = |stack: &Option<Stack>| stack.as_ref().map(|s| loader.stack(s)).transpose();
    let has_pooler = architecture.pooler.is_some() && loader.has("pooler.weight");
    Ok(ModelWeights {
        encoder: stack(&architecture.encoder)?,
        decoder: stack(&architecture.decoder)?,
        head: Head::load(architecture, loader)?,
        pooler: has_pooler.then(|| loader.linear("pooler")).transpose()?,
    })
}

/// The model's figures but for its capacity.
fn describe(
    architecture: &Architecture,
    weights: &CanonicalWeights<'_>,
    loaded: &ModelWeights,
    options: &LoadOptions,
) -> TokenModelInfo {
    let positions = |stack: &Option<Stack>| stack.as_ref().map_or(0, |s| s.max_positions);
    let kind = match architecture.kind {
        Kind::Decoder => ModelKind::Decoder,
        Kind::EncoderDecoder => ModelKind::EncoderDecoder,
        Kind::Encoder => ModelKind::Encoder,
    };
    let (max_positions, max_encoder_positions) = match kind {
        ModelKind::Encoder => (positions(&architecture.encoder), 0),
        _ => (positions(&architecture.decoder), positions(&architecture.encoder)),
    };
    let whole_input =
        if kind == ModelKind::Encoder { max_positions } else { max_encoder_positions };
    let kv_bytes = |attention: &Attention| 2 * attention.kv_width() as u64 * F32;
    let layers = architecture.decoder.iter().flat_map(|stack| &stack.layers);
    let crosses = layers.clone().filter_map(|layer| layer.cross_attention.as_ref());
    TokenModelInfo {
        kind,
        vocab: architecture.stacks().map(|stack| stack.embedding.n_tokens).max().unwrap_or(0),
        head: loaded.head.as_ref().map_or(HeadKind::None, |head| head.kind),
        n_logits: loaded.head.as_ref().map_or(0, |head| head.width),
        dim: architecture.output_dim(),
        max_positions,
        max_encoder_positions,
        kv_capacity_tokens: 0,
        kv_bytes_per_token: layers.map(|layer| kv_bytes(&layer.self_attention)).sum(),
        kv_block_tokens: BLOCK_TOKENS as u32,
        cross_capacity_tokens: 0,
        cross_bytes_per_token: crosses.map(kv_bytes).sum(),
        max_sequences: options.max_sequences.saturating_mul(1 + KEPT_SEQUENCES),
        max_batch_tokens: MAX_BATCH_TOKENS.max(whole_input),
        weight_bytes: 0,
        n_parameters: weights.n_parameters(),
        default_decoder_input: match architecture.default_decoder_input {
            drivetrain_transformer::DefaultDecoderInput::None => DefaultDecoderInput::None,
            drivetrain_transformer::DefaultDecoderInput::ShiftRight => {
                DefaultDecoderInput::ShiftRight
            }
            drivetrain_transformer::DefaultDecoderInput::RotateLast => {
                DefaultDecoderInput::RotateLast
            }
        },
        has_pooler: loaded.pooler.is_some(),
        has_adapters: true,
    }
}

/// Sequences for each of `option.max_rolling_batch_size` that may live beside it: the host keeps
/// prefixes in them, which cost no more than the blocks they hold.
const KEPT_SEQUENCES: u32 = 8;

/// Shares the memory that is left out to the caches. Half of it stays free for activations and for
/// others; no cache is larger than what all sequences could use. Blocks that are not full are
/// paid for ahead.
fn set_capacity(info: &mut TokenModelInfo, options: &LoadOptions) -> Result<Limits, EngineError> {
    let sequences = u64::from(options.max_sequences);
    let most = |positions: u32| sequences * u64::from(positions);
    if info.kind == ModelKind::Encoder {
        (info.kv_capacity_tokens, info.cross_capacity_tokens) = (u64::MAX, u64::MAX);
    } else {
        let budget = memory::available_bytes().map_or(u64::MAX, |available| available / 2);
        let (kv, cross) = (info.kv_bytes_per_token.max(1), info.cross_bytes_per_token);
        let share = if cross > 0 { budget / 2 } else { budget };
        let overhead = sequences * (BLOCK_TOKENS as u64 - 1);
        let fits = (share / kv).saturating_sub(overhead);
        info.kv_capacity_tokens = fits.min(most(info.max_positions));
        info.cross_capacity_tokens = match share.checked_div(cross) {
            Some(tokens) => tokens.min(most(info.max_encoder_positions)),
            None => 0,
        };
        let shortest = BLOCK_TOKENS as u64;
        if info.kv_capacity_tokens < shortest.min(u64::from(info.max_positions)) {
            return Err(EngineError::out_of_memory(format!(
                "the KV cache needs {kv} bytes a token and {sequences} sequences; {} MiB are left \
                 for it; lower option.max_rolling_batch_size",
                share >> 20
            )));
        }
    }
    Ok(Limits {
        tokens: info.kv_capacity_tokens,
        cross_tokens: info.cross_capacity_tokens,
        sequences: info.max_sequences as usize,
    })
}
