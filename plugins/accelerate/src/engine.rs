//! The engine: finds out what a model is, checks that it fits, loads it.

use std::collections::HashSet;

use candle_core::Device;
use drivetrain_engine::{
    Engine, EngineError, EngineInfo, ErrorKind, LoadRequest, LoadedModel, LogLevel, MERGES_ADAPTERS,
};
use drivetrain_execution::{Capacity, HeadPlan, KvForm, ModelFiles, Tables, check_memory, figures};
use drivetrain_transformer::{Architecture, Stack};

use crate::cache::{BLOCK_TOKENS, Cache};
use crate::head::Head;
use crate::load::Loader;
use crate::model::{CandleModel, ModelWeights};
use crate::options::LoadOptions;

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
        let files = ModelFiles::open(request)?;
        let weights = files.canonical()?;
        ModelFiles::warn_of_unused(request, &weights);
        let weight_bytes = weights.n_parameters() * F32;
        check_memory(request.model_name, weight_bytes, "f32")?;

        let architecture = &files.architecture;
        let head = HeadPlan::of(architecture, &weights);
        let loader = Loader::new(architecture, &weights, &options.device, &request.services);
        let model_weights = threads.install(|| load_weights(architecture, head, &loader))?;
        let kv = KvForm { element_bytes: F32, scale_bytes: 0, block_tokens: BLOCK_TOKENS as u32 };
        let mut info = figures(architecture, &weights, head.as_ref(), kv);
        (info.weight_bytes, info.has_adapters) = (weight_bytes, true);
        let limits = Capacity::plan(&mut info, options.max_sequences)?;
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
        Ok(LoadedModel::Token(Box::new(CandleModel {
            info,
            encoder_tables: Tables::of(architecture.encoder.as_ref()),
            decoder_tables: Tables::of(architecture.decoder.as_ref()),
            weights: model_weights,
            cache,
            architecture: architecture.clone(),
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

fn load_weights(
    architecture: &Architecture,
    head: Option<HeadPlan>,
    loader: &Loader<'_>,
) -> Result<ModelWeights, EngineError> {
    let stack = |stack: &Option<Stack>| stack.as_ref().map(|s| loader.stack(s)).transpose();
    let has_pooler = architecture.pooler.is_some() && loader.has("pooler.weight");
    Ok(ModelWeights {
        encoder: stack(&architecture.encoder)?,
        decoder: stack(&architecture.decoder)?,
        head: head.map(|plan| Head::load(plan, loader)).transpose()?,
        pooler: has_pooler.then(|| loader.linear("pooler")).transpose()?,
    })
}
