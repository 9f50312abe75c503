//! Adapters against PEFT, merged and side by side: see `tests/fixtures/make_adapters.py`.

use std::path::{Path, PathBuf};

use drivetrain_engine::{AdapterId, ErrorKind, HeadKind, ModelKind, SeqId, Wanted};

use crate::support::{
    HIDDEN, LOGITS, Model, Part, Reference, assert_close, ids, try_load_with, workspace,
};

/// Those that replace weights or norm them: these can only be merged.
const MERGED_ONLY: [&str; 6] =
    ["llama_dora", "llama_saved", "llama_score", "gpt2_dora", "bert_score", "qwen2_bias"];
/// Those that change what an engine shares between attentions.
const SHARED: &str = "deberta_hidden";

fn folder(name: &str) -> PathBuf {
    workspace("tests/fixtures/adapters").join(name)
}

/// The adapters' names with what is recorded of them.
fn all() -> Vec<(String, Reference)> {
    let entries = std::fs::read_dir(workspace("tests/fixtures/adapters")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut all: Vec<_> = names.map(|name| (Reference::read(&folder(&name)), name)).collect();
    all.sort_by(|a, b| a.1.cmp(&b.1));
    assert!(all.len() >= 20, "{} adapters", all.len());
    all.into_iter().map(|(reference, name)| (name, reference)).collect()
}

fn base(reference: &Reference) -> PathBuf {
    workspace("tests/fixtures").join(reference.json["base"].as_str().unwrap())
}

fn load(dir: &Path, adapter: Option<&Path>) -> Model {
    let inner = try_load_with(dir, adapter, &[]);
    Model::of(inner.unwrap_or_else(|error| panic!("{}: {error}", dir.display())))
}

/// Holds what the model makes of the recorded inputs, through `adapter`, against what PEFT makes.
fn compare(model: &mut Model, adapter: AdapterId, name: &str, reference: &Reference) {
    for (idx, input) in reference.json["inputs"].as_array().unwrap().iter().enumerate() {
        let (input, what) = (ids(input), format!("{name} {idx}"));
        let expect = reference.array(&format!("rows.{idx}")).unwrap();
        let sequence = model.name();
        model.adapters.insert(sequence, adapter);
        let greedy = reference.json["greedy"].get(idx).map(ids);
        match (model.info.kind, greedy) {
            (ModelKind::Encoder, _) if model.info.head == HeadKind::None => {
                let rows = model.step(sequence, &input, 0, Wanted::Hidden);
                assert_close(&what, &rows.hidden, &expect, HIDDEN);
            }
            (_, None) => {
                let rows = model.step(sequence, &input, 0, Wanted::SequenceLogits);
                assert_close(&what, &rows.logits, &expect, LOGITS);
            }
            (kind, Some(greedy)) => {
                let (start, given) = match kind {
                    ModelKind::Decoder => (&greedy[..input.len()], &input[..]),
                    _ => {
                        model.encode(sequence, &input, Wanted::Nothing);
                        (&greedy[..1], &greedy[..greedy.len() - 1])
                    }
                };
                let rows = model.step(sequence, given, 0, Wanted::AllLogits);
                assert_close(&what, &rows.logits, &expect, LOGITS);
                model.inner.truncate(sequence, 0).unwrap();
                let n = greedy.len() - start.len();
                let found = model.greedy(sequence, start, n, |_| None);
                assert_eq!(found, greedy[start.len()..], "{what}");
            }
        }
        model.inner.release(sequence);
    }
}

#[test]
fn merged_they_equal_peft() {
    for (name, reference) in all() {
        let mut model = load(&base(&reference), Some(&folder(&name)));
        compare(&mut model, AdapterId::NONE, &name, &reference);
    }
}

#[test]
fn beside_the_weights_they_equal_peft() {
    for (name, reference) in all() {
        let mut model = load(&base(&reference), None);
        let loaded = model.inner.load_adapter(AdapterId(7), &folder(&name));
        if MERGED_ONLY.contains(&name.as_str()) || name == SHARED {
            let error = loaded.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}: {error}");
            assert!(error.message().contains("merge it instead"), "{name}: {error}");
            continue;
        }
        loaded.unwrap_or_else(|error| panic!("{name}: {error}"));
        compare(&mut model, AdapterId(7), &name, &reference);
    }
}

/// A prompt's last logits through an adapter, or none.
fn last(model: &mut Model, sequence: SeqId, tokens: &[u32]) -> Vec<f32> {
    let logits = model.step(sequence, tokens, 0, Wanted::LastLogits).logits;
    model.inner.release(sequence);
    logits
}

