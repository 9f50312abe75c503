//! From layers to [`ServerConfig`].

use std::path::{Path, PathBuf};

use super::{Cors, ErrorRates, ServerConfig, ServerOverrides, Tls};
use crate::environment::Environment;
use crate::error::{ConfigError, Warning};
use crate::keys::{self, Scope};
use crate::layers::{Layers, Setting};
use crate::properties::Properties;
use crate::source::{Source, Sourced};

mod hub;
mod listen;
mod start;

/// Variables that begin like a setting and are none.
const NOT_SETTINGS: [&str; 1] = ["SERVING_OPTS"];

pub(super) fn resolve(
    cli: &ServerOverrides,
    env: &Environment,
) -> Result<(ServerConfig, Vec<Warning>), ConfigError> {
    let machine = Machine::look(cli, env);
    let mut layers = layers(cli, env)?;
    let l = &mut layers;
    let (inference, management) = listen::addresses(l, cli, env, &machine)?;
    let (load_models, model_store, models) = start::models(l, cli, env, &machine)?;
    let config = ServerConfig {
        inference_address: inference,
        management_address: management,
        cluster_address: l.get("cluster_address")?,
        tls: Tls {
            keystore: l.get_opt("keystore")?,
            keystore_pass: l.get("keystore_pass")?,
            keystore_type: l.get("keystore_type")?,
            certificate_file: l.get_opt("certificate_file")?,
            private_key_file: l.get_opt("private_key_file")?,
        },
        io_threads: l.get("number_of_netty_threads")?,
        load_models,
        model_store,
        models,
        model_url_pattern: l.get_opt("model_url_pattern")?,
        wait_model_loading: l.get("wait_model_loading")?,
        fail_fast: l.get("fail_fast")?,
        job_queue_size: l.get("job_queue_size")?,
        batch_size: l.get("batch_size")?,
        max_batch_delay: l.get("max_batch_delay")?,
        max_idle_time: l.get("max_idle_time")?,
        load_on_devices: l.get("load_on_devices")?,
        reserved_memory_bytes: l.get("reserved_memory_mb")?,
        min_workers: l.get_opt("min_workers")?,
        max_workers: l.get_opt("max_workers")?,
        retry_threshold: l.get("retry_threshold")?,
        max_request_size: l.get("max_request_size")?,
        chunked_read_timeout: l.get("chunked_read_timeout")?,
        request_id_header_key: request_id_header(l, &machine)?,
        cors: Cors {
            allowed_origin: l.get_opt("cors_allowed_origin")?,
            allowed_methods: l.get_opt("cors_allowed_methods")?,
            allowed_headers: l.get_opt("cors_allowed_headers")?,
        },
        bad_request_http_code: l.get("bad_request_http_code")?,
        wlm_error_http_code: l.get("wlm_error_http_code")?,
        throttle_error_http_code: l.get("throttle_error_http_code")?,
        timeout_http_code: l.get("timeout_http_code")?,
        server_error_http_code: l.get("server_error_http_code")?,
        allow_request_handler_override: l.get("allow_request_handler_override")?,
        prometheus: l.get("prometheus")?,
        allow_multi_status: l.get("allow_multi_status")?,
        error_rates: ErrorRates {
            wlm: l.get_opt("error_rate_wlm")?,
            server: l.get_opt("error_rate_server")?,
            model: l.get_opt("error_rate_model")?,
            any: l.get_opt("error_rate_any")?,
        },
        health_check_override: l.get("health_check_override")?,
        sagemaker_health_check_override: l.get("sagemaker_health_check_override")?,
        sagemaker_multi_model: l.get("sagemaker_multi_model")?,
        on_sagemaker: machine.on_sagemaker.is_some(),
        cache_dir: l.get_opt("cache_dir")?.unwrap_or_else(|| cache_dir(env, &machine)),
        download_dir: l.get_opt("download_dir")?,
        offline: l.get("offline")?,
        hub: hub::settings(l, env, &machine)?,
        plugins: plugins(cli, env),
    };
    Ok((config, layers.warnings))
}

/// What the machine says about where the process runs.
struct Machine {
    /// The file that shows SageMaker, where it is there.
    on_sagemaker: Option<PathBuf>,
    /// Why the container's defaults apply, where they do.
    container: Option<Source>,
    /// `/opt/ml/model`, where it is there.
    model_dir: Option<PathBuf>,
}

