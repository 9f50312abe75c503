//! From a place and settings to a model that answers: what a model's thread does first.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use drivetrain_artifacts::ModelDir;
use drivetrain_config::{Environment, ModelSpec, ServerConfig};
use drivetrain_engine::{
    Engine, EngineError, ErrorKind, LoadRequest, LoadedModel, MERGES_ADAPTERS, Options,
    RequestModel, Services, TokenModel,
};

use super::inbox::Inbox;
use super::open::{LoadWatch, Opened, adapters_of, code_adapters_of, open, runs_own_code};
use super::reload::Reload;
use super::request_pool::{RawJob, RequestPool, panic_text};
use super::services::{ModelServices, Published};
use super::token_worker::{TokenWorker, is_loss};
use super::{Door, ModelHandle, Shared};
use crate::HostError;
use crate::adapters::Mail;
use crate::memory::{self, Bytes};
use crate::registry::{EngineRegistry, FoundEngine};
use crate::scheduler::{Limits, Policy};
use crate::tasks::{ModelText, TaskContext};

/// Longest silence of an engine before its model is unhealthy, unless `predict_timeout` is shorter.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);

/// No engine has to show life oftener: an idle thread does so once a second, and one that the
/// machine is slow to wake is not ill.
const SHORTEST_SILENCE_LIMIT: Duration = Duration::from_secs(5);

/// What to load, and with what.
pub(crate) struct LoadInputs {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) env: Arc<Environment>,
    pub(crate) engines: Arc<EngineRegistry>,
    pub(crate) spec: ModelSpec,
    /// Further settings, which go before those of `spec`.
    pub(crate) settings: Vec<(String, String)>,
}

/// A model with the worker that will drive it.
enum Loaded {
    /// The model is away while it is loaded again.
    Token(TokenWorker, Option<Box<dyn TokenModel>>, Option<Box<Reload>>),
    Request(RequestPool, Box<dyn RequestModel>),
}

/// Starts the model's thread, which loads it and then works until the model goes.
pub(crate) fn spawn(handle: &ModelHandle, inputs: LoadInputs) -> Result<(), HostError> {
    let shared = Arc::clone(handle.shared());
    let name = format!("model-{}", shared.name);
    let started = thread::Builder::new().name(name).spawn(move || live(shared, &inputs));
    started.map(drop).map_err(|error| HostError::Io {
        what: format!("starting a thread for model {}", handle.name()),
        source: Arc::new(error),
    })
}

/// A model's whole life. Whatever ends it, the state says so before the jobs are let go, and both
/// before the model is: an engine may take long to give back what it holds.
fn live(shared: Arc<Shared>, inputs: &LoadInputs) {
    let lifecycle = Arc::clone(&shared.lifecycle);
    let name = shared.name.clone();
    let inboxes = Inboxes::default();
    let mut slot = None;
    let end = catch_unwind(AssertUnwindSafe(|| {
        let loaded = slot.insert(load(&shared, inputs, &inboxes)?);
        drop(shared);
        match loaded {
            Loaded::Token(worker, model, reload) => drive(worker, model, reload.as_deref_mut()),
            Loaded::Request(pool, model) => pool.run(&**model),
        }
    }))
    .unwrap_or_else(|panic| Err(EngineError::internal(panic_text(&*panic)).into()));
    if let Err(error) = end {
        tracing::error!(model = name, error = error.chain(), "the model has failed");
        lifecycle.fail(error);
    }
    inboxes.abandon();
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(slot))) {
        let panic = panic_text(&*panic);
        tracing::error!(model = name, panic, "the engine could not let go of the model");
    }
    tracing::info!(model = name, "the model is unloaded");
    lifecycle.gone();
}

/// Works until the model goes for good.
fn drive(
    worker: &mut TokenWorker,
    slot: &mut Option<Box<dyn TokenModel>>,
    reload: Option<&mut Reload>,
) -> Result<(), HostError> {
    let mut reload = reload;
    while let Some(model) = slot {
        let end = worker.run(&mut **model);
        match (&mut reload, end) {
            (Some(reload), Err(error)) if is_loss(Some(&error)) => {
                *slot = None;
                *slot = reload.again(worker, error)?;
            }
            (_, end) => return end,
        }
    }
    Ok(())
}

/// The inbox of the model, whichever it is, for the end of its thread.
#[derive(Default)]
struct Inboxes {
    token: OnceLock<Arc<Inbox<Mail>>>,
    request: OnceLock<Arc<Inbox<RawJob>>>,
}

impl Inboxes {
    fn abandon(&self) {
        if let Some(inbox) = self.token.get() {
            inbox.abandon();
        }
        if let Some(inbox) = self.request.get() {
            inbox.abandon();
        }
    }
}

