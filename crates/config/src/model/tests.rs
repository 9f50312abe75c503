//! A model's layers, engine names, handlers and options.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::keys::{self, Scope};
use crate::server::ServerOverrides;
use crate::source::Source;

const ODD_VALUES: [&str; 14] = [
    "",
    "x",
    "0",
    "1",
    "-1",
    "+1",
    "1.5",
    "99999999999999999999999",
    "true",
    "*",
    ";",
    "/",
    "é\u{7}",
    "http://h:1",
];

/// A model directory with files, resolved with an environment and a registration.
struct Case {
    _root: tempfile::TempDir,
    dir: PathBuf,
}

impl Case {
    fn new(properties: &str, files: &[&str]) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        let dir = root.path().join("mymodel");
        fs::create_dir(&dir).expect("created");
        fs::write(dir.join("serving.properties"), properties).expect("written");
        for file in files {
            fs::write(dir.join(file), "").expect("written");
        }
        Self { _root: root, dir }
    }

    fn try_resolve(
        &self,
        env: &[(&str, &str)],
        registration: &[(&str, &str)],
    ) -> Result<(ModelConfig, Vec<String>), ConfigError> {
        let env: Environment = env.iter().copied().collect();
        let cli =
            ServerOverrides { sagemaker_root: "/nonexistent".into(), ..ServerOverrides::default() };
        let (server, _) = ServerConfig::resolve(&cli, &env)?;
        let registration: Vec<(String, String)> =
            registration.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let input = ModelInputs {
            name: "mymodel",
            dir: &self.dir,
            server: &server,
            env: &env,
            registration: &registration,
        };
        let (config, warnings) = ModelConfig::resolve(input)?;
        Ok((config, warnings.iter().map(|w| self.short(w)).collect()))
    }

    /// A message without the temporary directory.
    fn short(&self, message: impl ToString) -> String {
        message.to_string().replace(&format!("{}/", self.dir.display()), "")
    }

    fn resolve(&self, env: &[(&str, &str)]) -> (ModelConfig, Vec<String>) {
        self.try_resolve(env, &[]).expect("resolves")
    }
}

fn resolve(properties: &str) -> (ModelConfig, Vec<String>) {
    Case::new(properties, &[]).resolve(&[])
}

fn refused(properties: &str) -> String {
    let case = Case::new(properties, &[]);
    case.short(case.try_resolve(&[], &[]).expect_err(properties))
}

const ARTICLE: &str =
    "engine=Python\noption.model_id=facebook/bart-large\noption.task=feature-extraction\n";

#[test]
fn the_articles_file_means_the_native_path() {
    let case = Case::new(ARTICLE, &[]);
    let (config, warnings) = case.resolve(&[]);
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(config.engine.value, EngineChoice::Auto);
    assert_eq!(case.short(&config.engine.source), "serving.properties:1");
    assert_eq!(config.model_id.expect("set").value, "facebook/bart-large");
    let task = config.task.expect("set");
    assert_eq!(task.value, "feature-extraction");
    assert_eq!(case.short(&task.source), "serving.properties:3");
    assert_eq!(config.python_handler, HandlerKind::BuiltIn);
    assert_eq!(
        config.notes.iter().map(|note| case.short(note)).collect::<Vec<_>>(),
        ["engine=Python without model.py or an entry point of its own: served natively by the \
          default engine (serving.properties:1)"]
    );
    assert_eq!(config.options.get("task"), Some("feature-extraction"));
    assert_eq!(config.options.get("model_id"), Some("facebook/bart-large"));
    assert_eq!(config.options.get("engine"), None);
}

