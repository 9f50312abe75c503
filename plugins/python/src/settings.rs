//! A model's options, read once, and what of them the handler is told.

use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use drivetrain_engine::LoadRequest;

use crate::devices::{self, Group};
use crate::entry::Entry;
use crate::error::PythonError;

/// Without any limit, which 0 stands for too, a day stands for one.
const NO_LIMIT: Duration = Duration::from_secs(86_400);

/// Most requests that a worker is given at a time.
const MOST_IN_FLIGHT: u32 = 256;

const DEGREE: &str = "tensor_parallel_degree";
const DEGREES: &str = "a whole number from 1 to 1024, or max";

/// The limit of a worker's memory.
pub(crate) const MEMORY: &str = "max_worker_memory_mb";

/// Most devices of a worker.
const MOST_DEVICES: u32 = 1024;

/// Options that the server reads for itself and a handler has no use for: `env` may hold secrets.
const NOT_FOR_HANDLERS: [&str; 1] = ["env"];

/// A model's options.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Where the handler is.
    pub(crate) entry: Entry,
    /// The function that answers.
    pub(crate) handler: String,
    /// The interpreter.
    pub(crate) python: String,
    /// Variables of the workers' environment.
    pub(crate) env: Vec<(String, String)>,
    /// Whether the model has a virtual environment of its own.
    pub(crate) has_venv: bool,
    /// Longest that a handler may take for a request, or between two pieces of a stream.
    pub(crate) predict_timeout: Duration,
    /// Longest that a worker may take to load.
    pub(crate) load_timeout: Duration,
    /// Whether workers start at once instead of in turn.
    pub(crate) starts_at_once: bool,
    /// Whether the handler runs on an event loop whatever it is declared as.
    pub(crate) is_async: bool,
    /// Requests at a time of a worker, where the option says so; else the handler does.
    pub(crate) max_in_flight: Option<u32>,
    /// Least workers of a group.
    pub(crate) min_workers: u32,
    /// Most workers of a group.
    pub(crate) max_workers: u32,
    /// How long a worker above the least may be idle.
    pub(crate) max_idle: Duration,
    /// Most bytes of memory that a worker may have for itself.
    pub(crate) max_bytes: Option<u64>,
    /// Failures in a row that are tolerated.
    pub(crate) retry_threshold: u32,
    /// Devices of each group of workers.
    pub(crate) groups: Vec<Group>,
    /// Whether adapters in the model's directory are registered.
    pub(crate) has_adapters: bool,
    /// What the handler is told.
    pub(crate) properties: Vec<(String, String)>,
}

impl Settings {
    /// The settings of the model that `request` asks for.
    pub(crate) fn read(request: &LoadRequest<'_>) -> Result<Self, PythonError> {
        let options = Reader(request);
        let entry = Entry::find(options.text("entryPoint"), request.model_dir)?;
        let is_async = options.flag("async_mode")?;
        let n_gpus = devices::n_gpus(Path::new("/dev"));
        let degree = match options.text(DEGREE) {
            Some("max") => n_gpus.max(1),
            _ => options.number_in(DEGREE, 1..=MOST_DEVICES, DEGREES)?.unwrap_or(1),
        };
        let wanted = options.text("load_on_devices").or_else(|| options.text("device"));
        let groups = devices::groups(wanted, n_gpus, degree)?;
        let on_gpu = groups.iter().any(|group| !group.is_empty());
        let device = if on_gpu { "gpu." } else { "cpu." };
        let count = "a whole number, 0 or more";
        let min = match options.number_of(device, "minWorkers", count)? {
            Some(min) => Some(min),
            None => options.number("minWorkers", count)?,
        };
        let max = match options.number_of(device, "maxWorkers", count)? {
            Some(max) => Some(max),
            None => options.number("maxWorkers", count)?,
        };
        // An event loop has room for all requests in one process.
        let usual = if on_gpu || is_async { 1 } else { 2 };
        let max_workers = max.unwrap_or_else(|| usual.max(min.unwrap_or(1)));
        let in_flight = "a whole number from 1 to 256";
        let max_in_flight = options.number_in("max_in_flight", 1..=MOST_IN_FLIGHT, in_flight)?;
        let properties = properties(request, degree, on_gpu);
        Ok(Self {
            entry,
            handler: options.text("handler").unwrap_or("handle").to_owned(),
            python: options.text("pythonExecutable").unwrap_or("python3").to_owned(),
            env: variables(options.text("env").unwrap_or_default())?,
            has_venv: options.flag("enable_venv")?,
            predict_timeout: options.seconds("predict_timeout", Duration::from_secs(120))?,
            load_timeout: options.seconds("model_loading_timeout", Duration::from_secs(240))?,
            starts_at_once: options.flag("parallel_loading")?,
            is_async,
            max_in_flight,
            min_workers: min.unwrap_or(1).min(max_workers),
            max_workers,
            max_idle: options.seconds("max_idle_time", Duration::from_secs(60))?,
            max_bytes: options
                .number_in(MEMORY, 1..=u32::MAX, "megabytes, 1 or more")?
                .map(|megabytes| u64::from(megabytes) << 20),
            retry_threshold: options.number("retry_threshold", count)?.unwrap_or(0),
            groups,
            has_adapters: options.flag("enable_lora")?,
            properties,
        })
    }
}

