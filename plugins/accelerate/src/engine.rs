//! The engine: finds out what a model is, checks that it fits, loads it.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use drivetrain_device_map::Device;
use drivetrain_engine::{
    Engine, EngineError, EngineInfo, ErrorKind, LoadPlan, LoadRequest, LoadedModel, LogLevel,
    MERGES_ADAPTERS, TokenModelInfo,
};
use drivetrain_execution::{HeadPlan, KvForm, ModelFiles, Tables, figures};
use drivetrain_transformer::{Architecture, CanonicalWeights, Stack};

use crate::cache::{BLOCK_TOKENS, Cache};
use crate::executor::Executor;
use crate::forms::{Forms, WeightForm};
use crate::head::Head;
use crate::load::{Loader, Source};
use crate::memory::{Arrangement, Arranger, F32};
use crate::model::{CandleModel, ModelWeights, PassUnits};
use crate::options::LoadOptions;
use crate::placing::{Home, StackHomes};
use crate::streaming::{Streamed, Streamer};

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

    fn plan(&self, request: &LoadRequest<'_>) -> Result<Option<LoadPlan>, EngineError> {
        let options = LoadOptions::parse(&request.options, &request.services)?;
        let files = ModelFiles::open(request)?;
        let weights = files.canonical()?;
        let places = Places::of(&files.architecture, &weights, &options, request.n_threads)?;
        if places.arrangement.uses_disk() {
            check_offload_folder(options.offload_folder.as_deref())?;
        }
        Ok(Some(places.arrangement.into_plan(&places.info)))
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        let options = LoadOptions::parse(&request.options, &request.services)?;
        let files = Arc::new(ModelFiles::open(request)?);
        let weights = files.canonical()?;
        ModelFiles::warn_of_unused(request, &weights);
        let places = Places::of(&files.architecture, &weights, &options, request.n_threads)?;
        let Places { mut info, head, arrangement, devices, wanted, on_cpu } = places;
        let forms = Forms { weights: &weights, wanted, on_cpu };
        report(request, (&files.architecture, forms), &info, &arrangement);
        if arrangement.uses_disk() {
            check_offload_folder(options.offload_folder.as_deref())?;
        }
        let executors = executors(&devices, request.n_threads)?;
        let source = Source::new(&files.architecture, forms, &request.services);
        let model_weights =
            load_weights(&files.architecture, head, &source, &arrangement, &executors)?;
        let limits = arrangement.capacity;
        info.weight_bytes = forms.total_bytes();
        info.has_adapters = true;
        let number = arrangement.placed.homes.main;
        let main = executors.get(number).or(executors.first()).map(Arc::clone);
        let main = main.ok_or_else(|| EngineError::internal("there is no device"))?;
        let reads = Arc::clone(&source.reads);
        let lent = model_weights.lent();
        let is_needed = arrangement.placed.homes.has(Home::Disk) || !lent.is_empty();
        let streamer = is_needed.then(|| {
            Streamer::start(Streamed {
                wanted,
                files: Arc::clone(&files),
                executor: Arc::clone(&main),
                number,
                services: request.services.clone(),
                lent,
            })
        });
        let architecture = &files.architecture;
        Ok(LoadedModel::Token(Box::new(CandleModel {
            info,
            encoder_tables: Tables::of(architecture.encoder.as_ref()),
            decoder_tables: Tables::of(architecture.decoder.as_ref()),
            cache: Cache::new(model_weights.decoder.as_ref(), limits),
            units: PassUnits::of(&model_weights),
            weights: model_weights,
            architecture: architecture.clone(),
            adapters: HashSet::new(),
            max_lora_rank: options.max_lora_rank,
            streamer: streamer.transpose()?,
            reads,
            main,
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

/// A model with its places, before anything of it is in memory.
struct Places {
    info: TokenModelInfo,
    head: Option<HeadPlan>,
    arrangement: Arrangement,
    devices: Vec<Device>,
    /// How matrices are held.
    wanted: WeightForm,
    /// Whether no device has memory of its own.
    on_cpu: bool,
}

impl Places {
    fn of(
        architecture: &Architecture,
        weights: &CanonicalWeights<'_>,
        options: &LoadOptions,
        n_threads: NonZeroUsize,
    ) -> Result<Self, EngineError> {
        let head = HeadPlan::of(architecture, weights);
        let kv = KvForm { element_bytes: F32, scale_bytes: 0, block_tokens: BLOCK_TOKENS as u32 };
        let mut info = figures(architecture, weights, head.as_ref(), kv);
        let mut devices = vec![Device::Cpu];
        match options.n_virtual {
            0 if cfg!(feature = "cuda") && candle_core::utils::cuda_is_available() => {
                devices.push(Device::Accelerator(0));
            }
            n => devices.extend((0..n).map(Device::Accelerator)),
        }
        // An accelerator with memory of its own takes f32.
        let on_cpu = options.n_virtual > 0 || devices.len() == 1;
        let wanted = if on_cpu { options.weights } else { WeightForm::Full };
        let forms = Forms { weights, wanted, on_cpu };
        let arranger = Arranger { architecture, forms, options, kv, devices: &devices, n_threads };
        let arrangement = arranger.arrange(&mut info)?;
        Ok(Self { info, head, arrangement, devices, wanted, on_cpu })
    }
}

/// Says where everything is and what it takes.
fn report(
    request: &LoadRequest<'_>,
    (architecture, forms): (&Architecture, Forms<'_, '_>),
    info: &TokenModelInfo,
    arrangement: &Arrangement,
) {
    let log = |level, message: &str| {
        request.services.log(level, &format!("model {}: {message}", request.model_name));
    };
    for note in &arrangement.notes {
        log(LogLevel::Warn, note);
    }
    let map: Vec<String> = arrangement
        .placed
        .map
        .iter()
        .map(|(name, device)| format!("{}: {device}", if name.is_empty() { "all" } else { name }))
        .collect();
    log(
        LogLevel::Info,
        &format!(
            "{} of {} parameters, {}, {}; KV cache of {} tokens",
            architecture.family,
            info.n_parameters,
            forms.names(),
            map.join(", "),
            info.kv_capacity_tokens
        ),
    );
    for device in arrangement.devices.iter().filter(|device| device.total_bytes() > 0) {
        let parts: Vec<String> = device
            .parts
            .iter()
            .filter(|part| part.bytes > 0)
            .map(|part| format!("{} {:.1}", part.what, part.bytes as f64 / 1_048_576.0))
            .collect();
        let total = device.total_bytes() as f64 / 1_048_576.0;
        let name = &device.name;
        log(
            LogLevel::Info,
            &format!("device {name}: {total:.1} MiB planned: {}", parts.join(", ")),
        );
    }
}

/// Refuses a folder that can't be written to, though what is offloaded is read from the model's own
/// files: whoever names one expects it to work.
fn check_offload_folder(folder: Option<&Path>) -> Result<(), EngineError> {
    let Some(folder) = folder else { return Ok(()) };
    let probe = folder.join(format!(".drivetrain-{}", std::process::id()));
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&probe, b""))
        .and_then(|()| std::fs::remove_file(&probe));
    written.map_err(|error| {
        let folder = folder.display();
        let message = format!("option.offload_folder={folder}: it can't be written to");
        EngineError::wrap(ErrorKind::BadInput, message, &error)
    })
}

/// Threads for each device. Virtual devices share those of the CPU.
fn executors(
    devices: &[Device],
    n_threads: NonZeroUsize,
) -> Result<Vec<Arc<Executor>>, EngineError> {
    let n_accelerators = devices.len().saturating_sub(1).max(1);
    let share = NonZeroUsize::new(n_threads.get() / n_accelerators).unwrap_or(NonZeroUsize::MIN);
    let executor = |device: &Device| {
        let n_threads = if device.is_accelerator() { share } else { n_threads };
        Executor::new(&device.to_string(), candle_device(*device)?, n_threads).map(Arc::new)
    };
    devices.iter().map(executor).collect()
}

#[cfg(not(feature = "cuda"))]
fn candle_device(_: Device) -> Result<candle_core::Device, EngineError> {
    Ok(candle_core::Device::Cpu)
}

#[cfg(feature = "cuda")]
fn candle_device(device: Device) -> Result<candle_core::Device, EngineError> {
    match device {
        Device::Accelerator(ordinal) if candle_core::utils::cuda_is_available() => {
            candle_core::Device::new_cuda(ordinal as usize).map_err(|error| {
                let message = format!("cuda:{ordinal} can't be used");
                EngineError::wrap(ErrorKind::Unsupported, message, &error)
            })
        }
        _ => Ok(candle_core::Device::Cpu),
    }
}

fn load_weights(
    architecture: &Architecture,
    head: Option<HeadPlan>,
    source: &Source<'_>,
    arrangement: &Arrangement,
    executors: &[Arc<Executor>],
) -> Result<ModelWeights, EngineError> {
    let homes = &arrangement.placed.homes;
    let loader = |number: usize| {
        let executor = executors.get(number).or(executors.first());
        let executor = executor.ok_or_else(|| EngineError::internal("there is no device"))?;
        Ok::<_, EngineError>((Loader::new(source, number, executor), executor))
    };
    let (main, main_executor) = loader(homes.main)?;
    let stack = |stack: &Option<Stack>, homes: &Option<StackHomes>| {
        let both = stack.as_ref().zip(homes.as_ref());
        both.map(|(stack, homes)| main.stack(stack, homes, executors)).transpose()
    };
    let has_pooler = architecture.pooler.is_some() && main.has("pooler.weight");
    let (head_loader, head_executor) = loader(homes.head.executor().unwrap_or(homes.main))?;
    let load_head = |plan| {
        let pieces = (homes.head, arrangement.head_pieces.clone());
        Head::load(plan, &head_loader, Arc::clone(head_executor), pieces)
    };
    main_executor.run(|| {
        Ok(ModelWeights {
            encoder: stack(&architecture.encoder, &homes.encoder)?,
            decoder: stack(&architecture.decoder, &homes.decoder)?,
            head: head.map(load_head).transpose()?,
            pooler: has_pooler.then(|| main.linear("pooler")).transpose()?,
        })
    })
}
