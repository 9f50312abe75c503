//! What is fuzzed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use drivetrain_artifacts::{
    DecodeSpecial, GenerationConfig, ModelConfig, ModelDir, SpecialTokens, Tokenizer,
    UnpackOptions, Weights,
};
use drivetrain_config::{Environment, Properties, ServerConfig, ServerOverrides};
use drivetrain_transformer::{Architecture, CanonicalWeights};
use tempfile::TempDir;

use crate::watch::{Bounds, Spent, measure};

/// One reader of input from outside.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, which is that of its test and of the folder of its corpus.
    pub name: &'static str,
    run: fn(&[u8]),
    /// Files that are right, or nearly so, relative to the repository.
    seeds: &'static [&'static str],
    /// What an input may cost.
    pub bounds: Bounds,
}

/// Most memory for files that are read as they are: what JSON's values take, several times over.
const PLAIN: Bounds =
    Bounds { base_bytes: 4 << 20, bytes_per_byte: 256, time: Duration::from_secs(20) };

/// A tokenizer's tree of pieces takes some 250 bytes a byte, in two copies while it is made, and its
/// automaton of added tokens 1 MiB.
const TOKENIZER: Bounds =
    Bounds { base_bytes: 16 << 20, bytes_per_byte: 4096, time: Duration::from_secs(60) };

/// All targets.
pub const TARGETS: &[Target] = &[
    Target {
        name: "safetensors",
        run: safetensors,
        seeds: &["tests/fixtures/roberta/model.safetensors"],
        bounds: PLAIN,
    },
    Target {
        name: "pickle",
        run: pickle,
        seeds: &[
            "crates/artifacts/tests/data/torch/tensor_fine.bin",
            "crates/artifacts/tests/data/torch/state_dict.bin",
            "crates/artifacts/tests/data/torch/legacy.bin",
            "crates/artifacts/tests/data/torch/protocol4.bin",
            "crates/artifacts/tests/data/torch/zip.bin",
            "crates/artifacts/tests/data/torch/wrapped.bin",
            "crates/artifacts/tests/data/torch/hostile_system.bin",
        ],
        bounds: PLAIN,
    },
    Target {
        name: "gguf",
        run: gguf,
        seeds: &["tests/fixtures/gguf_llama/model-Q4_0.gguf"],
        bounds: TOKENIZER,
    },
    Target {
        name: "weights_index",
        run: weights_index,
        seeds: &["tests/fixtures/phi/model.safetensors.index.json"],
        bounds: PLAIN,
    },
    Target {
        name: "model_config",
        run: model_config,
        seeds: &[
            "tests/fixtures/bart/config.json",
            "tests/fixtures/bart/generation_config.json",
            "tests/fixtures/llama3_rope/config.json",
        ],
        bounds: PLAIN,
    },
    Target {
        name: "tokenizer_json",
        run: tokenizer_json,
        seeds: &[
            "tests/fixtures/bert/tokenizer.json",
            "tests/fixtures/gpt2/tokenizer.json",
            "tests/fixtures/llama_gqa/tokenizer.json",
        ],
        bounds: TOKENIZER,
    },
    Target {
        name: "sentencepiece",
        run: sentencepiece,
        seeds: &[
            "tests/fixtures/tokenizers/fairseq.model",
            "tests/fixtures/tokenizers/fairseq_bpe.model",
            "tests/fixtures/tokenizers/llama.model",
            "tests/fixtures/tokenizers/unigram_bytes.model",
        ],
        bounds: TOKENIZER,
    },
    Target {
        name: "vocabularies",
        run: vocabularies,
        seeds: &[
            "tests/fixtures/tokenizers/cased_vocab.txt",
            "tests/fixtures/tokenizers/bytes_merges.txt",
            "tests/fixtures/tokenizers/bytes_vocab.json",
            "tests/fixtures/tokenizers/marian_vocab.json",
        ],
        bounds: TOKENIZER,
    },
    Target {
        name: "tokenizer_settings",
        run: tokenizer_settings,
        seeds: &[
            "crates/artifacts/tests/data/tokenizers/gpt2_added/tokenizer_config.json",
            "crates/artifacts/tests/data/tokenizers/gpt2_added/special_tokens_map.json",
            "crates/artifacts/tests/data/tokenizers/llama_added/tokenizer_config.json",
        ],
        bounds: TOKENIZER,
    },
    Target { name: "archive", run: archive, seeds: &[], bounds: PLAIN },
    Target {
        name: "properties",
        run: properties,
        seeds: &[
            "config/examples/deepspeed/serving.properties",
            "config/examples/text-generation/serving.properties",
            "config/examples/container/config.properties",
        ],
        bounds: PLAIN,
    },
];

/// The target of a name.
///
/// # Panics
/// There is none.
pub fn target(name: &str) -> Target {
    let found = TARGETS.iter().find(|target| target.name == name);
    *found.unwrap_or_else(|| panic!("there is no target {name}"))
}

