//! The server's settings: one struct, resolved once at start.

mod resolve;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use crate::address::Address;
use crate::environment::Environment;
use crate::error::{ConfigError, Warning};
use crate::secret::Secret;
use crate::source::Sourced;
use crate::spec::ModelSpec;
use crate::values::{Devices, ErrorRate};

/// What the command line says; [`Default`] is a command line without options.
#[derive(Clone, Debug)]
pub struct ServerOverrides {
    /// `--config-file`: the `config.properties` to read.
    pub config_file: Option<PathBuf>,
    /// Models as `[name:version:engine:devices]=url`, `name=path` or `path`; `ALL` and `NONE` as in
    /// `load_models`.
    pub models: Vec<String>,
    /// `--model-store`.
    pub model_store: Option<PathBuf>,
    /// `--host`: the host to bind, whatever else says.
    pub host: Option<String>,
    /// `--port`: the port to bind, whatever else says; 0 lets the system choose.
    pub port: Option<u16>,
    /// `--plugins`: directories of engine libraries.
    pub plugins: Vec<PathBuf>,
    /// The model to serve where nothing else is asked for: the one that comes with the binary.
    pub default_model: Option<PathBuf>,
    /// SageMaker's directory, `/opt/ml`.
    pub sagemaker_root: PathBuf,
}

impl Default for ServerOverrides {
    fn default() -> Self {
        Self {
            config_file: None,
            models: Vec::new(),
            model_store: None,
            host: None,
            port: None,
            plugins: Vec::new(),
            default_model: None,
            sagemaker_root: PathBuf::from("/opt/ml"),
        }
    }
}

/// The server's settings. Made once by [`ServerConfig::resolve`]; never re-read.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where inference is served.
    pub inference_address: Sourced<Address>,
    /// Where models are managed; equal to `inference_address` means one listener.
    pub management_address: Sourced<Address>,
    /// Where the nodes of a cluster coordinate.
    pub cluster_address: Sourced<Address>,
    /// TLS key material.
    pub tls: Tls,
    /// Threads for connections; 0 takes one per core.
    pub io_threads: Sourced<u32>,
    /// What `load_models` asked for.
    pub load_models: Sourced<LoadModels>,
    /// The directory that `ALL` scans.
    pub model_store: Option<Sourced<PathBuf>>,
    /// The models to load at start: `load_models` with the store scanned, `HF_MODEL_ID`, and the
    /// default model where nothing else was asked for.
    pub models: Vec<ModelSpec>,
    /// Regular expression of the URLs a first request may load a model from.
    pub model_url_pattern: Option<Sourced<String>>,
    /// Whether the port opens only after the models of the start are loaded.
    pub wait_model_loading: Sourced<bool>,
    /// Whether the process exits with 137 when a model fails.
    pub fail_fast: Sourced<bool>,
    /// Requests that may wait for one model.
    pub job_queue_size: Sourced<NonZeroU32>,
    /// Most requests in one batch.
    pub batch_size: Sourced<NonZeroU32>,
    /// How long the first request of a batch waits for company.
    pub max_batch_delay: Sourced<Duration>,
    /// Idle life of a surplus worker.
    pub max_idle_time: Sourced<Duration>,
    /// Devices to load models on.
    pub load_on_devices: Sourced<Devices>,
    /// Memory that loading a model leaves free, in bytes.
    pub reserved_memory_bytes: Sourced<u64>,
    /// Least workers of a model, if set.
    pub min_workers: Option<Sourced<u32>>,
    /// Most workers of a model, if set.
    pub max_workers: Option<Sourced<u32>>,
    /// Worker failures tolerated before a model fails.
    pub retry_threshold: Sourced<u32>,
    /// Largest request body, in bytes.
    pub max_request_size: Sourced<u64>,
    /// How long a streamed reply may stand still.
    pub chunked_read_timeout: Sourced<Duration>,
    /// Header that a request's id is read from.
    pub request_id_header_key: Sourced<String>,
    /// Headers for requests from other origins.
    pub cors: Cors,
    /// Status for input that can't be used.
    pub bad_request_http_code: Sourced<u16>,
    /// Status for worker errors.
    pub wlm_error_http_code: Sourced<u16>,
    /// Status for a full queue.
    pub throttle_error_http_code: Sourced<u16>,
    /// Status for a request that timed out.
    pub timeout_http_code: Sourced<u16>,
    /// Status for any other error.
    pub server_error_http_code: Sourced<u16>,
    /// Whether a request may name its handler.
    pub allow_request_handler_override: Sourced<bool>,
    /// Whether metrics are served.
    pub prometheus: Sourced<bool>,
    /// Whether `/ping` answers 207 while a model is loading.
    pub allow_multi_status: Sourced<bool>,
    /// Error limits that turn `/ping` to 503.
    pub error_rates: ErrorRates,
    /// Whether models stay in service despite worker failures.
    pub health_check_override: Sourced<bool>,
    /// Whether `/ping` answers 500 while a model has fewer workers than it should.
    pub sagemaker_health_check_override: Sourced<bool>,
    /// Whether this is a multi-model endpoint.
    pub sagemaker_multi_model: Sourced<bool>,
    /// Whether the process runs on SageMaker.
    pub on_sagemaker: bool,
    /// Where unpacked and downloaded files go.
    pub cache_dir: Sourced<PathBuf>,
    /// Where remote models go, if not to the cache.
    pub download_dir: Option<Sourced<PathBuf>>,
    /// Whether the network is off limits.
    pub offline: Sourced<bool>,
    /// Hugging Face's hub.
    pub hub: Hub,
    /// Directories of engine libraries: `--plugins`, then `DRIVETRAIN_PLUGINS`.
    pub plugins: Vec<PathBuf>,
}

