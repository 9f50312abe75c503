//! What is this engine's own: forms of weights and of caches, blocks of a file as they lie, same bits.

use std::num::NonZeroUsize;
use std::path::Path;

use drivetrain_engine::{Engine, ErrorKind, LoadRequest, LoadedModel, Options, Services, Wanted};

use crate::ENGINE;
use crate::measures::{distance, rows, tokens};
use crate::support::{Model, Part, assert_close, try_load, workspace};

const DECODERS: [&str; 6] = ["gpt2", "llama_gqa", "gemma3", "qwen3", "bloom", "mixtral"];
const OTHERS: [&str; 4] = ["bart", "t5", "bert", "deberta_v2"];

fn fixture(name: &str) -> std::path::PathBuf {
    workspace("tests/fixtures").join(name)
}

fn load_on(dir: &Path, options: &[(&str, &str)], n_threads: usize) -> Model {
    let request = LoadRequest {
        model_name: "test",
        model_dir: dir,
        adapter_dir: None,
        options: Options::new(options),
        n_threads: NonZeroUsize::new(n_threads).unwrap(),
        services: Services::silent(),
    };
    match ENGINE.load(&request).unwrap() {
        LoadedModel::Token(model) => Model::of(model),
        LoadedModel::Request(_) => panic!("a request model"),
    }
}

/// How far each form may be from f32, as a part of the values' size: a mantissa of 11 or 8 bits, or 127
/// steps, at each matrix.
const FORMS: [(&str, &str, f32); 7] = [
    ("dtype", "fp16", 2e-3),
    ("dtype", "bf16", 2e-2),
    ("quantize", "int8", 1e-1),
    ("quantize", "int8-weight-only", 1e-1),
    ("kv_cache_dtype", "fp16", 2e-3),
    ("kv_cache_dtype", "bf16", 1e-2),
    ("kv_cache_dtype", "int8", 3e-2),
];

/// Blocks that are made at load, for models whose matrices they divide. The fixtures' weights are random,
/// which 15 steps of 4 bits show more than trained ones: for those, there is a real model's perplexity.
const ENCODED: [(&str, f32); 2] = [("q8", 6e-2), ("q4", 6e-1)];
const DIVIDED: [&str; 5] = ["gpt2", "llama_gqa", "bloom", "bart", "t5"];

#[test]
fn matrices_are_encoded_to_blocks() {
    let prompt = tokens(40, 6);
    for name in DIVIDED {
        let mut exact = load_on(&fixture(name), &[("dtype", "fp32")], 2);
        let expect = rows(&mut exact, &prompt);
        for (form, most) in ENCODED {
            let mut model = load_on(&fixture(name), &[("quantize", form)], 2);
            let apart = distance(&rows(&mut model, &prompt), &expect);
            assert!(apart > 1e-4 && apart <= most, "{name} {form}: {apart}");
            let (held, whole) = (model.info.weight_bytes, exact.info.weight_bytes);
            assert!(held * 2 < whole, "{name} {form}: {held} of {whole} bytes");
        }
    }
    let Err(error) = try_load(&fixture("gemma3"), &[("quantize", "q4")]) else {
        panic!("48 columns are not whole blocks of 32");
    };
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let message = "option.quantize: decoder.layers.0.feed_forward.down.weight has 48 columns, which \
                   blocks of 32 don't divide; use int8 or int8-weight-only, which take any number";
    assert_eq!(error.message(), message);
}

#[test]
fn other_forms_are_near_f32() {
    let prompt = tokens(40, 3);
    for name in DECODERS.iter().chain(&OTHERS) {
        let expect = rows(&mut load_on(&fixture(name), &[("dtype", "fp32")], 2), &prompt);
        for (key, value, most) in FORMS {
            // An expert that is picked by a narrow margin is another one in another form.
            let is_near = value == "fp16" || (key, value) == ("kv_cache_dtype", "bf16");
            if *name == "mixtral" && !is_near {
                continue;
            }
            let found = rows(&mut load_on(&fixture(name), &[(key, value)], 2), &prompt);
            let apart = distance(&found, &expect);
            assert!(apart <= most, "{name} {key}={value}: {apart}");
        }
    }
}

#[test]
fn forms_that_are_not_asked_for_lose_nothing() {
    let prompt = tokens(40, 4);
    for name in DECODERS.iter().chain(&OTHERS) {
        let expect = rows(&mut load_on(&fixture(name), &[("dtype", "fp32")], 2), &prompt);
        let found = rows(&mut load_on(&fixture(name), &[], 2), &prompt);
        assert_close(name, &found, &expect, 0.0);
    }
}