impl Target {
    /// Runs it on an input.
    ///
    /// # Panics
    /// The reader panics, takes more memory or time than it may, or gives out what can't be.
    pub fn check(&self, input: &[u8]) -> Spent {
        let spent = measure(self.run, input);
        let most = self.bounds.bytes(input.len());
        assert!(
            spent.peak_bytes <= most,
            "{}: took {} bytes of memory for an input of {}, at most {most} are allowed",
            self.name,
            spent.peak_bytes,
            input.len()
        );
        assert!(
            spent.time <= self.bounds.time,
            "{}: took {:?} for an input of {} bytes, at most {:?} are allowed",
            self.name,
            spent.time,
            input.len(),
            self.bounds.time
        );
        spent
    }

    /// Its seeds: files of the repository, its corpus and what was found before.
    ///
    /// # Panics
    /// A file can't be read.
    pub fn seeds(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut paths: Vec<PathBuf> = self.seeds.iter().map(|seed| root.join(seed)).collect();
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/__fuzz__").join(self.name);
        for folder in ["corpus", "crashes"] {
            let entries = fs::read_dir(own.join(folder)).into_iter().flatten().flatten();
            paths.extend(entries.map(|entry| entry.path()));
        }
        paths.sort();
        let read = |path: PathBuf| {
            let bytes = fs::read(&path);
            let bytes = bytes.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (path, bytes)
        };
        paths.into_iter().map(read).collect()
    }
}

/// A model directory with these files.
fn model_of(files: &[(&str, &[u8])]) -> (TempDir, ModelDir) {
    let dir = TempDir::new().expect("there is room for a directory");
    for (name, content) in files {
        fs::write(dir.path().join(name), content).expect("there is room for a file");
    }
    let model = ModelDir::open(dir.path(), &UnpackOptions::default());
    let model = model.expect("a directory opens, whatever its files hold");
    (dir, model)
}

/// Reads everything that weight files give out.
fn read_weights(model: &ModelDir, n_bytes: usize) {
    let Ok(weights) = Weights::open(model) else { return };
    for name in weights.names() {
        let tensor = weights.get(name).expect("a tensor that is listed is there");
        assert!(tensor.n_elements().saturating_mul(tensor.dtype().size()) <= n_bytes);
        if let Ok(values) = tensor.to_f32_vec() {
            assert_eq!(values.len(), tensor.shape().iter().product::<usize>());
        }
    }
}

fn safetensors(input: &[u8]) {
    let (_dir, model) = model_of(&[("model.safetensors", input)]);
    read_weights(&model, input.len());
}

fn pickle(input: &[u8]) {
    let (_dir, model) = model_of(&[("pytorch_model.bin", input)]);
    read_weights(&model, input.len());
}

/// Opens a file that is a whole model, and reads all that it says as an engine and a server do.
fn gguf(input: &[u8]) {
    let (dir, model) = model_of(&[("model.gguf", input)]);
    if let Ok(config) = ModelConfig::read(&model) {
        let _ = GenerationConfig::read(&model, &config);
        let weights = Weights::open(&model);
        if let (Ok(architecture), Ok(weights)) = (Architecture::from_config(&config), &weights)
            && let Ok(canonical) = CanonicalWeights::new(&architecture, weights)
        {
            for tensor in canonical.iter() {
                assert!(tensor.bytes() <= input.len() as u64);
            }
        }
        if let Ok(weights) = &weights {
            read_blocks(weights, input.len());
        }
    }
    use_tokenizer(&model);
    // The same file as the model itself.
    let path = dir.path().join("model.gguf");
    if let Ok(model) = ModelDir::open(&path, &UnpackOptions::default()) {
        let _ = ModelConfig::read(&model);
    }
}

/// Reads every tensor in pieces, whatever its blocks.
fn read_blocks(weights: &Weights, n_bytes: usize) {
    let mut piece = [0.0; 512];
    for name in weights.names() {
        let tensor = weights.get(name).expect("a tensor that is listed is there");
        assert!(tensor.dtype().bytes_for(tensor.n_elements()) <= n_bytes);
        for start in (0..tensor.n_elements()).step_by(piece.len()) {
            let n = piece.len().min(tensor.n_elements() - start);
            if tensor.read_f32_at(start, &mut piece[..n]).is_err() {
                break;
            }
        }
    }
}

fn weights_index(input: &[u8]) {
    let header = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let shard = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 8]].concat();
    let (_dir, model) = model_of(&[
        ("model.safetensors.index.json", input),
        ("model-00001-of-00002.safetensors", &shard),
        ("model-00002-of-00002.safetensors", &shard),
    ]);
    read_weights(&model, shard.len());
}