#[test]
fn one_batch_may_have_several_and_none() {
    let mut model = load(&workspace("tests/fixtures/llama_gqa"), None);
    let names = ["llama_all", "llama_other", "llama_rooted", "llama_tables"];
    let prompt = [9, 77, 301, 5, 5, 140];
    let plain = model.name();
    let without = last(&mut model, plain, &prompt);
    for (idx, name) in names.iter().enumerate() {
        model.inner.load_adapter(AdapterId(1 + idx as u32), &folder(name)).unwrap();
    }
    let sequences: Vec<SeqId> = (0..10).map(|_| model.name()).collect();
    let adapter_of = |idx: usize| AdapterId((idx % 5) as u32);
    for (idx, sequence) in sequences.iter().enumerate() {
        model.adapters.insert(*sequence, adapter_of(idx));
    }
    let part = |sequence: &SeqId| Part {
        sequence: *sequence,
        tokens: &prompt,
        position: 0,
        wanted: Wanted::LastLogits,
    };
    let parts: Vec<Part<'_>> = sequences.iter().map(part).collect();
    let together = model.forward(&parts).logits;
    sequences.iter().for_each(|sequence| model.inner.release(*sequence));
    for (idx, found) in together.chunks_exact(without.len()).enumerate() {
        let alone = model.name();
        model.adapters.insert(alone, adapter_of(idx));
        let expect = last(&mut model, alone, &prompt);
        assert_close(&format!("segment {idx}"), found, &expect, 1e-5);
        let is_plain = found.iter().zip(&without).all(|(a, b)| (a - b).abs() < 1e-5);
        assert_eq!(is_plain, adapter_of(idx) == AdapterId::NONE, "segment {idx}");
    }
}

#[test]
fn an_unloaded_adapter_is_refused_and_leaves_the_model_as_it_was() {
    let mut model = load(&workspace("tests/fixtures/llama_gqa"), None);
    let prompt = [9, 77, 301];
    let plain = model.name();
    let without = last(&mut model, plain, &prompt);
    model.inner.load_adapter(AdapterId(3), &folder("llama_tables")).unwrap();
    model.inner.unload_adapter(AdapterId(3));
    let sequence = model.name();
    let part = Part { sequence, tokens: &prompt, position: 0, wanted: Wanted::LastLogits };
    model.adapters.insert(sequence, AdapterId(3));
    let error = model.try_run(false, &[part], &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput, "{error}");
    model.adapters.clear();
    let again = model.name();
    assert_eq!(last(&mut model, again, &prompt), without);
}

#[test]
fn a_rank_above_the_limit_is_refused() {
    let dir = workspace("tests/fixtures/llama_gqa");
    let mut model = try_load_with(&dir, None, &[("max_lora_rank", "6")]).unwrap();
    let error = model.load_adapter(AdapterId(1), &folder("llama_rooted")).unwrap_err();
    assert!(error.message().contains("rank 7: option.max_lora_rank=6"), "{error}");
    model.load_adapter(AdapterId(2), &folder("llama_all")).unwrap();
}

#[test]
fn broken_adapters_are_refused_with_the_reason() {
    let mut model = load(&workspace("tests/fixtures/llama_gqa"), None);
    let mut refused = |name: &str, change: &dyn Fn(&Path), expect: &str| {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(folder(name)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        change(dir.path());
        let error = model.inner.load_adapter(AdapterId(1), dir.path()).unwrap_err();
        assert!(error.to_string().contains(expect), "{expect}: {error}");
    };
    refused("gpt2_conv", &|_| {}, "has no such matrices");
    refused("phi3_fused", &|_| {}, "has no such matrices");
    refused("gemma3_tables", &|_| {}, "is for a matrix of");
    let file = |name: &'static str| move |dir: &Path| dir.join(name);
    let config = file("adapter_config.json");
    let weights = file("adapter_model.safetensors");
    refused("llama_all", &|dir| std::fs::remove_file(config(dir)).unwrap(), "adapter_config.json");
    refused("llama_all", &|dir| std::fs::remove_file(weights(dir)).unwrap(), "adapter_model");
    refused("llama_all", &|dir| std::fs::write(weights(dir), b"{").unwrap(), "safetensors");
    let ia3 = |dir: &Path| std::fs::write(config(dir), r#"{"peft_type": "IA3"}"#).unwrap();
    refused("llama_all", &ia3, "peft_type = \"IA3\"");
}
