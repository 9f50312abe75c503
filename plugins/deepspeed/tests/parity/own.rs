//! What is this engine's own: the same numbers at any degree, the same bits in any run, and what each rank
//! has.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use drivetrain_engine::{
    AdapterId, Batch, Engine, EngineError, ErrorKind, HostServices, LoadRequest, LoadedModel,
    LogLevel, MetricKind, Options, Outputs, Segment, Services, Wanted,
};
use tempfile::TempDir;

use crate::ENGINE;
use crate::degrees::own;
use crate::measures::{distance, rows, tokens};
use crate::support::{Model, Part, assert_close, try_load, workspace};

const DECODERS: [&str; 19] = [
    "bloom",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3",
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "gptj",
    "llama3_rope",
    "llama_gqa",
    "llama_mha",
    "mistral",
    "mixtral",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
];
const OTHERS: [&str; 11] = [
    "bart",
    "flan_t5",
    "marian",
    "mbart",
    "pegasus",
    "t5",
    "bert",
    "deberta_v2",
    "distilbert",
    "mpnet",
    "roberta",
];

/// Heads that groups don't divide, and other shapes that are cut unevenly.
const UNEVEN: [&str; 5] = [
    "bloom_six_heads",
    "falcon_grouped",
    "llama_bias_mqa",
    "mixtral_five_experts",
    "opt_projected",
];

pub(crate) fn fixture(name: &str) -> PathBuf {
    workspace("tests/fixtures").join(name)
}

/// Keeps what is logged.
#[derive(Default)]
pub(crate) struct Log(Mutex<Vec<String>>);

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

pub(crate) fn request<'a>(
    dir: &'a Path,
    options: &'a [(&'a str, &'a str)],
    n_threads: usize,
    log: &Arc<Log>,
) -> LoadRequest<'a> {
    LoadRequest {
        model_name: "test",
        model_dir: dir,
        adapter_dir: None,
        options: Options::new(options),
        n_threads: NonZeroUsize::new(n_threads).unwrap(),
        services: Services::new(log.clone()),
    }
}

/// A model at a degree, on so many threads.
fn load_at(dir: &Path, form: (&str, &str), degree: u32, n_threads: usize) -> Model {
    let degree = degree.to_string();
    let options = [form, ("tensor_parallel_degree", degree.as_str())];
    match ENGINE.load(&request(dir, &options, n_threads, &Arc::default())).unwrap() {
        LoadedModel::Token(model) => Model::of(model),
        LoadedModel::Request(_) => panic!("a request model"),
    }
}

#[test]
fn logits_are_those_of_one_rank() {
    let prompt = tokens(30, 3);
    let uneven = UNEVEN.map(|name| format!("variants/{name}"));
    let names = DECODERS.iter().chain(&OTHERS).map(ToString::to_string).chain(uneven);
    for name in names {
        let dir = fixture(&name);
        // Vocabularies of variants are small.
        let small: Vec<u32> = prompt.iter().map(|token| token % 60).collect();
        let prompt = if name.starts_with("variants/") { &small } else { &prompt };
        let expect = rows(&mut load_at(&dir, ("dtype", "fp32"), 1, 1), prompt);
        let found = rows(&mut load_at(&dir, ("dtype", "fp32"), own(), 2), prompt);
        assert_close(&format!("{name} at {}", own()), &found, &expect, 1e-4);
    }
}

#[test]
fn bits_are_the_same_in_any_run_and_on_any_number_of_threads() {
    let prompt = tokens(40, 5);
    for name in ["llama_gqa", "bloom", "bart", "mixtral", "deberta_v2"] {
        for form in [("dtype", "fp32"), ("quantize", "int8")] {
            let mut model = load_at(&fixture(name), form, own(), 1);
            let expect = rows(&mut model, &prompt);
            for n_threads in [1, 2, 7] {
                let mut other = load_at(&fixture(name), form, own(), n_threads);
                let found = rows(&mut other, &prompt);
                assert!(found == expect, "{name} {form:?}, {n_threads} threads");
            }
            assert!(rows(&mut model, &prompt) == expect, "{name} {form:?} again");
        }
    }
}

/// How far a form's numbers may be from those of one rank, as a part of the values' size. Scales of bytes
/// are of what a rank has: of a row's own part, and of 32 or 64 of its own activations.
const FORMS: [(&str, &str, f32); 6] = [
    ("dtype", "fp16", 1e-3),
    ("dtype", "bf16", 1e-3),
    ("quantize", "int8", 1e-1),
    ("quantize", "int8-weight-only", 1e-1),
    ("kv_cache_dtype", "fp16", 1e-2),
    ("kv_cache_dtype", "int8", 3e-2),
];