fn model_config(input: &[u8]) {
    let (_dir, model) = model_of(&[("config.json", input), ("generation_config.json", input)]);
    if let Ok(config) = ModelConfig::read(&model) {
        let _ = GenerationConfig::read(&model, &config);
    }
    let (_dir, model) = model_of(&[
        ("config.json", br#"{"model_type": "bart", "vocab_size": 100}"#),
        ("generation_config.json", input),
    ]);
    if let Ok(config) = ModelConfig::read(&model) {
        let _ = GenerationConfig::read(&model, &config);
    }
}

/// Uses a tokenizer, if there is one, as a server does.
fn use_tokenizer(model: &ModelDir) {
    let Ok(tokenizer) = Tokenizer::read(model) else { return };
    for text in ["Hello, wörld 😀 <s>", "  \n▁ a\u{301}東京<mask></s>"] {
        let Ok(encoding) = tokenizer.encode(text, SpecialTokens::Add) else { continue };
        assert_eq!(encoding.ids.len(), encoding.offsets.len());
        let _ = tokenizer.decode(&encoding.ids, DecodeSpecial::Keep);
        let mut stream = tokenizer.stream();
        for id in &encoding.ids {
            let _ = (stream.push(*id), tokenizer.token_bytes(*id), tokenizer.is_special(*id));
        }
        let _ = stream.finish();
    }
    let _ = tokenizer.encode_pair("a", "b", SpecialTokens::Add);
    if let Some(code) = tokenizer.languages().next() {
        let _ = tokenizer.encode_in("a", code);
    }
}

/// Uses the tokenizer of these files in a model of each type.
fn use_as(types: &[&str], files: &[(&str, &[u8])]) {
    for model_type in types {
        let config = format!(r#"{{"model_type": "{model_type}"}}"#);
        let (dir, model) = model_of(files);
        fs::write(dir.path().join("config.json"), config).expect("there is room for a file");
        use_tokenizer(&model);
    }
}

fn tokenizer_json(input: &[u8]) {
    use_as(&["", "bert", "roberta", "t5", "mbart"], &[("tokenizer.json", input)]);
}

fn sentencepiece(input: &[u8]) {
    use_as(&["mixtral", "t5", "pegasus", "mbart", "nllb", "gemma"], &[("tokenizer.model", input)]);
}

fn vocabularies(input: &[u8]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tokenizers");
    let fixture = |name: &str| fs::read(root.join(name)).expect("the fixture is there");
    use_as(&["bert", "mpnet"], &[("vocab.txt", input)]);
    let (vocab, merges) = (fixture("bytes_vocab.json"), fixture("bytes_merges.txt"));
    use_as(&["gpt2", "clip"], &[("vocab.json", &vocab), ("merges.txt", input)]);
    use_as(&["roberta", "qwen3"], &[("vocab.json", input), ("merges.txt", &merges)]);
    let (source, target) = (fixture("source.spm"), fixture("target.spm"));
    use_as(&["marian"], &[("vocab.json", input), ("source.spm", &source), ("target.spm", &target)]);
}

fn tokenizer_settings(input: &[u8]) {
    let vocab = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\n##lo\nw\n";
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tokenizers");
    let pieces = fs::read(root.join("fairseq.model")).expect("the fixture is there");
    for name in ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"] {
        let (_dir, model) = model_of(&[("vocab.txt", vocab), (name, input)]);
        use_tokenizer(&model);
        use_as(&["mbart", "t5"], &[("spiece.model", &pieces), (name, input)]);
    }
}

/// Opens an archive; whatever comes of it, nothing appears beside the directory for it.
fn archive(input: &[u8]) {
    let dir = TempDir::new().expect("there is room for a directory");
    let into = dir.path().join("unpacked");
    let options =
        UnpackOptions { into, max_bytes: 1 << 20, max_entries: 200, ..UnpackOptions::default() };
    for name in ["model.tar.gz", "model.tar", "model.zip"] {
        let path = dir.path().join(name);
        fs::write(&path, input).expect("there is room for a file");
        if let Ok(model) = ModelDir::open(&path, &options) {
            assert!(model.path().starts_with(&options.into), "{}", model.path().display());
            let _ = model.file("config.json");
        }
        fs::remove_file(&path).expect("the file is still there");
    }
    let beside = fs::read_dir(dir.path()).map_or(0, Iterator::count);
    assert!(beside <= 1, "something was written outside");
}

fn properties(input: &[u8]) {
    let path = Path::new("serving.properties");
    let _ = Properties::parse(path, input);
    let dir = TempDir::new().expect("there is room for a directory");
    let file = dir.path().join("config.properties");
    fs::write(&file, input).expect("there is room for a file");
    fs::write(dir.path().join(path), input).expect("there is room for a file");
    let overrides = ServerOverrides {
        config_file: Some(file),
        sagemaker_root: dir.path().join("ml"),
        ..ServerOverrides::default()
    };
    let env = Environment::from_iter::<[(String, String); 0]>([]);
    let _ = ServerConfig::resolve(&overrides, &env);
    let plain = ServerOverrides { config_file: None, ..overrides };
    let server = ServerConfig::resolve(&plain, &env);
    let (server, _) = server.expect("the defaults are right");
    let _ = drivetrain_config::ModelConfig::of_dir(dir.path(), &server, &env);
}
