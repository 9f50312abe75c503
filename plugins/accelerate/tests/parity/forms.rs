//! The forms that matrices are held in: those of the file, and those that are made on loading.

use std::path::{Path, PathBuf};

use drivetrain_engine::{ErrorKind, ModelKind};
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;
use tempfile::TempDir;

use crate::maps::map_of;
use crate::measures::{distance, rows, step, tokens};
use crate::support::{HIDDEN, LOGITS, Model, assert_close, try_load, workspace};

const ALL: [&str; 10] = [
    "gpt2",
    "llama_gqa",
    "gemma3",
    "qwen3",
    "bloom",
    "mixtral",
    "bart",
    "t5",
    "bert",
    "deberta_v2",
];

/// Those whose layers have no columns that blocks of 32 don't divide.
const DIVIDED: [&str; 5] = ["gpt2", "llama_gqa", "bloom", "bart", "t5"];

fn fixture(name: &str) -> PathBuf {
    workspace("tests/fixtures").join(name)
}

fn load(dir: &Path, options: &[(&str, &str)]) -> Model {
    Model::of(try_load(dir, options).unwrap_or_else(|error| panic!("{}: {error}", dir.display())))
}

/// What a prompt gives and, but for an encoder, one token more.
fn rows_and_next(model: &mut Model, prompt: &[u32]) -> Vec<f32> {
    let mut found = rows(model, prompt);
    if model.info.kind != ModelKind::Encoder {
        let sequence = model.begin(prompt);
        step(model, sequence, prompt, 0);
        found.extend(step(model, sequence, &[9], prompt.len()));
        model.inner.release(sequence);
    }
    found
}

/// A copy of a fixture whose numbers are of 16 bits.
fn in_sixteen_bits(name: &str, dtype: Dtype) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        let to = dir.path().join(path.file_name().unwrap());
        if path.extension().is_some_and(|e| e == "safetensors")
            && !path.ends_with("reference.safetensors")
        {
            let bytes = std::fs::read(&path).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let narrow = |bytes: &[u8]| -> Vec<u8> {
                let values = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
                match dtype {
                    Dtype::F16 => values.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
                    _ => values.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
                }
            };
            let narrowed: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
                .tensors()
                .into_iter()
                .map(|(name, view)| (name, view.shape().to_vec(), narrow(view.data())))
                .collect();
            let views = narrowed.iter().map(|(name, shape, bytes)| {
                (name.clone(), TensorView::new(dtype, shape.clone(), bytes).unwrap())
            });
            safetensors::serialize_to_file(views, None, &to).unwrap();
        } else if path.is_file() {
            std::fs::copy(&path, &to).unwrap();
        }
    }
    dir
}

/// A map that leaves every other layer on the disk.
fn half_on_disk(dir: &Path) -> String {
    let odd = |number: usize| (number % 2 == 1).then(|| json!("disk"));
    map_of(dir, &json!("cpu"), &[("head", json!("disk"))], odd)
}

#[test]
fn sixteen_bits_of_a_file_lose_nothing() {
    let (short, long) = (tokens(3, 1), tokens(40, 2));
    for name in ALL {
        for dtype in [Dtype::F16, Dtype::BF16] {
            let dir = in_sixteen_bits(name, dtype);
            let mut exact = load(dir.path(), &[("dtype", "fp32")]);
            let map = half_on_disk(dir.path());
            for options in [vec![], vec![("device_map", map.as_str())]] {
                let mut model = load(dir.path(), &options);
                let most = if model.info.kind == ModelKind::Encoder { HIDDEN } else { LOGITS };
                for prompt in [&short, &long] {
                    let (found, expect) =
                        (rows_and_next(&mut model, prompt), rows_and_next(&mut exact, prompt));
                    assert_close(&format!("{name} {dtype:?}"), &found, &expect, most);
                }
                let (held, whole) = (model.info.weight_bytes, exact.info.weight_bytes);
                assert!(held * 10 < whole * 8, "{name}: {held} of {whole} bytes");
            }
        }
    }
}

#[test]
fn sixteen_bits_that_are_asked_for_are_near() {
    let prompt = tokens(40, 3);
    for name in ALL {
        let expect = rows_and_next(&mut load(&fixture(name), &[("dtype", "fp32")]), &prompt);
        for (form, most) in [("fp16", 4e-3), ("bf16", 2e-2)] {
            // An expert that is picked by a narrow margin is another one in another form.
            if name == "mixtral" && form == "bf16" {
                continue;
            }
            let mut model = load(&fixture(name), &[("dtype", form)]);
            let apart = distance(&rows_and_next(&mut model, &prompt), &expect);
            assert!(apart > 1e-6 && apart <= most, "{name} {form}: {apart}");
        }
    }
}

#[test]
fn layers_are_quantised_on_loading() {
    let prompt = tokens(40, 6);
    for name in DIVIDED {
        let mut exact = load(&fixture(name), &[("dtype", "fp32")]);
        let expect = rows_and_next(&mut exact, &prompt);
        let mut sizes = Vec::new();
        // The weights are random, which 15 steps of 4 bits show more than trained ones.
        for (key, value, most) in
            [("load_in_8bit", "true", 6e-2), ("quantize", "bitsandbytes4", 6e-1)]
        {
            let mut model = load(&fixture(name), &[(key, value)]);
            let apart = distance(&rows_and_next(&mut model, &prompt), &expect);
            assert!(apart > 1e-4 && apart <= most, "{name} {key}={value}: {apart}");
            sizes.push(model.info.weight_bytes);
        }
        assert!(sizes[1] < sizes[0] && sizes[0] < exact.info.weight_bytes, "{name}: {sizes:?}");
    }
}

#[test]
fn blocks_of_a_file_stay_blocks() {
    let dir = workspace("tests/fixtures/gguf_llama");
    for kind in ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_M", "Q5_K_M", "Q6_K"] {
        let file = dir.join(format!("model-{kind}.gguf"));
        let mut exact = load(&file, &[("dtype", "fp32")]);
        let map = half_on_disk(&file);
        for options in [vec![], vec![("device_map", map.as_str())]] {
            let mut model = load(&file, &options);
            let (held, whole) = (model.info.weight_bytes, exact.info.weight_bytes);
            assert!(held * 2 < whole, "{kind}: {held} of {whole} bytes");
            for salt in 0..3 {
                let prompt = tokens(60, salt);
                let (found, expect) =
                    (rows_and_next(&mut model, &prompt), rows_and_next(&mut exact, &prompt));
                let apart = distance(&found, &expect);
                assert!(apart < 6e-2, "{kind}: {apart}");
            }
        }
    }
}

#[test]
fn forms_that_are_not_known_are_refused_by_name() {
    for (key, value) in [("dtype", "fp8"), ("quantize", "nf5")] {
        let Err(error) = try_load(&fixture("gpt2"), &[(key, value)]) else { panic!("{value}") };
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let begins = format!("option.{key}={value}: the accelerate engine knows ");
        assert!(error.message().starts_with(&begins), "{error}");
    }
}