fn load(shared: &Shared, inputs: &LoadInputs, inboxes: &Inboxes) -> Result<Loaded, HostError> {
    let started = Instant::now();
    let name = shared.name.as_str();
    let opened = open(shared, inputs, &LoadWatch(shared))?;
    let config = Arc::clone(&opened.config);
    memory::check(name, &config.memory)?;
    let candidates = inputs.engines.candidates(&config.engine.value)?;
    let found: Vec<&str> = candidates.iter().map(|found| found.info.name.as_str()).collect();
    tracing::info!(model = name, wanted = %config.engine.value, set_by = %config.engine.source,
        candidates = ?found, "engines to try, best first");
    // The text side is read while the engine loads; only a scheduled model needs it.
    let files = &opened.texts;
    let (loaded, text) = thread::scope(|scope| {
        let wanted = config.task.as_ref().map(|task| task.value.as_str());
        let text = scope.spawn(move || ModelText::read(files, wanted));
        let n_threads = inputs.env.n_threads();
        let loaded = ask_engines(shared, &opened, &candidates, n_threads, |engine, request| {
            engine.load(request)
        });
        let text = text.join().unwrap_or_else(|panic| {
            Err(EngineError::internal(format!("tokenizer: {}", panic_text(&*panic))).into())
        });
        (loaded, text)
    });
    let model = loaded?;
    shared.lifecycle.set_beat_limit(silence_limit(config.predict_timeout.value));
    let capacity = config.batching.queue_capacity.value.get() as usize;
    let lifecycle = Arc::clone(&shared.lifecycle);
    let (loaded, door) = match model {
        LoadedModel::Token(mut model) => {
            let info = model.info();
            check_info(&info)?;
            log_figures(name, &info);
            let batching = &config.batching;
            let step_tokens = batching.max_prefill_tokens.as_ref().map(|n| n.value.get());
            let mut limits = Limits::new(info, batching.max_sequences.value.get(), step_tokens);
            limits.policy = Policy {
                keeps_prefixes: batching.keeps_prefixes.value,
                batch_size: batching.max_requests.value.get() as usize,
                max_delay: batching.max_delay.value,
                n_lookup: batching.lookup_tokens.value as usize,
                lookup_ngram: batching.lookup_ngram.value.get() as usize,
            };
            let wanted = config.task.as_ref().map(|task| task.value.as_str());
            let tasks = Arc::new(TaskContext::new(name, wanted, text?, limits)?);
            let inbox = Arc::new(Inbox::new(capacity));
            let _ = inboxes.token.set(Arc::clone(&inbox));
            let adapters = adapters_of(&opened, &inbox, model.as_mut())?;
            let reload =
                Reload::of(shared, inputs, &candidates, (opened, adapters.clone())).map(Box::new);
            let worker = TokenWorker {
                name: name.to_owned(),
                inbox: Arc::clone(&inbox),
                lifecycle,
                limits,
                retry_threshold: config.workers.retry_threshold.value,
                reloads: reload.is_some(),
                n_leaked: Arc::new(AtomicUsize::new(0)),
            };
            (Loaded::Token(worker, Some(model), reload), Door::Token { inbox, tasks, adapters })
        }
        LoadedModel::Request(model) => {
            let inbox = Arc::new(Inbox::new(capacity));
            let _ = inboxes.request.set(Arc::clone(&inbox));
            let pool = RequestPool {
                name: name.to_owned(),
                inbox: Arc::clone(&inbox),
                lifecycle,
                stop: Arc::clone(&shared.stop),
                batch_size: config.batching.max_requests.value.get() as usize,
                batch_delay: config.batching.max_delay.value,
            };
            let adapters = code_adapters_of(&opened)?;
            (Loaded::Request(pool, model), Door::Request { inbox, adapters })
        }
    };
    let _ = shared.door.set(door);
    if shared.activity.is_draining() || !shared.lifecycle.ready() {
        return Err(HostError::ShuttingDown);
    }
    let task = shared.task().map(|task| task.name());
    let engine = shared.engine.get().map(|info| info.name.as_str());
    tracing::info!(
        model = name,
        engine,
        task,
        elapsed_ms = started.elapsed().as_millis() as u64,
        "the model is ready"
    );
    Ok(loaded)
}

/// How long a model with this `predict_timeout` may show no life; 0 stands for no limit.
fn silence_limit(predict_timeout: Duration) -> Duration {
    if predict_timeout.is_zero() {
        return SILENCE_LIMIT;
    }
    predict_timeout.clamp(SHORTEST_SILENCE_LIMIT, SILENCE_LIMIT)
}

