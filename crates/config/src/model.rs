//! One model's settings: one struct, resolved once when the model is registered.

mod resolve;

use std::fmt;
use std::num::NonZeroU32;
use std::ops::Deref;
use std::path::Path;
use std::time::Duration;

use crate::engine::{DirLooks, EngineChoice, HandlerKind};
use crate::environment::Environment;
use crate::error::{ConfigError, Warning};
use crate::secret;
use crate::server::ServerConfig;
use crate::source::Sourced;
use crate::values::{Devices, Dtype, OutputFormatter, ParallelDegree, RollingBatch, Streaming};

/// What a model's settings are resolved from.
#[derive(Clone, Copy, Debug)]
pub struct ModelInputs<'a> {
    /// The name it is registered under.
    pub name: &'a str,
    /// Its directory, which may hold a `serving.properties`.
    pub dir: &'a Path,
    /// The server's settings, which are the defaults of every model.
    pub server: &'a ServerConfig,
    /// The process's environment.
    pub env: &'a Environment,
    /// Parameters of the registration, which go before the file:
    /// [`ModelSpec::registration`](crate::ModelSpec::registration) or a management request's.
    pub registration: &'a [(String, String)],
}

/// One model's settings. Made once by [`ModelConfig::resolve`]; never re-read.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The name it is registered under.
    pub name: String,
    /// The engine asked for.
    pub engine: Sourced<EngineChoice>,
    /// Where the weights are if not in the model's directory: a path, a hub id, an `s3://` prefix.
    pub model_id: Option<Sourced<String>>,
    /// Revision of a hub id.
    pub revision: Option<Sourced<String>>,
    /// The task to serve; unset, the architecture decides.
    pub task: Option<Sourced<String>>,
    /// Whether code that comes with the model may run.
    pub trust_remote_code: Sourced<bool>,
    /// Name that metrics show.
    pub display_name: Option<Sourced<String>>,
    /// How requests are grouped.
    pub batching: Batching,
    /// Longest a request may take.
    pub predict_timeout: Sourced<Duration>,
    /// Longest the model may take to load.
    pub model_loading_timeout: Sourced<Duration>,
    /// How many workers, and where.
    pub workers: Workers,
    /// Memory needed and left free.
    pub memory: MemoryNeeds,
    /// Whether metrics of every request are logged.
    pub log_request_metric: Sourced<bool>,
    /// Element type to compute in.
    pub dtype: Sourced<Dtype>,
    /// Which layers go to which device, as written.
    pub device_map: Option<Sourced<String>>,
    /// Partitions of every layer; unset, the engine decides.
    pub tensor_parallel_degree: Option<Sourced<ParallelDegree>>,
    /// Groups of consecutive layers.
    pub pipeline_parallel_degree: Sourced<NonZeroU32>,
    /// Whether the partitions run as MPI ranks.
    pub mpi_mode: Sourced<bool>,
    /// Quantisation, as the engine names it.
    pub quantize: Option<Sourced<String>>,
    /// How generated text is written.
    pub output_formatter: Sourced<OutputFormatter>,
    /// Whether a reply is sent step by step.
    pub enable_streaming: Sourced<Streaming>,
    /// Whether replies take Text Generation Inference's shapes.
    pub tgi_compat: Sourced<bool>,
    /// Whether the third-party schema is spoken.
    pub bedrock_compat: Sourced<bool>,
    /// What answers requests: the host's tasks, or Python code of the model's own.
    pub python_handler: HandlerKind,
    /// What the model's directory looks like.
    pub looks: DirLooks,
    /// Everything that goes to the engine or the handler: options without their prefix, and
    /// un-prefixed keys.
    pub options: Options,
    /// What was decided that is not plain from the settings; for the log.
    pub notes: Vec<String>,
}