#[test]
fn a_script_of_the_models_own_stays_pythons() {
    let case = Case::new(ARTICLE, &["model.py", "requirements.txt"]);
    let (config, _) = case.resolve(&[]);
    assert_eq!(config.engine.value, EngineChoice::Named("python".into()));
    assert_eq!(config.python_handler, HandlerKind::UserScript(case.dir.join("model.py")));
    let check = |entry: &str, files: &[&str], engine: &str, script: Option<&str>| {
        let case = Case::new(&format!("engine=Python\noption.entryPoint={entry}\n"), files);
        let (config, _) = case.resolve(&[]);
        assert_eq!(config.engine.value.to_string(), engine, "{entry}");
        let wanted = script.map_or(HandlerKind::BuiltIn, |s| HandlerKind::UserScript(s.into()));
        let found = match config.python_handler {
            HandlerKind::UserScript(path) => {
                HandlerKind::UserScript(case.short(path.display()).into())
            }
            built_in => built_in,
        };
        assert_eq!(found, wanted, "{entry}");
    };
    check("djl_python.huggingface", &["model.py"], "auto", None);
    check("djl_python.deepspeed", &[], "auto", None);
    check("serve.py", &["serve.py"], "python", Some("serve.py"));
    check("serve", &["serve.py"], "python", Some("serve.py"));
    check("my.module", &[], "python", Some("my.module"));
    check("https://h/x.py", &[], "python", Some("https://h/x.py"));
}

#[test]
fn code_of_the_models_own_runs_as_python_where_no_engine_is_set() {
    let check = |properties: &str, files: &[&str], engine: &str| {
        let (config, _) = Case::new(properties, files).resolve(&[]);
        assert_eq!(config.engine.value.to_string(), engine, "{properties:?} {files:?}");
        config
    };
    let config = check("", &["model.py", "config.json"], "python");
    assert!(config.notes.iter().any(|note| note.contains("it runs with engine=Python")));
    check("option.entryPoint=my.module", &[], "python");
    check("option.entryPoint=djl_python.huggingface", &["model.py"], "auto");
    check("engine=accelerate", &["model.py"], "accelerate");
    // TorchScript goes first, unless the setting says otherwise.
    check("", &["model.py", "model.pt"], "auto");
    check("option.entryPoint=model.py", &["model.py", "model.pt"], "python");
    check("", &["MAR-INF", "handler.py"], "python");
}

#[test]
fn workers_are_told_what_nobody_wrote_for_them() {
    let properties = "engine=Python\nretry_threshold=3\noption.env=A=1\n";
    let (config, _) = Case::new(properties, &["model.py"]).resolve(&[("PREDICT_TIMEOUT", "7")]);
    let get = |name: &str| config.options.get(name);
    assert_eq!((get("retry_threshold"), get("env")), (Some("3"), Some("A=1")));
    assert_eq!((get("predict_timeout"), get("model_loading_timeout")), (Some("7"), Some("240")));
    assert_eq!(get("minWorkers"), None);
    assert!(!format!("{:?}", config.options).contains("A=1"));
    let (config, _) = Case::new("engine=accelerate", &[]).resolve(&[]);
    assert_eq!(config.options.get("predict_timeout"), None);
}

#[test]
fn engine_names_have_no_case_and_the_prefix_wins() {
    let engine = |text: &str| resolve(text).0.engine.value.to_string();
    assert_eq!(engine(""), "auto");
    assert_eq!(engine("engine=\n"), "auto");
    assert_eq!(engine("engine=deepspeed"), "deepspeed");
    assert_eq!(engine("option.engine=FASTERTRANSFORMER"), "fastertransformer");
    assert_eq!(engine("option.engine=accelerate"), "accelerate");
    assert_eq!(engine("engine=PyTorch"), "torch");
    assert_eq!(engine("engine=nonesuch"), "nonesuch");
    assert_eq!(engine("option.engine=accelerate\nengine=DeepSpeed"), "accelerate");
    assert_eq!(engine("engine=DeepSpeed\noption.engine=accelerate"), "accelerate");
    let (config, _) = resolve("engine=MPI");
    assert_eq!(config.engine.value.to_string(), "deepspeed");
    assert!(config.mpi_mode.value);
    assert_eq!(config.options.get("mpi_mode"), Some("true"));
    assert!(refused("engine=a/b").starts_with("serving.properties:1: engine=a/b: expected"));
}

