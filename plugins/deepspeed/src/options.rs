//! The options of a model that DeepSpeed's users know, as far as they say something here.

use std::fs;
use std::io::{self, Read};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Component, Path, PathBuf};

use drivetrain_engine::{EngineError, LoadRequest, LogLevel, Options, Services};
use serde_json::Value;

/// How many ranks a model is shared out to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Degree {
    /// So many.
    Number(NonZeroUsize),
    /// One for each device: on the CPU, for each memory node.
    Max,
}

/// The options, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeepSpeedOptions {
    pub(crate) degree: Degree,
    /// Longest sequence.
    pub(crate) max_tokens: Option<NonZeroU32>,
}

const DEGREE: &str = "tensor_parallel_degree";
/// Largest configuration file.
const MAX_FILE_BYTES: u64 = 1 << 20;
const NUMBER: &str = "a whole number above 0";

/// What DeepSpeed does otherwise, with the values that ask for nothing, and why it has no effect.
const NOT_HERE: &[(&str, &[&str], &str)] = &[
    ("enable_cuda_graph", &["false", ""], "steps on the CPU are not recorded as CUDA graphs"),
    (
        "triangular_masking",
        &["true", ""],
        "the model's architecture says which of its attentions are causal",
    ),
    ("return_tuple", &["true", "false", ""], "layers return no values to Python"),
    (
        "pipeline_parallel_degree",
        &["1", ""],
        "each rank has a share of every layer; use option.tensor_parallel_degree",
    ),
    ("draft_model_id", &[""], "the engine runs one model"),
    ("max_memory", &[""], "the engine computes on the CPU, in memory that it finds free"),
];

/// What would have to be read or run that this engine does not: a model is refused rather than served
/// otherwise than its files say.
const REFUSED: &[(&str, &[&str], &str)] = &[
    (
        "checkpoint",
        &[""],
        "shards that DeepSpeed or Megatron pickled are not read; save the model with \
         save_pretrained as safetensors, of which each rank reads its own share at any degree",
    ),
    (
        "training_mp_size",
        &["1", ""],
        "checkpoints that were trained in partitions are not read; merge them and save the model \
         with save_pretrained as safetensors",
    ),
    (
        "save_mp_checkpoint_path",
        &[""],
        "no shards are written; each rank reads its own share of the checkpoint at any degree",
    ),
];

impl DeepSpeedOptions {
    /// Reads the options of `request`; other keys are the host's, a task's or every engine's.
    pub(crate) fn parse(request: &LoadRequest<'_>) -> Result<Self, EngineError> {
        let options = &request.options;
        for (key, neutral, advice) in REFUSED {
            if let Some(value) = asked(options, key, neutral) {
                return Err(EngineError::unsupported(format!("option.{key}={value}: {advice}")));
            }
        }
        for (key, neutral, why) in NOT_HERE {
            if let Some(value) = asked(options, key, neutral) {
                let message = format!("option.{key}={value} has no effect: {why}");
                request.services.log(LogLevel::Warn, &message);
            }
        }
        let file = match options.get("deepspeed_config_path").map(str::trim) {
            None | Some("") => ConfigFile::default(),
            Some(path) => ConfigFile::read(request.model_dir, path, &request.services)?,
        };
        let degree = match options.get(DEGREE).map(str::trim) {
            None | Some("") => Degree::Number(file.degree.unwrap_or(NonZeroUsize::MIN)),
            Some(max) if max.eq_ignore_ascii_case("max") => Degree::Max,
            Some(_) => {
                let expected = "a whole number above 0, or max";
                let degree = options.parse::<NonZeroUsize>(DEGREE, expected)?;
                Degree::Number(degree.unwrap_or(NonZeroUsize::MIN))
            }
        };
        let max_tokens = match options.get("max_tokens").map(str::trim) {
            None | Some("") => file.max_tokens,
            Some(_) => options.parse("max_tokens", NUMBER)?,
        };
        Ok(Self { degree, max_tokens })
    }
}

/// How ranks that are processes are started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MpiOptions {
    /// Open MPI's list of hosts; without it all ranks are on this one.
    pub(crate) hostfile: Option<PathBuf>,
    /// The name or address of this host that the ranks on others call.
    pub(crate) leader_address: Option<String>,
}