#[test]
fn blocks_of_a_file_are_multiplied_where_they_lie() {
    let dir = workspace("tests/fixtures/gguf_llama");
    for kind in ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_M", "Q5_K_M", "Q6_K"] {
        let file = dir.join(format!("model-{kind}.gguf"));
        let mut exact = load_on(&file, &[("dtype", "fp32")], 2);
        let mut model = load_on(&file, &[], 2);
        // What isn't in blocks is the output's matrix at most.
        let (held, whole) = (model.info.weight_bytes, exact.info.weight_bytes);
        assert!(held * 2 < whole, "{kind}: {held} of {whole} bytes");
        for salt in 0..3 {
            let prompt = tokens(60, salt);
            let (found, expect) = (rows(&mut model, &prompt), rows(&mut exact, &prompt));
            let apart = distance(&found, &expect);
            assert!(apart < 6e-2, "{kind}: {apart}");
        }
    }
}

#[test]
fn packed_matrices_are_held_in_their_bits() {
    for (name, is_held) in [
        ("gptq_llama", true),
        ("gptq_llama_sym", true),
        ("gptq_gpt2", true),
        ("gptq_opt", true),
        ("gptq_bloom", true),
        ("awq_llama", true),
        ("gptq_llama_act_order", false),
    ] {
        let dir = fixture("packed").join(name);
        let mut exact = load_on(&dir, &[("dtype", "fp32")], 2);
        let mut model = load_on(&dir, &[], 2);
        let (held, whole) = (model.info.weight_bytes, exact.info.weight_bytes);
        assert_eq!(held * 2 < whole, is_held, "{name}: {held} of {whole} bytes");
        for salt in 0..3 {
            let prompt: Vec<u32> = tokens(30, salt).iter().map(|token| token % 60 + 3).collect();
            let (found, expect) = (rows(&mut model, &prompt), rows(&mut exact, &prompt));
            let (apart, most) = (distance(&found, &expect), if is_held { 6e-2 } else { 1e-5 });
            assert!(apart < most, "{name}: {apart}");
        }
    }
}

#[test]
fn bits_are_the_same_on_any_number_of_threads() {
    let prompt = tokens(70, 5);
    for name in DECODERS.iter().chain(&OTHERS) {
        let mut forms = vec![("dtype", "fp32"), ("quantize", "int8")];
        if DIVIDED.contains(name) {
            forms.push(("quantize", "q4"));
        }
        for form in forms {
            let expect = rows(&mut load_on(&fixture(name), &[form], 1), &prompt);
            for n_threads in [2, 3] {
                let mut model = load_on(&fixture(name), &[form], n_threads);
                assert!(
                    rows(&mut model, &prompt) == expect,
                    "{name} {form:?}, {n_threads} threads"
                );
            }
        }
    }
}

#[test]
fn bits_are_the_same_in_any_batch_and_any_chunks() {
    for name in DECODERS {
        let forms = ["fp16", "int8"].map(|form| ("kv_cache_dtype", form));
        for form in [("dtype", "fp32"), ("quantize", "int8")].into_iter().chain(forms) {
            let mut model = load_on(&fixture(name), &[form, ("deterministic", "true")], 2);
            let prompts = [tokens(3, 1), tokens(70, 2), tokens(1, 3), tokens(20, 4)];
            let expect: Vec<Vec<f32>> =
                prompts.iter().map(|prompt| rows(&mut model, prompt)).collect();
            let sequences = prompts.each_ref().map(|_| model.name());
            let parts: Vec<Part<'_>> = prompts
                .iter()
                .zip(sequences)
                .map(|(tokens, sequence)| Part {
                    sequence,
                    tokens,
                    position: 0,
                    wanted: Wanted::AllLogits,
                })
                .collect();
            let together = model.forward(&parts).logits;
            assert!(together == expect.concat(), "{name} {form:?} in a batch");
            for chunk in [1, 7, 64] {
                let (sequence, mut found) = (model.name(), Vec::new());
                for (idx, part) in prompts[1].chunks(chunk).enumerate() {
                    found.extend(model.step(sequence, part, idx * chunk, Wanted::AllLogits).logits);
                }
                assert!(found == expect[1], "{name} {form:?} in chunks of {chunk}");
            }
        }
    }
}

#[test]
fn forms_that_are_not_known_are_refused_by_name() {
    for (key, value) in [("dtype", "fp8"), ("quantize", "nf5"), ("kv_cache_dtype", "int4")] {
        let Err(error) = try_load(&fixture("gpt2"), &[(key, value)]) else { panic!("{value}") };
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let begins = format!("option.{key}={value}: the fastertransformer engine ");
        assert!(error.message().starts_with(&begins), "{error}");
    }
}