/// Gives the request for the model to the engines until one can do what `ask` asks of it. An engine
/// chosen by name is the only one.
pub(super) fn ask_engines<T>(
    shared: &Shared,
    opened: &Opened,
    candidates: &[&FoundEngine],
    n_threads: NonZeroUsize,
    ask: impl Fn(&dyn Engine, &LoadRequest<'_>) -> Result<T, EngineError>,
) -> Result<T, HostError> {
    let Opened { weights: files, adapter, .. } = opened;
    let mut first_error = None;
    for (idx, found) in candidates.iter().enumerate() {
        let engine = found.info.name.as_str();
        if adapter.is_some() && !found.info.capabilities.iter().any(|c| c == MERGES_ADAPTERS) {
            first_error.get_or_insert(HostError::Source {
                key: "adapter_config.json",
                value: files.path().display().to_string(),
                reason: format!("engine {engine} merges no adapters into their base"),
            });
            continue;
        }
        shared.lifecycle.progress("loading", 0, 0);
        let services = Services::new(Arc::new(ModelServices {
            model: shared.name.clone(),
            engine: engine.to_owned(),
            lifecycle: Arc::clone(&shared.lifecycle),
            stop: Arc::clone(&shared.stop),
            published: Published::default(),
            limit: None,
        }));
        let asked = (shared.name.as_str(), n_threads, services);
        match with_request(opened, asked, |request| ask(&*found.engine, request)) {
            Ok(answer) => {
                let why =
                    if candidates.len() == 1 { "the only candidate" } else { "loads it first" };
                tracing::info!(model = shared.name, engine, why, "the engine is chosen");
                let _ = shared.engine.set(found.info.clone());
                return Ok(answer);
            }
            Err(error) => {
                if shared.lifecycle.load_is_late() {
                    let limit = shared.lifecycle.load_limit();
                    return Err(HostError::LoadTimeout { model: shared.name.clone(), limit });
                }
                let may_go_on =
                    matches!(error.kind(), ErrorKind::BadInput | ErrorKind::Unsupported);
                let error = HostError::from(error);
                if !may_go_on {
                    return Err(error);
                }
                if idx + 1 < candidates.len() {
                    let error = error.chain();
                    tracing::info!(model = shared.name, engine, error, "the engine can't load it");
                }
                first_error.get_or_insert(error);
            }
        }
    }
    Err(first_error.unwrap_or_else(|| EngineError::internal("no engine was tried").into()))
}

/// Asks something of an engine with the request for the model: of this name, on so many threads.
pub(super) fn with_request<T>(
    opened: &Opened,
    (name, n_threads, services): (&str, NonZeroUsize, Services),
    ask: impl FnOnce(&LoadRequest<'_>) -> T,
) -> T {
    let Opened { config, weights: files, adapter, .. } = opened;
    // Code that comes with the model is in its own directory, wherever the weights are.
    let model_dir = match &opened.own {
        Some(own) if runs_own_code(config) => own.path(),
        _ => files.location(),
    };
    let local = files.path().to_string_lossy();
    // An engine, or the code behind it, is to load what was brought here, not bring it again.
    let is_address = |key: &str, value: &str| key == "model_id" && value.contains("://");
    let options: Vec<(&str, &str)> = config
        .options
        .iter()
        .map(|(key, value)| match is_address(key, value) {
            true => (key.as_str(), local.as_ref()),
            false => (key.as_str(), value.as_str()),
        })
        .collect();
    ask(&LoadRequest {
        model_name: name,
        model_dir,
        adapter_dir: adapter.as_ref().map(ModelDir::location),
        options: Options::new(&options),
        n_threads,
        services,
    })
}

/// An engine's figures have to make sense before anything is divided or allocated by them.
pub(super) fn check_info(info: &drivetrain_engine::TokenModelInfo) -> Result<(), HostError> {
    let zeros = [
        ("vocab", info.vocab),
        ("max_positions", info.max_positions),
        ("kv_block_tokens", info.kv_block_tokens),
        ("max_sequences", info.max_sequences),
        ("max_batch_tokens", info.max_batch_tokens),
    ];
    match zeros.into_iter().find(|(_, value)| *value == 0) {
        Some((field, _)) => {
            let message =
                format!("the engine says that the model's {field} is 0: it has to be 1 or more");
            Err(EngineError::internal(message).into())
        }
        None => Ok(()),
    }
}

fn log_figures(model: &str, info: &drivetrain_engine::TokenModelInfo) {
    let product = |tokens: u64, bytes: u64| match tokens {
        u64::MAX => "without limit".to_owned(),
        tokens => Bytes(tokens.saturating_mul(bytes)).to_string(),
    };
    tracing::info!(
        model,
        kind = ?info.kind,
        parameters = info.n_parameters,
        weights = %Bytes(info.weight_bytes),
        kv_cache = product(info.kv_capacity_tokens, info.kv_bytes_per_token),
        cross_cache = product(info.cross_capacity_tokens, info.cross_bytes_per_token),
        available = %memory::available().map_or_else(|| "unknown".to_owned(), |b| Bytes(b).to_string()),
        max_positions = info.max_positions,
        max_sequences = info.max_sequences,
        max_batch_tokens = info.max_batch_tokens,
        "the model's figures"
    );
}