#[test]
fn both_spellings_are_one_setting() {
    let size = |text: &str| resolve(text).0.batching.max_requests.value.get();
    assert_eq!(size("batch_size=4"), 4);
    assert_eq!(size("option.batch_size=4"), 4);
    assert_eq!(size("max_dynamic_batch_size=4"), 4);
    assert_eq!(size("max_dynamic_batch_size=4\nbatch_size=2"), 2);
    assert_eq!(size("batch_size=2\nbatch_size=3"), 3);
    let (config, warnings) = resolve("option.dtype=fp16\ndtype=bf16\n");
    assert_eq!(config.dtype.value, Dtype::Fp16);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].starts_with(
            "serving.properties:2: dtype=bf16 is not used: option.dtype=fp16 at \
             serving.properties:1"
        ),
        "{warnings:?}"
    );
    assert_eq!(config.options.get("dtype"), Some("fp16"));
    let (config, _) = resolve("option.data_type=bf16\n");
    assert_eq!(config.dtype.value, Dtype::Bf16);
    assert_eq!(config.options.get("dtype"), Some("bf16"));
    assert_eq!(config.options.get("data_type"), Some("bf16"));
}

#[test]
fn layers_win_in_the_contracts_order() {
    let case = Case::new("batch_size=2\noption.predict_timeout=30\nminWorkers=1\n", &[]);
    let env = [
        ("OPTION_BATCH_SIZE", "9"),
        ("OPTION_TASK", "text-generation"),
        ("HF_TASK", "summarization"),
        ("ARGS_MINWORKERS", "5"),
        ("ARGS_MAXWORKERS", "6"),
        ("OPTION_ENTRYPOINT", "djl_python.huggingface"),
        ("OPTION_customName", "kept"),
        ("OPTION_EMPTY", ""),
        ("PREDICT_TIMEOUT", "99"),
        ("MODEL_LOADING_TIMEOUT", "1200"),
        ("SERVING_MAX_BATCH_DELAY", "7"),
        ("SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS", "61"),
    ];
    let (config, _) = case.try_resolve(&env, &[("batch_size", "3")]).expect("resolves");
    assert_eq!(config.batching.max_requests.value.get(), 3);
    assert_eq!(
        config.batching.max_requests.source.to_string(),
        "registration parameter batch_size"
    );
    assert_eq!(config.task.expect("set").value, "text-generation");
    let workers = &config.workers.any;
    assert_eq!(workers.min.as_ref().map(|w| w.value), Some(1));
    assert_eq!(workers.max.as_ref().map(|w| w.value), Some(6));
    assert_eq!(config.predict_timeout.value, Duration::from_secs(61));
    assert_eq!(config.model_loading_timeout.value, Duration::from_secs(1200));
    assert_eq!(config.batching.max_delay.value, Duration::from_millis(7));
    assert_eq!(config.options.get("entryPoint"), Some("djl_python.huggingface"));
    assert_eq!(config.options.get("customName"), Some("kept"));
    assert_eq!(config.options.get("empty"), None);
    let (config, _) = case.resolve(&env[..2]);
    assert_eq!(config.batching.max_requests.value.get(), 2, "OPTION_ fills gaps only");
    let (config, _) = case.resolve(&[("SAGEMAKER_NUM_MODEL_WORKERS", "4")]);
    assert_eq!(config.workers.any.min.expect("set").value, 4);
    let (config, _) = case.resolve(&[("OPTION_ENGINE", "DeepSpeed")]);
    assert_eq!(config.engine.value.to_string(), "deepspeed");
}

#[test]
fn tgi_variables_fill_what_nothing_else_sets() {
    let case = Case::new("", &[]);
    let (config, _) = case.resolve(&[
        ("HF_MODEL_QUANTIZE", "awq"),
        ("HF_MODEL_TRUST_REMOTE_CODE", "true"),
        ("SM_NUM_GPUS", "2"),
        ("MAX_CONCURRENT_REQUESTS", "77"),
        ("MAX_BATCH_PREFILL_TOKENS", "4096"),
        ("MAX_BATCH_SIZE", "16"),
        ("ENABLE_CUDA_GRAPHS", "true"),
        ("CUDA_MEMORY_FRACTION", "0.8"),
    ]);
    assert_eq!(config.quantize.expect("set").value, "awq");
    assert!(config.trust_remote_code.value);
    let two = NonZeroU32::new(2).map(ParallelDegree::Count);
    assert_eq!(config.tensor_parallel_degree.map(|d| d.value), two);
    assert_eq!(config.batching.queue_capacity.value.get(), 77);
    assert_eq!(config.batching.max_prefill_tokens.map(|n| n.value.get()), Some(4096));
    assert_eq!(config.batching.max_sequences.value.get(), 16);
    assert_eq!(config.options.get("enforce_eager"), Some("false"));
    assert_eq!(config.options.get("gpu_memory_utilization"), Some("0.8"));
    let (config, _) =
        case.resolve(&[("SM_NUM_GPUS", "2"), ("OPTION_TENSOR_PARALLEL_DEGREE", "max")]);
    let degree = config.tensor_parallel_degree.expect("set");
    assert_eq!(degree.value, ParallelDegree::Max);
    assert_eq!(degree.source, Source::Env { variable: "OPTION_TENSOR_PARALLEL_DEGREE".into() });
}

