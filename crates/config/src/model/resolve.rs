//! From layers to [`ModelConfig`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Batching, MemoryNeeds, ModelConfig, ModelInputs, Options, WorkerBounds, Workers};
use crate::engine::{DirLooks, EngineChoice, HandlerKind, is_built_in_entry_point};
use crate::environment::Environment;
use crate::error::{ConfigError, Warning, shown};
use crate::keys::{self, Scope};
use crate::layers::{Layers, Setting};
use crate::properties::Properties;
use crate::source::{Source, Sourced};
use crate::values::RollingBatch;

/// The file of a model's settings.
const FILE_NAME: &str = "serving.properties";

/// Registration parameters that say what to load and not how.
const NOT_SETTINGS: [&str; 4] = ["url", "model_name", "model_version", "synchronous"];

pub(super) fn resolve(input: ModelInputs<'_>) -> Result<(ModelConfig, Vec<Warning>), ConfigError> {
    let mut layers = layers(&input)?;
    let l = &mut layers;
    let server = input.server;
    let looks = DirLooks::of(input.dir);
    let mut notes = Vec::new();
    let python_handler = handler(l, &looks, input.dir)?;
    let engine = engine(l, &looks, &python_handler, &mut notes)?;
    let runs_own_code = is_python(&engine.value);
    let mut config = ModelConfig {
        name: input.name.to_owned(),
        engine,
        model_id: l.get_opt("model_id")?,
        revision: l.get_opt("revision")?,
        task: l.get_opt("task")?,
        trust_remote_code: l.get("trust_remote_code")?,
        display_name: l.get_opt("modelName")?,
        batching: batching(l, &input, &mut notes)?,
        predict_timeout: l.get("predict_timeout")?,
        model_loading_timeout: l.get("model_loading_timeout")?,
        workers: workers(l, &input)?,
        memory: MemoryNeeds {
            required_bytes: l.get_opt("required_memory_mb")?,
            reserved_bytes: l.get_or("reserved_memory_mb", &server.reserved_memory_bytes)?,
            gpu_required_bytes: l.get_opt("gpu.required_memory_mb")?,
            gpu_reserved_bytes: l.get_opt("gpu.reserved_memory_mb")?,
        },
        log_request_metric: l.get("log_request_metric")?,
        dtype: l.get("dtype")?,
        device_map: l.get_opt("device_map")?,
        tensor_parallel_degree: l.get_opt("tensor_parallel_degree")?,
        pipeline_parallel_degree: l.get("pipeline_parallel_degree")?,
        mpi_mode: mpi_mode(l)?,
        quantize: l.get_opt("quantize")?,
        output_formatter: l.get("output_formatter")?,
        enable_streaming: l.get("enable_streaming")?,
        tgi_compat: l.get("tgi_compat")?,
        bedrock_compat: l.get("bedrock_compat")?,
        python_handler,
        looks,
        options: options(l, runs_own_code),
        notes,
    };
    if runs_own_code {
        tell_workers(&mut config);
    }
    // The engine's name, which implies it, is the host's.
    if config.mpi_mode.value && config.options.get("mpi_mode").is_none() {
        config.options.set("mpi_mode", "true");
    }
    Ok((config, layers.warnings))
}

fn is_python(engine: &EngineChoice) -> bool {
    engine.name() == Some("python")
}

/// Adds what an engine with workers of its own needs of the settings that nobody wrote in the model's
/// file: the server's, and the defaults.
fn tell_workers(config: &mut ModelConfig) {
    let workers = &config.workers;
    let count = |bound: &Option<Sourced<u32>>| bound.as_ref().map(|n| n.value.to_string());
    let seconds = |limit: Duration| Some(limit.as_secs_f64().to_string());
    let told = [
        ("minWorkers", count(&workers.any.min)),
        ("maxWorkers", count(&workers.any.max)),
        ("max_idle_time", seconds(workers.max_idle_time.value)),
        ("retry_threshold", Some(workers.retry_threshold.value.to_string())),
        ("predict_timeout", seconds(config.predict_timeout.value)),
        ("model_loading_timeout", seconds(config.model_loading_timeout.value)),
    ];
    for (name, value) in told {
        if let (None, Some(value)) = (config.options.get(name), value) {
            config.options.set(name, value);
        }
    }
}

