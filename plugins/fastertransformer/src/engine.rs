//! The engine: finds out what a model is, checks that it fits, loads it.

use std::collections::HashSet;

use drivetrain_engine::{
    Engine, EngineError, EngineInfo, ErrorKind, LoadRequest, LoadedModel, LogLevel, MERGES_ADAPTERS,
};
use drivetrain_execution::{
    Capacity, HeadPlan, KvForm, ModelFiles, Runs, Tables, check_memory, figures,
};
use drivetrain_kernels::{
    BlockFormat, Cpu, FORCE_VARIABLE, Isa, Pool, Precision, TOKENS_PER_BLOCK,
};

use crate::arena::{Arena, rotations};
use crate::cache::Caches;
use crate::head::Head;
use crate::load::{Loader, planned_bytes};
use crate::model::{FusedModel, ModelWeights, WeightsOfFiles};
use crate::options::{LoadOptions, WeightForm};

/// The fused-kernel engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct FasterTransformer;

impl Engine for FasterTransformer {
    fn info(&self) -> EngineInfo {
        EngineInfo {
            name: "fastertransformer".into(),
            aliases: vec!["ft".into()],
            version: env!("CARGO_PKG_VERSION").into(),
            description: "transformer models on fused CPU kernels".into(),
            devices: vec!["cpu".into()],
            capabilities: vec![MERGES_ADAPTERS.into()],
        }
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        let options = LoadOptions::parse(&request.options, &request.services)?;
        let forced = std::env::var(FORCE_VARIABLE).ok();
        let isa = Isa::choose(forced.as_deref())
            .map_err(|error| EngineError::unsupported(error.to_string()))?;
        let pool = Pool::new(request.n_threads).map_err(|error| {
            EngineError::wrap(ErrorKind::OutOfMemory, "no threads to compute on", &error)
        })?;
        let files = ModelFiles::open(request)?;
        let weights = WeightsOfFiles::try_new(files, |files| {
            load_weights(files, request, &options, Cpu { isa, pool: &pool })
        })?;
        let architecture = &weights.borrow_owner().architecture;
        let loaded = weights.borrow_dependent();
        let canonical = weights.borrow_owner().canonical()?;
        let kv = KvForm {
            element_bytes: options.kv.element_bytes() as u64,
            scale_bytes: options.kv.scale_bytes() as u64,
            block_tokens: TOKENS_PER_BLOCK as u32,
        };
        let mut info = figures(architecture, &canonical, loaded.head_plan(), kv);
        drop(canonical);
        info.weight_bytes = loaded.n_bytes() as u64;
        info.has_adapters = true;
        let capacity = Capacity::plan(&mut info, options.max_sequences)?;
        request.services.log(
            LogLevel::Info,
            &format!(
                "model {}: {} of {} parameters on the CPU ({isa}), {}; KV cache of {} tokens",
                request.model_name,
                architecture.family,
                info.n_parameters,
                held_as(options.weights),
                info.kv_capacity_tokens
            ),
        );
        let caches = Caches::new(architecture, &info, capacity, options.kv)?;
        let n_rotaries = architecture.stacks().map(|stack| rotations(stack).0.len()).max();
        let n_rows = info.max_batch_tokens as usize;
        let scratch = loaded.scratch_bytes(n_rows, pool.n_threads());
        let arena = Arena::new(architecture, n_rotaries.unwrap_or(0), n_rows, scratch);
        Ok(LoadedModel::Token(Box::new(FusedModel {
            info,
            encoder_tables: Tables::of(architecture.encoder.as_ref()),
            decoder_tables: Tables::of(architecture.decoder.as_ref()),
            weights,
            caches,
            arena,
            planned: Vec::new(),
            runs: Runs::default(),
            selected: Runs::default(),
            adapters: HashSet::new(),
            max_lora_rank: options.max_lora_rank,
            services: request.services.clone(),
            isa,
            pool,
        })))
    }
}

/// How weights are held, and why, for the log.
fn held_as(form: WeightForm) -> &'static str {
    match form {
        WeightForm::AsStored => {
            "weights as the checkpoint has them, since f32 arithmetic on them loses nothing"
        }
        WeightForm::Packed(Precision::F32) => "weights in f32",
        WeightForm::Packed(Precision::F16) => "weights in f16, multiplied in f32",
        WeightForm::Packed(Precision::Bf16) => "weights in bf16, multiplied in f32",
        WeightForm::Packed(Precision::Int8Weights) => "weights in int8, multiplied in f32",
        WeightForm::Packed(_) => "weights in int8, activations quantised for each product",
        WeightForm::Encoded(BlockFormat::Q8Zero) => "weights in blocks of 8 bits (Q8_0)",
        WeightForm::Encoded(_) => "weights in blocks of 4 bits (Q4_1), the head's of 8 (Q8_0)",
    }
}

fn load_weights<'a>(
    files: &'a ModelFiles,
    request: &LoadRequest<'_>,
    options: &LoadOptions,
    cpu: Cpu<'_>,
) -> Result<ModelWeights<'a>, EngineError> {
    let weights = files.canonical()?;
    ModelFiles::warn_of_unused(request, &weights);
    let architecture = &files.architecture;
    let bytes = planned_bytes(architecture, &weights, options.weights);
    check_memory(request.model_name, bytes, held_as(options.weights))?;
    let loader = Loader {
        weights: &weights,
        cpu,
        form: options.weights,
        services: &request.services,
        dim: architecture.dim as usize,
        done: std::cell::Cell::new(0),
    };
    let head = HeadPlan::of(architecture, &weights).map(|plan| -> Result<Head<'a>, EngineError> {
        let dense = plan.dense.map(|_| loader.linear("head.dense")).transpose()?;
        let norm = loader.norm("head.norm", plan.norm)?;
        let mut linear = loader.linear("head")?;
        if let Some(cap) = plan.soft_cap {
            linear.scale_bias(1.0 / cap);
        }
        Ok(Head { plan, dense, norm, linear })
    });
    let has_pooler = architecture.pooler.is_some() && loader.has("pooler.weight");
    Ok(ModelWeights {
        encoder: architecture.encoder.as_ref().map(|s| loader.stack(s)).transpose()?,
        decoder: architecture.decoder.as_ref().map(|s| loader.stack(s)).transpose()?,
        head: head.transpose()?,
        pooler: has_pooler.then(|| loader.linear("pooler")).transpose()?,
    })
}