#[test]
fn other_forms_are_near_one_rank() {
    let prompt = tokens(40, 4);
    for name in ["gpt2", "llama_gqa", "bart", "t5", "bert"] {
        for (key, value, most) in FORMS {
            let expect = rows(&mut load_at(&fixture(name), (key, value), 1, 1), &prompt);
            let found = rows(&mut load_at(&fixture(name), (key, value), own(), 1), &prompt);
            let apart = distance(&found, &expect);
            assert!(apart <= most, "{name} {key}={value}: {apart}");
        }
    }
    // Those whose matrices blocks divide.
    for name in ["gpt2", "llama_gqa", "bloom", "bart", "t5"] {
        for form in [("quantize", "q8"), ("quantize", "q4")] {
            let expect = rows(&mut load_at(&fixture(name), form, 1, 1), &prompt);
            let found = rows(&mut load_at(&fixture(name), form, own(), 1), &prompt);
            let apart = distance(&found, &expect);
            assert!(apart <= 6e-2, "{name} {form:?}: {apart}");
        }
    }
}

/// Where a cut goes through 32 activations that share a scale, ranks round them otherwise than one rank
/// would, and are as near to f32.
#[test]
fn blocks_of_a_file_are_cut_between_ranks() {
    let dir = workspace("tests/fixtures/gguf_llama");
    let prompt: Vec<u32> = (0..60).map(|i| 5 + (i * 37 + 22) % 200).collect();
    for kind in ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_M", "Q5_K_M", "Q6_K"] {
        let file = dir.join(format!("model-{kind}.gguf"));
        let exact = rows(&mut load_at(&file, ("dtype", "fp32"), 1, 1), &prompt);
        let one = rows(&mut load_at(&file, ("dtype", "auto"), 1, 1), &prompt);
        let found = rows(&mut load_at(&file, ("dtype", "auto"), own(), 1), &prompt);
        let (apart, most) = (distance(&found, &exact), 1.2 * distance(&one, &exact));
        assert!(apart < most, "{kind}: {apart}, one rank {most}");
        let is_aligned = own() <= 2 && !kind.ends_with("_1");
        assert!(!is_aligned || distance(&found, &one) < 1e-4, "{kind}");
    }
}

#[test]
fn ranks_together_have_the_model_and_what_the_plan_lists() {
    let dir = workspace("config/models/bart-g2p");
    let one = load_at(&dir, ("dtype", "fp32"), 1, 1).info;
    let (degree, log) = (own().to_string(), Arc::new(Log::default()));
    let options = [("dtype", "fp32"), ("tensor_parallel_degree", degree.as_str())];
    let request = request(&dir, &options, 2, &log);
    let plan = ENGINE.plan(&request).unwrap().unwrap();
    let LoadedModel::Token(model) = ENGINE.load(&request).unwrap() else { panic!("no model") };
    let info = model.info();
    let log = log.0.lock().unwrap();
    if own() > 1 {
        let line = log.iter().find(|line| line.contains(" ranks with ")).unwrap();
        let together = format!(", {} together; nothing twice", info.weight_bytes);
        assert!(line.ends_with(&together), "{line}");
    }
    // Heads and units divide at degrees up to 4; panels of a kernel are filled up beyond.
    if own() <= 4 {
        let beyond = info.weight_bytes as f64 / one.weight_bytes as f64 - 1.0;
        assert!(beyond.abs() < 0.03, "{beyond}");
    }
    assert_eq!(plan.devices.len(), own() as usize);
    let parts = plan.devices.iter().flat_map(|device| &device.parts);
    let planned: u64 = parts.filter(|part| part.what == "weights").map(|part| part.bytes).sum();
    let apart = planned as f64 / one.weight_bytes as f64 - 1.0;
    assert!(apart.abs() < 0.03, "{planned} of {}", one.weight_bytes);
    assert_eq!(info.kv_bytes_per_token, one.kv_bytes_per_token);
    assert_eq!(plan.kv_capacity_tokens, info.kv_capacity_tokens);
}

#[test]
fn the_plan_lists_what_several_ranks_have() {
    let (dir, log) = (fixture("variants/llama_bias_mqa"), Arc::default());
    let options = [("tensor_parallel_degree", "2")];
    let plan = ENGINE.plan(&request(&dir, &options, 2, &log)).unwrap().unwrap();
    let note = "bytes on more than one rank: heads of keys and values that several ranks read ";
    assert!(plan.notes.iter().any(|line| line.starts_with(note)), "{:?}", plan.notes);
    let one = [("tensor_parallel_degree", "1")];
    let one = ENGINE.plan(&request(&dir, &one, 2, &log)).unwrap().unwrap();
    assert_eq!(one.notes.len(), 1, "{:?}", one.notes);
}