#[test]
fn errors_name_line_key_value_and_what_is_allowed() {
    for (text, message) in [
        (
            "option.dtype=fp8",
            "serving.properties:1: option.dtype=fp8: expected one of auto, fp32, fp16, bf16, int8",
        ),
        (
            "\n\nbatch_size = 4,",
            "serving.properties:3: batch_size=4,: expected a whole number from 1 to 4294967295",
        ),
        (
            "batch_size=",
            "serving.properties:1: batch_size=: expected a whole number from 1 to 4294967295",
        ),
        (
            "option.tensor_parallel_degree=0",
            "serving.properties:1: option.tensor_parallel_degree=0: expected a whole number, 1 or \
             more, or max",
        ),
        (
            "option.rolling_batch=on",
            "serving.properties:1: option.rolling_batch=on: expected one of auto, disable, \
             scheduler, lmi-dist, vllm, trtllm",
        ),
        (
            "option.predict_timeout=1e3",
            "serving.properties:1: option.predict_timeout=1e3: expected whole seconds, 0 or more",
        ),
        (
            "load_on_devices=0,1",
            "serving.properties:1: load_on_devices=0,1: expected * or a list of -1, cpu, a GPU's \
             number, gpu0, nc0 separated with ;",
        ),
        (
            "gpu.minWorkers=x",
            "serving.properties:1: gpu.minWorkers=x: expected a whole number from 0 to 4294967295",
        ),
    ] {
        assert_eq!(refused(text), message);
    }
    let long = refused(&format!("option.dtype={}", "x\u{7}".repeat(5000)));
    assert!(long.len() < 800 && !long.contains('\u{7}'), "{long}");
}

#[test]
fn names_that_disagree_are_refused() {
    let text = refused("option.model_id=a\noption.s3url=s3://b\n");
    assert_eq!(
        text,
        "serving.properties:2: option.s3url=s3://b: the same setting as option.model_id=a at \
         serving.properties:1; give one of them"
    );
    assert!(
        refused("option.tensor_parallel_degree=2\noption.tensor_parallel_size=4").contains("4")
    );
    assert!(resolve("option.max_num_seqs=4").0.batching.max_sequences.value.get() == 4);
}

#[test]
fn unknown_keys_go_to_the_engine_with_a_warning() {
    let (config, warnings) = resolve("max_batch_dely=5\nmy_setting=1\n");
    assert_eq!(
        warnings,
        [
            "serving.properties:1: unknown key max_batch_dely goes to the engine; the nearest known \
             one is max_batch_delay",
            "serving.properties:2: unknown key my_setting goes to the engine",
        ]
    );
    assert_eq!(config.options.get("my_setting"), Some("1"));
    let (config, warnings) = resolve("option.my_own_flag=1\noption.entry_point=x\ntopK=3\n");
    assert_eq!(
        warnings,
        ["serving.properties:2: unknown option option.entry_point goes to the engine; is \
          option.entryPoint meant?"]
    );
    assert_eq!(config.options.get("my_own_flag"), Some("1"));
    assert_eq!(config.options.get("topK"), Some("3"));
}

#[test]
fn blanks_stay_where_they_are_part_of_the_value() {
    let (config, warnings) =
        resolve("option.model_id = m \noption.custom = v, \noption.task=summarization \n");
    assert_eq!(config.model_id.expect("set").value, "m");
    assert_eq!(config.options.get("model_id"), Some("m"));
    assert_eq!(config.options.get("custom"), Some("v, "));
    assert_eq!(config.options.get("task"), Some("summarization "));
    assert_eq!(config.task.expect("set").value, "summarization");
    assert_eq!(
        warnings,
        [
            "serving.properties:1: option.model_id: blanks around the value dropped",
            "serving.properties:3: option.task: blanks around the value dropped",
        ]
    );
}