/// How one model's requests are grouped.
#[derive(Clone, Debug)]
pub struct Batching {
    /// `batch_size`: most requests in one batch.
    pub max_requests: Sourced<NonZeroU32>,
    /// `max_batch_delay`: how long a first request waits for company; 0 never waits.
    pub max_delay: Sourced<Duration>,
    /// `job_queue_size`: requests that may wait; the next one is refused.
    pub queue_capacity: Sourced<NonZeroU32>,
    /// `rolling_batch`: how generating requests share steps.
    pub rolling: Sourced<RollingBatch>,
    /// `max_rolling_batch_size`: most sequences decoding at once.
    pub max_sequences: Sourced<NonZeroU32>,
    /// `max_rolling_batch_prefill_tokens`: most prompt tokens of one step, if limited.
    pub max_prefill_tokens: Option<Sourced<NonZeroU32>>,
    /// `enable_prefix_caching`: whether what prompts begin with is kept for requests to come.
    pub keeps_prefixes: Sourced<bool>,
    /// `prompt_lookup_num_tokens`: most tokens looked up in the text and checked in one step.
    pub lookup_tokens: Sourced<u32>,
    /// `max_matching_ngram_size`: the longest run of last tokens that is looked up.
    pub lookup_ngram: Sourced<NonZeroU32>,
}

/// How many workers a model has, and where.
#[derive(Clone, Debug)]
pub struct Workers {
    /// Least and most on any device.
    pub any: WorkerBounds,
    /// What goes before `any` on the processor.
    pub cpu: WorkerBounds,
    /// What goes before `any` on a GPU.
    pub gpu: WorkerBounds,
    /// What goes before `any` on a Neuron core.
    pub neuron: WorkerBounds,
    /// Devices to load the model on.
    pub devices: Sourced<Devices>,
    /// Idle life of a surplus worker.
    pub max_idle_time: Sourced<Duration>,
    /// Worker failures tolerated before the model fails.
    pub retry_threshold: Sourced<u32>,
    /// Whether all workers start at once.
    pub parallel_loading: Sourced<bool>,
}

/// Bounds on workers; `None` where nobody set one.
#[derive(Clone, Debug, Default)]
pub struct WorkerBounds {
    /// The least.
    pub min: Option<Sourced<u32>>,
    /// The most; 0 serves nothing.
    pub max: Option<Sourced<u32>>,
}

/// Memory that a model needs and leaves, in bytes. `gpu_` values go before the others on a GPU.
#[derive(Clone, Debug)]
pub struct MemoryNeeds {
    /// Memory that must be free to load it.
    pub required_bytes: Option<Sourced<u64>>,
    /// Memory that loading it leaves free.
    pub reserved_bytes: Sourced<u64>,
    /// The same as `required_bytes`, of a GPU.
    pub gpu_required_bytes: Option<Sourced<u64>>,
    /// The same as `reserved_bytes`, of a GPU.
    pub gpu_reserved_bytes: Option<Sourced<u64>>,
}

/// Names and values for an engine or a handler, each name once. Printing it masks secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Options(Vec<(String, String)>);

impl Options {
    /// The value under a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Sets a value, in place of one that is there.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let (name, value) = (name.into(), value.into());
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }
}

impl Deref for Options {
    type Target = Vec<(String, String)>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl From<Vec<(String, String)>> for Options {
    fn from(pairs: Vec<(String, String)>) -> Self {
        Self(pairs)
    }
}

impl<'a> IntoIterator for &'a Options {
    type Item = &'a (String, String);
    type IntoIter = std::slice::Iter<'a, (String, String)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        secret::fmt_pairs(f, self.0.iter().map(|(name, value)| (name.as_str(), value.as_str())))
    }
}

impl ModelConfig {
    /// Resolves a model's settings.
    ///
    /// Highest first: SageMaker's variables, the registration, `serving.properties`, `OPTION_*` and
    /// `ARGS_*` (which fill gaps only), named variables, the server's settings, defaults.
    ///
    /// # Errors
    /// A value that its key does not allow, names of one setting that disagree, a broken or
    /// oversized file. A file that can't be read is a warning.
    pub fn resolve(input: ModelInputs<'_>) -> Result<(Self, Vec<Warning>), ConfigError> {
        resolve::resolve(input)
    }

    /// Settings of a directory on its own, with the defaults of everything else; for tools that
    /// look at a model without serving it.
    ///
    /// # Errors
    /// As [`ModelConfig::resolve`].
    pub fn of_dir(
        dir: &Path,
        server: &ServerConfig,
        env: &Environment,
    ) -> Result<(Self, Vec<Warning>), ConfigError> {
        let name = crate::spec::default_name(&dir.to_string_lossy());
        Self::resolve(ModelInputs { name: &name, dir, server, env, registration: &[] })
    }
}

#[cfg(test)]
mod tests;