/// The layers, highest first.
fn layers(input: &ModelInputs<'_>) -> Result<Layers, ConfigError> {
    let mut layers = Layers::new(Scope::Model);
    let sagemaker = layers.of_sagemaker(input.env);
    layers.push(sagemaker);
    let registration = input
        .registration
        .iter()
        .filter(|(name, value)| !value.is_empty() && !NOT_SETTINGS.contains(&name.as_str()))
        .map(|(name, value)| {
            let source = Source::Request { parameter: name.clone() };
            Setting::new(keys::find_no_case(Scope::Model, name).unwrap_or(name), value, source)
        });
    layers.push(registration.collect());
    let path = input.dir.join(FILE_NAME);
    match Properties::read(&path)? {
        Ok(Some(file)) => {
            let layer = layers.of_file(&file);
            layers.push(layer);
        }
        Ok(None) => {}
        Err(e) => {
            layers.warn(Source::Found { path }, format!("can't be read, goes unused: {e}"));
        }
    }
    let filling = gap_fillers(input.env);
    for setting in &filling {
        layers.check_known(setting);
    }
    layers.push(filling);
    let named = layers.of_variables(input.env);
    layers.push(named);
    Ok(layers)
}

/// `OPTION_*` and `ARGS_*`. A name in capitals is lower-cased, and a known key is found without
/// case, since `OPTION_ENTRYPOINT` can't be spelled otherwise.
fn gap_fillers(env: &Environment) -> Vec<Setting> {
    let mut layer = Vec::new();
    for (prefix, is_option) in [("OPTION_", true), ("ARGS_", false)] {
        for (rest, value) in env.with_prefix(prefix) {
            let capitals =
                rest.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
            let name = if capitals { rest.to_ascii_lowercase() } else { rest.to_owned() };
            let name = keys::find_no_case(Scope::Model, &name).map_or(name, str::to_owned);
            let prefixed = is_option && name != "engine";
            let setting = Setting::env(name, value, format!("{prefix}{rest}"));
            layer.push(Setting { prefixed, ..setting });
        }
    }
    layer
}

/// What answers requests. An entry point of the settings goes before a script in the directory.
fn handler(l: &mut Layers, looks: &DirLooks, dir: &Path) -> Result<HandlerKind, ConfigError> {
    let entry: Option<Sourced<String>> = l.get_opt("entryPoint")?;
    Ok(match (entry, &looks.script) {
        (Some(entry), _) if is_built_in_entry_point(&entry.value) => HandlerKind::BuiltIn,
        (Some(entry), _) => HandlerKind::UserScript(entry_path(&entry.value, dir)),
        (None, Some(script)) => HandlerKind::UserScript(script.clone()),
        (None, None) if looks.has_mar_inf => HandlerKind::UserScript(dir.join("MAR-INF")),
        (None, None) => HandlerKind::BuiltIn,
    })
}

/// A file of the model where the entry point is one, else as written: a module, a path, a URL.
fn entry_path(entry: &str, dir: &Path) -> PathBuf {
    let candidates = [dir.join(entry), dir.join(format!("{entry}.py"))];
    let inside = !entry.contains(['/', '\\', ':']) && entry != "..";
    let file = candidates.into_iter().find(|path| inside && path.is_file());
    file.unwrap_or_else(|| PathBuf::from(entry))
}

/// The engine asked for, where `Python` without code of the model's own means the native path.
fn engine(
    l: &mut Layers,
    looks: &DirLooks,
    handler: &HandlerKind,
    notes: &mut Vec<String>,
) -> Result<Sourced<EngineChoice>, ConfigError> {
    let written: Sourced<String> = l.get("engine")?;
    let text = shown("engine", &written.value);
    let choice = written.map(|name| EngineChoice::parse(&name));
    match (&choice.value, handler) {
        (EngineChoice::Named(name), HandlerKind::BuiltIn) if name == "python" => {
            notes.push(format!(
                "engine={text} without model.py or an entry point of its own: served natively by \
                 the default engine ({})",
                choice.source
            ));
            return Ok(choice.map(|_| EngineChoice::Auto));
        }
        (EngineChoice::Named(name), _) if *name != text.to_lowercase() => {
            notes.push(format!("engine={text} is the engine {name} here ({})", choice.source));
        }
        (EngineChoice::Auto, HandlerKind::UserScript(script)) if runs_as_python(l, looks)? => {
            notes.push(format!(
                "no engine is set and the model has code of its own ({}): it runs with engine=Python",
                script.display()
            ));
            return Ok(choice.map(|_| EngineChoice::Named("python".to_owned())));
        }
        (EngineChoice::Auto, _) => {
            if let Some(guess) = looks.guess {
                notes.push(format!("no engine is set; the files look like those of {guess}"));
            }
        }
        _ => {}
    }
    Ok(choice)
}

