//! Files with flipped bits, lost ends and swapped pieces: each is an error or a valid result.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use drivetrain_artifacts::{
    DecodeSpecial, GenerationConfig, ModelConfig, ModelDir, SpecialTokens, Tokenizer,
    UnpackOptions, Weights,
};
use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use tempfile::TempDir;

use crate::fixtures;
use crate::gguf_writer::llama;

/// One change to a file; places are parts of its length.
#[derive(Clone, Debug)]
enum Change {
    Flip { at: f64, mask: u8 },
    Set { at: f64, value: u8 },
    Cut { at: f64 },
    Remove { at: f64, n: usize },
    Insert { at: f64, bytes: Vec<u8> },
    Copy { from: f64, to: f64, n: usize },
}

fn change() -> impl Strategy<Value = Change> {
    let place = || 0.0..1.0f64;
    // Most of a file's meaning is at its start.
    let near_start = || (0.0..1.0f64).prop_map(|x| x * x * x);
    let at = prop_oneof![place(), near_start()].boxed();
    prop_oneof![
        6 => (at.clone(), 1..=255u8).prop_map(|(at, mask)| Change::Flip { at, mask }),
        6 => (at.clone(), prop_oneof![any::<u8>(), Just(b'9'), Just(b'-'), Just(0xff), Just(b'"')])
            .prop_map(|(at, value)| Change::Set { at, value }),
        2 => at.clone().prop_map(|at| Change::Cut { at }),
        2 => (at.clone(), 1..40usize).prop_map(|(at, n)| Change::Remove { at, n }),
        2 => (at.clone(), prop::collection::vec(any::<u8>(), 1..12))
            .prop_map(|(at, bytes)| Change::Insert { at, bytes }),
        1 => (at.clone(), at, 1..200usize).prop_map(|(from, to, n)| Change::Copy { from, to, n }),
    ]
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    prop::collection::vec(change(), 1..6)
}

fn apply(bytes: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for change in changes {
        let place = |part: f64| ((bytes.len() as f64 * part) as usize).min(bytes.len());
        match change {
            Change::Flip { at, mask } => {
                let at = place(*at);
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= mask);
            }
            Change::Set { at, value } => {
                let at = place(*at);
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = *value);
            }
            Change::Cut { at } => bytes.truncate(place(*at)),
            Change::Remove { at, n } => {
                let at = place(*at);
                bytes.drain(at..(at + n).min(bytes.len()));
            }
            Change::Insert { at, bytes: new } => {
                let at = place(*at);
                bytes.splice(at..at, new.iter().copied());
            }
            Change::Copy { from, to, n } => {
                let (from, to) = (place(*from), place(*to));
                let piece = bytes[from..(from + n).min(bytes.len())].to_vec();
                bytes.splice(to..to, piece);
            }
        }
    }
    bytes
}

fn model_with(name: &str, bytes: &[u8]) -> (TempDir, ModelDir) {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join(name), bytes).unwrap();
    let model = ModelDir::open(dir.path(), &UnpackOptions::default()).unwrap();
    (dir, model)
}

/// Reads everything that a weight file gives out.
fn read_weights(name: &str, bytes: &[u8]) {
    let (_dir, model) = model_with(name, bytes);
    let Ok(weights) = Weights::open(&model) else { return };
    for tensor_name in weights.names() {
        let tensor = weights.get(tensor_name).unwrap();
        assert!(tensor.dtype().bytes_for(tensor.n_elements()) <= bytes.len());
        if let Ok(values) = tensor.to_f32_vec() {
            assert_eq!(values.len(), tensor.shape().iter().product::<usize>());
        }
    }
    assert!(weights.total_bytes() as usize <= bytes.len() * weights.len().max(1));
}

/// Reads everything that a GGUF model gives out.
fn read_gguf(bytes: &[u8]) {
    read_weights("model.gguf", bytes);
    let (_dir, model) = model_with("model.gguf", bytes);
    if let Ok(config) = ModelConfig::read(&model) {
        let _ = GenerationConfig::read(&model, &config);
    }
    read_tokenizer("model.gguf", bytes);
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn small_safetensors() -> Vec<u8> {
    let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},"c":{"dtype":"I64","shape":[],"data_offsets":[32,40]}}"#;
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[1; 40]].concat()
}

fn small_tar() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in
        [("model/config.json", "{}"), ("model/sub/a.txt", "text"), (&"long/".repeat(40), "x")]
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name.trim_end_matches('/'), content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Opens an archive; whatever comes of it, nothing appears beside the directory for it.
fn open_archive(bytes: &[u8]) {
    let dir = TempDir::new().unwrap();
    let (path, into) = (dir.path().join("model.tar.gz"), dir.path().join("unpacked"));
    fs::write(&path, bytes).unwrap();
    let options = UnpackOptions { into, max_bytes: 1 << 20, ..UnpackOptions::default() };
    if let Ok(model) = ModelDir::open(&path, &options) {
        assert!(model.path().starts_with(&options.into));
        let _ = model.file("config.json");
    }
    let beside = fs::read_dir(dir.path()).unwrap().count();
    assert!(beside <= 2, "something was written outside");
}