impl MpiOptions {
    /// Reads them, if ranks are to be processes: `mpi_mode` says so, or `engine=MPI` where it says nothing.
    pub(crate) fn parse(options: &Options<'_>) -> Result<Option<Self>, EngineError> {
        let text = |key: &str| options.get(key).map(str::trim).filter(|text| !text.is_empty());
        let is_wanted = match text("mpi_mode") {
            Some(_) => {
                let mode = options.get("mpi_mode").map(str::trim).map(str::to_ascii_lowercase);
                match mode.as_deref() {
                    Some("true") => true,
                    Some("false") => false,
                    other => {
                        let value = other.unwrap_or_default();
                        let message = format!("option.mpi_mode={value}: expected true or false");
                        return Err(EngineError::bad_input(message));
                    }
                }
            }
            None => text("engine").is_some_and(|engine| engine.eq_ignore_ascii_case("mpi")),
        };
        Ok(is_wanted.then(|| Self {
            hostfile: text("mpi_hostfile").map(PathBuf::from),
            leader_address: text("mpi_leader_address").map(str::to_owned),
        }))
    }
}

/// The value of a key, if it asks for something.
fn asked<'a>(options: &Options<'a>, key: &str, neutral: &[&str]) -> Option<&'a str> {
    let value = options.get(key)?;
    (!neutral.contains(&value.trim().to_ascii_lowercase().as_str())).then_some(value)
}

/// What DeepSpeed's own configuration file says.
#[derive(Debug, Default)]
struct ConfigFile {
    degree: Option<NonZeroUsize>,
    max_tokens: Option<NonZeroU32>,
}

impl ConfigFile {
    /// The file at `path` in the model's directory. Its keys that say something here are those of the
    /// degree and of the longest sequence; others are named in the log.
    fn read(dir: &Path, path: &str, services: &Services) -> Result<Self, EngineError> {
        let refused = |what: String| {
            EngineError::bad_input(format!("option.deepspeed_config_path={path}: {what}"))
        };
        let is_inside =
            Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if !is_inside {
            return Err(refused("expected a path inside the model's directory".to_owned()));
        }
        let text = read(&dir.join(path)).map_err(|error| refused(error.to_string()))?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(refused(format!("expected at most {MAX_FILE_BYTES} bytes")));
        }
        let value: Value =
            serde_json::from_slice(&text).map_err(|error| refused(error.to_string()))?;
        let Value::Object(keys) = value else {
            return Err(refused("expected a JSON object".to_owned()));
        };
        let mut file = Self::default();
        let mut unused = Vec::new();
        for (key, value) in &keys {
            let number = |of: &Value| {
                let number =
                    of.as_u64().and_then(|n| u32::try_from(n).ok()).and_then(NonZeroU32::new);
                number.ok_or_else(|| refused(format!("{key}={of}: expected {NUMBER}")))
            };
            match (key.as_str(), value) {
                ("mp_size", size) => file.degree = Some(ranks(number(size)?)),
                ("tensor_parallel" | "tp", Value::Object(of)) if of.contains_key("tp_size") => {
                    file.degree = Some(ranks(number(&of["tp_size"])?));
                }
                ("tensor_parallel" | "tp", size @ Value::Number(_)) => {
                    file.degree = Some(ranks(number(size)?));
                }
                ("max_out_tokens" | "max_tokens", most) => file.max_tokens = Some(number(most)?),
                _ => unused.push(key.as_str()),
            }
        }
        if !unused.is_empty() {
            let message = format!("{path}: {} have no effect", unused.join(", "));
            services.log(LogLevel::Warn, &message);
        }
        Ok(file)
    }
}

/// A file, or the first byte too many of it.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn ranks(number: NonZeroU32) -> NonZeroUsize {
    NonZeroUsize::try_from(number).unwrap_or(NonZeroUsize::MAX)
}

/// Memory nodes of this machine that have processors: 1 where the system does not say.
pub(crate) fn memory_nodes() -> NonZeroUsize {
    let text = fs::read_to_string("/sys/devices/system/node/has_cpu").unwrap_or_default();
    NonZeroUsize::new(listed(text.trim())).unwrap_or(NonZeroUsize::MIN)
}