struct Reader<'a>(&'a LoadRequest<'a>);

impl<'a> Reader<'a> {
    fn text(&self, key: &str) -> Option<&'a str> {
        self.0.options.get(key).map(str::trim).filter(|value| !value.is_empty())
    }

    fn flag(&self, key: &'static str) -> Result<bool, PythonError> {
        match self.text(key).map(str::to_ascii_lowercase).as_deref() {
            None | Some("false" | "0" | "no" | "off") => Ok(false),
            Some("true" | "1" | "yes" | "on") => Ok(true),
            Some(other) => {
                Err(PythonError::Option { key, value: other.to_owned(), expected: "true or false" })
            }
        }
    }

    fn number(
        &self,
        key: &'static str,
        expected: &'static str,
    ) -> Result<Option<u32>, PythonError> {
        self.number_of("", key, expected)
    }

    /// The same, where it has to be one of some.
    fn number_in(
        &self,
        key: &'static str,
        some: RangeInclusive<u32>,
        expected: &'static str,
    ) -> Result<Option<u32>, PythonError> {
        let number = self.number(key, expected)?;
        if number.is_some_and(|n| !some.contains(&n)) {
            let value = self.text(key).unwrap_or_default().to_owned();
            return Err(PythonError::Option { key, value, expected });
        }
        Ok(number)
    }

    fn number_of(
        &self,
        prefix: &str,
        key: &'static str,
        expected: &'static str,
    ) -> Result<Option<u32>, PythonError> {
        let Some(text) = self.text(&format!("{prefix}{key}")) else { return Ok(None) };
        let wrong = |_| PythonError::Option { key, value: text.to_owned(), expected };
        text.parse().map(Some).map_err(wrong)
    }

    fn seconds(&self, key: &'static str, usual: Duration) -> Result<Duration, PythonError> {
        let Some(text) = self.text(key) else { return Ok(usual) };
        let seconds = text.parse::<f64>().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
        match seconds {
            Some(limit) if limit.is_zero() => Ok(NO_LIMIT),
            Some(limit) => Ok(limit.min(NO_LIMIT)),
            None => {
                let expected = "seconds, 0 or more";
                Err(PythonError::Option { key, value: text.to_owned(), expected })
            }
        }
    }
}

/// What the handler is told: the options, and what the contract adds to them.
fn properties(request: &LoadRequest<'_>, degree: u32, on_gpu: bool) -> Vec<(String, String)> {
    let mut properties: Vec<(String, String)> = Vec::new();
    let mut set = |key: &str, value: &str| match properties.iter_mut().find(|(k, _)| k == key) {
        Some((_, old)) => value.clone_into(old),
        None => properties.push((key.to_owned(), value.to_owned())),
    };
    for (key, value) in request.options.iter().filter(|(key, _)| !NOT_FOR_HANDLERS.contains(key)) {
        set(key, value);
    }
    set("model_dir", &request.model_dir.to_string_lossy());
    // A worker sees its own GPUs alone, so its first one is number 0.
    set("device_id", if on_gpu { "0" } else { "-1" });
    set("tensor_parallel_degree", &degree.to_string());
    if request.options.get("pipeline_parallel_degree").is_none() {
        set("pipeline_parallel_degree", "1");
    }
    set("cluster_size", "1");
    set("engine", "Python");
    properties
}

/// `NAME=VALUE` pairs separated with commas; a comma that no name follows belongs to the value.
fn variables(text: &str) -> Result<Vec<(String, String)>, PythonError> {
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    let mut variables: Vec<(String, String)> = Vec::new();
    for piece in text.split(',') {
        let pair = piece.split_once('=').filter(|(name, _)| is_name(name.trim()));
        match (pair, variables.last_mut()) {
            (Some((name, value)), _) => {
                variables.push((name.trim().to_owned(), value.trim().to_owned()));
            }
            (None, Some((_, value))) => {
                value.push(',');
                value.push_str(piece);
            }
            (None, None) if piece.trim().is_empty() => {}
            (None, None) => {
                let expected = "NAME=VALUE pairs separated with commas";
                // What is there may be a secret.
                return Err(PythonError::Option { key: "env", value: "..".to_owned(), expected });
            }
        }
    }
    let has_null = variables.iter().any(|(_, value)| value.contains('\0'));
    if has_null {
        let expected = "values without null bytes";
        return Err(PythonError::Option { key: "env", value: "..".to_owned(), expected });
    }
    Ok(variables)
}

#[cfg(test)]
mod tests;