fn read_tokenizer(name: &str, bytes: &[u8]) {
    let (_dir, model) = model_with(name, bytes);
    use_tokenizer(&model);
}

fn use_tokenizer(model: &ModelDir) {
    let Ok(tokenizer) = Tokenizer::read(model) else { return };
    let _ = tokenizer.vocab_size();
    if let Ok(encoding) = tokenizer.encode("Hello, wörld 😀 <s>", SpecialTokens::Add) {
        let _ = tokenizer.decode(&encoding.ids, DecodeSpecial::Skip);
        let mut stream = tokenizer.stream();
        encoding.ids.iter().for_each(|id| drop(stream.push(*id)));
        let _ = stream.finish();
    }
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn safetensors(changes in changes()) {
        read_weights("model.safetensors", &apply(&small_safetensors(), &changes));
    }

    #[test]
    fn gguf_numbers(at in 0..2000usize, value in prop_oneof![any::<u64>(), 0..64u64, (0..64u32).prop_map(|n| 1 << n)]) {
        let mut bytes = llama().bytes();
        bytes.iter_mut().skip(at).zip(value.to_le_bytes()).for_each(|(byte, new)| *byte = new);
        read_gguf(&bytes);
    }

    #[test]
    fn json(changes in changes()) {
        let text = fs::read(fixtures::path("bart").join("config.json")).unwrap();
        let (_dir, model) = model_with("config.json", &apply(&text, &changes));
        if let Ok(config) = ModelConfig::read(&model) {
            let _ = GenerationConfig::read(&model, &config);
        }
    }

    #[test]
    fn archives(changes in changes(), packed in any::<bool>()) {
        let bytes = match packed {
            true => apply(&gzip(&small_tar()), &changes),
            false => gzip(&apply(&small_tar(), &changes)),
        };
        open_archive(&bytes);
    }

    #[test]
    fn checkpoints(changes in changes(), file in 0..4usize) {
        let name = ["torch/tensor_fine.bin", "torch/state_dict.bin", "torch/legacy.bin", "torch/zip.bin"][file];
        read_weights("pytorch_model.bin", &apply(&fs::read(data(name)).unwrap(), &changes));
    }
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn gguf(changes in changes(), file in 0..3usize) {
        let bytes = match file {
            0 => llama().bytes(),
            1 => fs::read(fixtures::path("gguf_llama/model-Q4_0.gguf")).unwrap(),
            _ => fs::read(fixtures::path("gguf_llama/model-Q3_K_M.gguf")).unwrap(),
        };
        read_gguf(&apply(&bytes, &changes));
    }

    #[test]
    fn tokenizers(changes in changes(), file in 0..3usize) {
        let name = ["bert", "gpt2", "llama_gqa"][file];
        let text = fs::read(fixtures::path(name).join("tokenizer.json")).unwrap();
        read_tokenizer("tokenizer.json", &apply(&text, &changes));
    }

    #[test]
    fn pieces(changes in changes(), file in 0..4usize, class in 0..5usize) {
        let name = ["fairseq.model", "fairseq_bpe.model", "llama.model", "unigram_bytes.model"][file];
        let class = ["t5", "mbart", "xlm-roberta", "nllb", "mixtral"][class];
        let bytes = fs::read(fixtures::path("tokenizers").join(name)).unwrap();
        let config = format!("{{\"model_type\": \"{class}\"}}");
        let (dir, model) = model_with("tokenizer.model", &apply(&bytes, &changes));
        fs::write(dir.path().join("config.json"), config).unwrap();
        use_tokenizer(&model);
    }

    #[test]
    fn pairs(changes in changes(), file in 0..3usize) {
        let names = ["source.spm", "target.spm", "vocab.json"];
        let (dir, model) = model_with("config.json", b"{\"model_type\": \"marian\"}");
        for (idx, (name, source)) in
            names.iter().zip(["source.spm", "target.spm", "marian_vocab.json"]).enumerate()
        {
            let bytes = fs::read(fixtures::path("tokenizers").join(source)).unwrap();
            let bytes = if idx == file { apply(&bytes, &changes) } else { bytes };
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        use_tokenizer(&model);
    }

    #[test]
    fn merges(changes in changes(), class in 0..3usize) {
        let bytes = fs::read(fixtures::path("tokenizers").join("bytes_merges.txt")).unwrap();
        let (dir, model) = model_with("merges.txt", &apply(&bytes, &changes));
        let vocab = fixtures::path("tokenizers").join("bytes_vocab.json");
        fs::copy(vocab, dir.path().join("vocab.json")).unwrap();
        let class = ["gpt2", "roberta", "qwen3"][class];
        let config = format!("{{\"model_type\": \"{class}\"}}");
        fs::write(dir.path().join("config.json"), config).unwrap();
        use_tokenizer(&model);
    }

    #[test]
    fn vocabularies(changes in changes()) {
        let text = fs::read(data("tokenizers/bert_vocab/vocab.txt")).unwrap();
        read_tokenizer("vocab.txt", &apply(&text, &changes));
    }
}