/// The Hugging Face hub: where it is, what it is asked with, and where its models go.
#[derive(Clone, Debug)]
pub struct Hub {
    /// Its address.
    pub endpoint: Sourced<String>,
    /// The credential.
    pub token: Option<Sourced<Secret>>,
    /// The file that holds the credential where none is set.
    pub token_file: PathBuf,
    /// The cache of its models.
    pub cache: Sourced<PathBuf>,
    /// Whether it is off limits.
    pub offline: Sourced<bool>,
}

/// What to load at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadModels {
    /// Whatever the model store holds.
    All,
    /// Nothing.
    None,
    /// These.
    Listed(Vec<ModelSpec>),
}

/// TLS key material: a key store, or a certificate with its key.
#[derive(Clone, Debug)]
pub struct Tls {
    /// A key store.
    pub keystore: Option<Sourced<PathBuf>>,
    /// Its password.
    pub keystore_pass: Sourced<Secret>,
    /// Its format.
    pub keystore_type: Sourced<String>,
    /// A certificate chain, PEM.
    pub certificate_file: Option<Sourced<PathBuf>>,
    /// Its private key, PEM.
    pub private_key_file: Option<Sourced<PathBuf>>,
}

/// `Access-Control-Allow-*` headers; absent where `None`.
#[derive(Clone, Debug)]
pub struct Cors {
    /// `Access-Control-Allow-Origin`.
    pub allowed_origin: Option<Sourced<String>>,
    /// `Access-Control-Allow-Methods`.
    pub allowed_methods: Option<Sourced<String>>,
    /// `Access-Control-Allow-Headers`.
    pub allowed_headers: Option<Sourced<String>>,
}

/// Error limits by class; no limit where `None`.
#[derive(Clone, Debug)]
pub struct ErrorRates {
    /// Worker errors.
    pub wlm: Option<Sourced<ErrorRate>>,
    /// Unexpected errors.
    pub server: Option<Sourced<ErrorRate>>,
    /// Handlers' errors.
    pub model: Option<Sourced<ErrorRate>>,
    /// All errors.
    pub any: Option<Sourced<ErrorRate>>,
}

impl ServerConfig {
    /// Resolves the server's settings from the command line, `config.properties`, the environment
    /// and the defaults, and lists the models to load.
    ///
    /// Later wins: defaults, file, `--models` and `--model-store`, `SERVING_*`, SageMaker's
    /// variables, `--host` and `--port`.
    ///
    /// # Errors
    /// A value that its key does not allow, a broken or oversized file, a model store that can't be
    /// listed.
    pub fn resolve(
        cli: &ServerOverrides,
        env: &Environment,
    ) -> Result<(Self, Vec<Warning>), ConfigError> {
        resolve::resolve(cli, env)
    }

    /// Whether inference and management share one listener.
    pub fn shares_listener(&self) -> bool {
        self.inference_address.value == self.management_address.value
    }
}

#[cfg(test)]
mod tests;