impl Machine {
    fn look(cli: &ServerOverrides, env: &Environment) -> Self {
        let marker = cli.sagemaker_root.join(".sagemaker_infra/endpoint-metadata.json");
        let on_sagemaker = marker.exists().then_some(marker);
        let model_dir = cli.sagemaker_root.join("model");
        let model_dir = model_dir.is_dir().then_some(model_dir);
        let found = |path: &PathBuf| Source::Found { path: path.clone() };
        let by_variable = ["SAGEMAKER_BIND_TO_PORT", "SAGEMAKER_MULTI_MODEL"]
            .into_iter()
            .find(|variable| env.get(variable).is_some())
            .map(|variable| Source::Env { variable: variable.to_owned() });
        let container = by_variable
            .or_else(|| on_sagemaker.as_ref().map(found))
            .or_else(|| model_dir.as_ref().map(found));
        Self { on_sagemaker, container, model_dir }
    }
}

/// The layers, highest first.
fn layers(cli: &ServerOverrides, env: &Environment) -> Result<Layers, ConfigError> {
    let mut layers = Layers::new(Scope::Server);
    let mut sagemaker = layers.of_sagemaker(env);
    for setting in &mut sagemaker {
        payload_in_bytes(setting)?;
    }
    // No limit, in SageMaker's words; a bounded body is what this server has to offer.
    sagemaker.retain(|setting| setting.value != "0");
    layers.push(sagemaker);
    let serving: Vec<Setting> = env
        .with_prefix("SERVING_")
        .map(|(rest, value)| (rest.to_ascii_lowercase(), value, format!("SERVING_{rest}")))
        .filter(|(_, _, variable)| !NOT_SETTINGS.contains(&variable.as_str()))
        .map(|(name, value, variable)| Setting::env(name, value, variable))
        .collect();
    for setting in &serving {
        layers.check_known(setting);
    }
    layers.push(serving);
    let named = layers.of_variables(env);
    layers.push(named);
    let store = cli.model_store.iter().map(|path| {
        let source = Source::CommandLine { flag: "--model-store" };
        Setting::new("model_store", path.to_string_lossy(), source)
    });
    layers.push(store.collect());
    if let Some((path, required)) = config_file(cli, env) {
        match Properties::read(&path)? {
            Ok(Some(file)) => {
                let layer = layers.of_file(&file);
                layers.push(layer);
            }
            Ok(None) if required => {
                layers.warn(Source::Found { path }, "no such file: the defaults apply");
            }
            Ok(None) => {}
            Err(e) => {
                let message = format!("can't be read, the defaults apply: {e}");
                layers.warn(Source::Found { path }, message);
            }
        }
    }
    Ok(layers)
}

/// `SAGEMAKER_MAX_PAYLOAD_IN_MB` gives in megabytes what the key takes in bytes.
fn payload_in_bytes(setting: &mut Setting) -> Result<(), ConfigError> {
    let in_mb = matches!(
        &setting.source,
        Source::Env { variable } if variable == "SAGEMAKER_MAX_PAYLOAD_IN_MB"
    );
    if in_mb {
        let bytes = setting.value.trim().parse::<u64>().ok().and_then(|mb| mb.checked_mul(1 << 20));
        let bytes = bytes.ok_or_else(|| setting.refuse(keys::Kind::Megabytes.wanted()))?;
        setting.value = bytes.to_string();
    }
    Ok(())
}

/// The file to read, and whether somebody asked for just that one.
fn config_file(cli: &ServerOverrides, env: &Environment) -> Option<(PathBuf, bool)> {
    if let Some(path) = &cli.config_file {
        return Some((path.clone(), true));
    }
    let home = Path::new(env.get("MODEL_SERVER_HOME")?);
    ["conf/config.properties", "config.properties"]
        .into_iter()
        .map(|name| home.join(name))
        .find(|path| path.exists())
        .map(|path| (path, false))
}

fn request_id_header(l: &mut Layers, machine: &Machine) -> Result<Sourced<String>, ConfigError> {
    let mut header: Sourced<String> = l.get("request_id_header_key")?;
    if let (true, Some(path)) = (header.source.is_default(), &machine.on_sagemaker) {
        header.value = "X-Amzn-SageMaker-Inference-Id".to_owned();
        header.source = Source::Found { path: path.clone() };
    }
    Ok(header)
}

fn cache_dir(env: &Environment, machine: &Machine) -> Sourced<PathBuf> {
    let home = env.get("HOME").filter(|_| machine.container.is_none());
    let base = home.map_or_else(std::env::temp_dir, PathBuf::from);
    Sourced::built_in(base.join(".djl.ai"))
}

/// `--plugins`, then the directories of `DRIVETRAIN_PLUGINS`, which are separated as in `PATH`.
fn plugins(cli: &ServerOverrides, env: &Environment) -> Vec<PathBuf> {
    let listed = env.get("DRIVETRAIN_PLUGINS").unwrap_or_default();
    let listed = std::env::split_paths(listed).filter(|path| !path.as_os_str().is_empty());
    cli.plugins.iter().cloned().chain(listed).collect()
}