#[test]
fn a_batch_size_turns_rolling_batches_off() {
    let (config, _) = resolve("batch_size=4\noption.rolling_batch=auto");
    assert_eq!(config.batching.rolling.value, RollingBatch::Disable);
    assert_eq!(config.notes.len(), 1);
    let (config, _) = resolve("option.rolling_batch=lmi-dist\noption.max_rolling_batch_size=64");
    assert_eq!(config.batching.rolling.value, RollingBatch::LmiDist);
    assert_eq!(config.batching.max_sequences.value.get(), 64);
    assert_eq!(resolve("").0.batching.rolling.value, RollingBatch::Auto);
}

#[test]
fn formats_and_streaming_read() {
    let (config, _) = resolve("option.output_formatter=jsonlines\noption.enable_streaming=true");
    assert_eq!(config.output_formatter.value, OutputFormatter::JsonLines);
    assert_eq!(config.enable_streaming.value, Streaming::On);
    let (config, _) = resolve("option.output_formatter=mine\noption.enable_streaming=huggingface");
    assert_eq!(config.output_formatter.value, OutputFormatter::Custom("mine".into()));
    assert_eq!(config.enable_streaming.value, Streaming::HuggingFace);
}

#[test]
fn a_registration_goes_before_the_file() {
    let case = Case::new(ARTICLE, &[]);
    let parameters = [
        ("engine", "DeepSpeed"),
        ("device", "0;1"),
        ("min_worker", "2"),
        ("max_worker", "3"),
        ("url", "/m"),
        ("model_name", "x"),
        ("topK", "5"),
    ];
    let (config, _) = case.try_resolve(&[], &parameters).expect("resolves");
    assert_eq!(config.engine.value.to_string(), "deepspeed");
    assert_eq!(config.workers.devices.value.to_string(), "gpu0;gpu1");
    assert_eq!(config.workers.any.min.map(|w| w.value), Some(2));
    assert_eq!(config.workers.any.max.map(|w| w.value), Some(3));
    assert_eq!(config.options.get("topK"), Some("5"));
    assert_eq!(config.options.get("url"), None);
}

#[test]
fn secrets_in_options_are_masked() {
    let (config, _) = resolve("option.hf_token=verysecret\noption.env=HF_TOKEN=verysecret\n");
    assert_eq!(config.options.get("hf_token"), Some("verysecret"));
    assert_eq!(config.options.get("env"), None, "for the worker process alone");
    let printed = format!("{config:?}");
    assert!(!printed.contains("verysecret"), "{printed}");
}

#[test]
fn a_file_that_cannot_be_read_is_a_warning() {
    let case = Case::new("", &[]);
    fs::remove_file(case.dir.join("serving.properties")).expect("removed");
    assert_eq!(case.resolve(&[]).1, Vec::<String>::new(), "an absent file is legal");
    fs::create_dir(case.dir.join("serving.properties")).expect("created");
    let (_, warnings) = case.resolve(&[]);
    assert_eq!(warnings, ["serving.properties: can't be read, goes unused: not a regular file"]);
}

#[test]
fn a_hostile_file_is_bounded_work() {
    let many = |n_keys: u32| -> String { (0..n_keys).map(|n| format!("k{n}\n")).collect() };
    let (config, warnings) = resolve(&many(10_000));
    assert_eq!(warnings.len(), 100);
    assert_eq!(config.options.len(), 10_000);
    assert_eq!(
        refused(&many(10_001)),
        "serving.properties:10001: key number 10001: expected at most 10000 keys in a properties \
         file"
    );
    let (_, warnings) = resolve(&"batch_size=1\nbatch_size=2\n".repeat(5_000));
    assert_eq!(warnings.len(), 1);
}

#[test]
fn any_value_of_any_key_resolves_or_is_refused_by_name() {
    for key in keys::all(Scope::Model).filter(|key| key.role == keys::Role::Used) {
        for value in ODD_VALUES {
            let case = Case::new(&format!("option.{}={value}\n", key.name), &[]);
            if let Err(e) = case.try_resolve(&[], &[]) {
                let text = case.short(e);
                let wanted = format!("serving.properties:1: option.{}=", key.name);
                assert!(text.starts_with(&wanted) && text.contains(": expected "), "{text}");
            }
        }
    }
}