/// Whether a model with code of its own and without an engine is Python's: an entry point says so, and
/// the files do where none of them belongs to an engine that goes first.
fn runs_as_python(l: &mut Layers, looks: &DirLooks) -> Result<bool, ConfigError> {
    let entry: Option<Sourced<String>> = l.get_opt("entryPoint")?;
    Ok(entry.is_some() || looks.guess == Some("python"))
}

/// Whether ranks are launched by MPI; the engine name `MPI` asks for it.
fn mpi_mode(l: &mut Layers) -> Result<Sourced<bool>, ConfigError> {
    let mode: Sourced<bool> = l.get("mpi_mode")?;
    let engine: Sourced<String> = l.get("engine")?;
    let implied = mode.source.is_default() && engine.value.eq_ignore_ascii_case("mpi");
    Ok(if implied { engine.map(|_| true) } else { mode })
}

fn batching(
    l: &mut Layers,
    input: &ModelInputs<'_>,
    notes: &mut Vec<String>,
) -> Result<Batching, ConfigError> {
    let server = input.server;
    let max_requests = l.get_or("batch_size", &server.batch_size)?;
    let mut rolling: Sourced<RollingBatch> = l.get("rolling_batch")?;
    if max_requests.value.get() > 1 && rolling.value != RollingBatch::Disable {
        notes.push(format!(
            "batch_size={} ({}) turns rolling_batch={} off",
            max_requests.value, max_requests.source, rolling.value
        ));
        rolling = Sourced::new(RollingBatch::Disable, max_requests.source.clone());
    }
    Ok(Batching {
        max_requests,
        max_delay: l.get_or("max_batch_delay", &server.max_batch_delay)?,
        queue_capacity: l.get_or("job_queue_size", &server.job_queue_size)?,
        rolling,
        max_sequences: l.get("max_rolling_batch_size")?,
        max_prefill_tokens: l.get_opt("max_rolling_batch_prefill_tokens")?,
        keeps_prefixes: l.get("enable_prefix_caching")?,
        lookup_tokens: l.get("prompt_lookup_num_tokens")?,
        lookup_ngram: l.get("max_matching_ngram_size")?,
    })
}

fn workers(l: &mut Layers, input: &ModelInputs<'_>) -> Result<Workers, ConfigError> {
    let server = input.server;
    let mut bounds = |prefix: &str| -> Result<WorkerBounds, ConfigError> {
        let min = l.get_opt(&format!("{prefix}minWorkers"))?;
        Ok(WorkerBounds { min, max: l.get_opt(&format!("{prefix}maxWorkers"))? })
    };
    let (mut any, cpu, gpu, neuron) =
        (bounds("")?, bounds("cpu.")?, bounds("gpu.")?, bounds("nc.")?);
    any.min = any.min.or_else(|| server.min_workers.clone());
    any.max = any.max.or_else(|| server.max_workers.clone());
    Ok(Workers {
        any,
        cpu,
        gpu,
        neuron,
        devices: l.get_or("load_on_devices", &server.load_on_devices)?,
        max_idle_time: l.get_or("max_idle_time", &server.max_idle_time)?,
        retry_threshold: l.get_or("retry_threshold", &server.retry_threshold)?,
        parallel_loading: l.get("parallel_loading")?,
    })
}

/// What goes to the engine: every setting that counts under the name it was written with, and
/// where that is an alias, under the key's own name too.
fn options(l: &Layers, runs_own_code: bool) -> Options {
    let mut options = Vec::new();
    let mut own_names = Vec::new();
    for setting in l.effective() {
        let key = keys::find(Scope::Model, &setting.name);
        let name = setting.name.as_str();
        // The environment of workers is for who has some, and may hold secrets.
        if ["engine", "engine_name"].contains(&name) || (name == "env" && !runs_own_code) {
            continue;
        }
        let text = match key {
            // Only a model id loses its blanks; everything else is handed on to the letter.
            Some(key) if key.name == "model_id" => setting.value.trim(),
            _ => setting.value.as_str(),
        };
        options.push((setting.name.clone(), text.to_owned()));
        if let Some(key) = key.filter(|key| key.aliases.contains(&setting.name.as_str())) {
            own_names.push(key.name);
        }
    }
    let mut options = Options::from(options);
    for name in own_names {
        if let Some(deciding) = l.find(name) {
            options.set(name, deciding.value.trim());
        }
    }
    options
}