/// How many numbers a list such as `0-1,4` has.
fn listed(list: &str) -> usize {
    let n = |part: &str| -> Option<usize> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.split(',').filter_map(n).sum()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use drivetrain_engine::{ErrorKind, HostServices, MetricKind};

    use super::*;

    #[derive(Default)]
    struct Log(Mutex<Vec<String>>);

    impl HostServices for Log {
        fn log(&self, _: LogLevel, message: &str) {
            self.0.lock().unwrap().push(message.to_owned());
        }
        fn metric(&self, _: MetricKind, _: &str, _: f64) {}
        fn progress(&self, _: &str, _: u64, _: u64) {}
        fn cancelled(&self) -> bool {
            false
        }
    }

    fn parse(
        dir: &Path,
        pairs: &[(&str, &str)],
    ) -> (Result<DeepSpeedOptions, EngineError>, Vec<String>) {
        let log = Arc::new(Log::default());
        let request = LoadRequest {
            model_name: "test",
            model_dir: dir,
            adapter_dir: None,
            options: Options::new(pairs),
            n_threads: NonZeroUsize::MIN,
            services: Services::new(log.clone()),
        };
        let parsed = DeepSpeedOptions::parse(&request);
        let lines = log.0.lock().unwrap().clone();
        (parsed, lines)
    }

    fn number(n: usize) -> Degree {
        Degree::Number(NonZeroUsize::new(n).unwrap())
    }

    #[test]
    fn degrees_are_numbers_or_max() {
        let degree =
            |value| parse(Path::new(""), &[(DEGREE, value)]).0.map(|options| options.degree);
        assert_eq!(parse(Path::new(""), &[]).0.unwrap().degree, number(1));
        assert_eq!(degree(" 3 ").unwrap(), number(3));
        assert_eq!(degree("MAX").unwrap(), Degree::Max);
        for wrong in ["0", "-1", "two", "1.5"] {
            let error = degree(wrong).unwrap_err();
            let expect = "expected a whole number above 0, or max";
            assert_eq!(error.message(), format!("option.{DEGREE}={wrong}: {expect}"));
        }
    }

    #[test]
    fn what_has_no_effect_is_said() {
        let neutral = [
            ("enable_cuda_graph", "false"),
            ("triangular_masking", "true"),
            ("return_tuple", "true"),
            ("training_mp_size", "1"),
            ("pipeline_parallel_degree", "1"),
        ];
        let (parsed, log) = parse(Path::new(""), &neutral);
        assert_eq!((parsed.unwrap().max_tokens, log.len()), (None, 0));
        let asking = [
            ("enable_cuda_graph", "true"),
            ("triangular_masking", "false"),
            ("pipeline_parallel_degree", "2"),
            ("max_tokens", "512"),
        ];
        let (parsed, log) = parse(Path::new(""), &asking);
        assert_eq!(parsed.unwrap().max_tokens, NonZeroU32::new(512));
        assert_eq!(log.len(), 3, "{log:?}");
        for ((key, value), line) in asking.iter().zip(&log) {
            assert!(line.starts_with(&format!("option.{key}={value} has no effect: ")), "{line}");
        }
    }

    #[test]
    fn partitioned_checkpoints_are_refused_with_advice() {
        for (key, value) in [("checkpoint", "ds.json"), ("training_mp_size", "4")] {
            let error = parse(Path::new(""), &[(key, value)]).0.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.message().contains("save_pretrained"), "{error}");
        }
    }

    #[test]
    fn a_configuration_file_is_read_beneath_the_options() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"tensor_parallel": {"tp_size": 2}, "max_out_tokens": 64, "zero": {}}"#;
        fs::write(dir.path().join("ds.json"), text).unwrap();
        let path = ("deepspeed_config_path", "ds.json");
        let (parsed, log) = parse(dir.path(), &[path]);
        let expect = DeepSpeedOptions { degree: number(2), max_tokens: NonZeroU32::new(64) };
        assert_eq!(parsed.unwrap(), expect);
        assert_eq!(log, ["ds.json: zero have no effect"]);
        let over = [path, (DEGREE, "3"), ("max_tokens", "32")];
        let expect = DeepSpeedOptions { degree: number(3), max_tokens: NonZeroU32::new(32) };
        assert_eq!(parse(dir.path(), &over).0.unwrap(), expect);
        fs::write(dir.path().join("bad.json"), r#"{"mp_size": 0}"#).unwrap();
        fs::write(dir.path().join("large.json"), vec![b' '; (1 << 20) + 1]).unwrap();
        for wrong in ["../ds.json", "/ds.json", "none.json", "bad.json", "large.json"] {
            let error = parse(dir.path(), &[("deepspeed_config_path", wrong)]).0.unwrap_err();
            let begins = format!("option.deepspeed_config_path={wrong}: ");
            assert!(error.message().starts_with(&begins), "{error}");
        }
    }

    #[test]
    fn memory_nodes_are_counted() {
        for (list, n) in [("0", 1), ("0-1", 2), ("0-1,4", 3), ("", 0), ("x", 0)] {
            assert_eq!(listed(list), n, "{list}");
        }
        assert!(memory_nodes().get() >= 1);
    }
}