fn refused(name: &str, options: &[(&str, &str)]) -> EngineError {
    match try_load(&fixture(name), options) {
        Ok(_) => panic!("the model was loaded"),
        Err(error) => error,
    }
}

#[test]
fn degrees_that_cannot_be_are_refused() {
    for (degree, expect) in [
        ("0", "option.tensor_parallel_degree=0: expected a whole number above 0, or max"),
        (
            "65",
            "option.tensor_parallel_degree=65: the layers of this model have 4 heads and 64 columns in \
             their feed-forward, so 64 ranks at most have work to do",
        ),
    ] {
        let error = refused("llama_gqa", &[("tensor_parallel_degree", degree)]);
        assert_eq!((error.kind(), error.message()), (ErrorKind::BadInput, expect));
    }
    let mut most = load_at(&fixture("llama_gqa"), ("dtype", "fp32"), 16, 1);
    let expect = rows(&mut load_at(&fixture("llama_gqa"), ("dtype", "fp32"), 1, 1), &tokens(9, 1));
    assert_close("16 ranks", &rows(&mut most, &tokens(9, 1)), &expect, 1e-4);
}

/// There is no room for what one rank is to write while the others wait for it.
#[test]
fn ranks_go_on_after_one_has_failed() {
    let mut model = load_at(&fixture("llama_gqa"), ("dtype", "fp32"), own(), 2);
    let prompt = tokens(12, 7);
    let expect = rows(&mut model, &prompt);
    for _ in 0..3 {
        let segment = Segment {
            sequence: model.name(),
            first_token: 0,
            n_tokens: prompt.len() as u32,
            position: 0,
            wanted: Wanted::AllLogits,
            adapter: AdapterId::NONE,
        };
        let (segments, info) = ([segment], model.info);
        let batch = Batch::new(&segments, &prompt, &[]).unwrap();
        let (n_logits, dim) = (info.n_logits as usize, info.dim as usize);
        let mut out = Outputs::new(&mut [], n_logits, &mut [], dim);
        let error = model.inner.forward(&batch, &mut out).unwrap_err();
        assert!(!error.causes().iter().any(|cause| cause.contains("another rank")), "{error:?}");
        assert_eq!(model.inner.n_sequences(), 0);
        assert!(rows(&mut model, &prompt) == expect);
    }
}

/// Panics where it is told of numbers that are not finite, which is in the middle of a pass.
struct Touchy;

impl HostServices for Touchy {
    fn log(&self, _: LogLevel, message: &str) {
        assert!(!message.contains("not finite"), "it is not finite");
    }
    fn metric(&self, _: MetricKind, _: &str, _: f64) {}
    fn progress(&self, _: &str, _: u64, _: u64) {}
    fn cancelled(&self) -> bool {
        false
    }
}

/// A copy of a fixture in which a matrix of the first layer is not finite.
fn damaged(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture(name).join("config.json"), dir.path().join("config.json")).unwrap();
    let mut bytes = std::fs::read(fixture(name).join("model.safetensors")).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..data]).unwrap();
    let offsets = &header["model.layers.0.mlp.down_proj.weight"]["data_offsets"];
    let at = |idx: usize| data + offsets[idx].as_u64().unwrap() as usize;
    for value in bytes[at(0)..at(1)].chunks_exact_mut(4) {
        value.copy_from_slice(&f32::INFINITY.to_le_bytes());
    }
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    dir
}

#[test]
fn a_pass_that_panics_leaves_nothing_behind() {
    let dir = damaged("llama_gqa");
    for degree in [1, own()] {
        let degree = degree.to_string();
        let options = [("dtype", "fp32"), ("tensor_parallel_degree", degree.as_str())];
        let services = Services::new(Arc::new(Touchy));
        let request = LoadRequest { services, ..request(dir.path(), &options, 2, &Arc::default()) };
        let LoadedModel::Token(model) = ENGINE.load(&request).unwrap() else { panic!("no model") };
        let mut model = Model::of(model);
        for _ in 0..3 {
            let (sequence, prompt) = (model.name(), tokens(12, 7));
            let part = Part { sequence, tokens: &prompt, position: 0, wanted: Wanted::LastLogits };
            let error = model.try_run(false, &[part], &[]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Internal);
            assert!(error.message().contains("it is not finite"), "{error}");
            assert_eq!(model.inner.n_sequences(), 0);
        }
    }
}

#[test]
fn sequences_are_no_longer_than_asked_for() {
    let Ok(model) = try_load(&fixture("gpt2"), &[("max_tokens", "12")]) else { panic!("no model") };
    assert_eq!(model.info().max_positions, 12);
}
