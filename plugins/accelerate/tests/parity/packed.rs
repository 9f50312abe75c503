//! Checkpoints that GPTQ and AWQ packed: see `tests/fixtures/make_packed.py`.

use std::path::PathBuf;

use drivetrain_engine::{ErrorKind, Wanted};
use serde_json::{Value, json};

use crate::support::{Model, assert_close, ids, try_load, workspace};
use crate::variants::check;

macro_rules! packed {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                check("packed", stringify!($name));
            }
        )*

        #[test]
        fn every_packed_folder_is_tested() {
            let names = [$(stringify!($name)),*];
            for entry in std::fs::read_dir(workspace("tests/fixtures/packed")).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!(names.contains(&name.as_str()), "{name} is not tested");
            }
        }
    };
}

packed! {
    gptq_llama,
    gptq_llama_sym,
    gptq_llama_act_order,
    gptq_gpt2,
    gptq_neox,
    gptq_bloom,
    gptq_opt,
    awq_llama,
    awq_qwen2,
}

fn fixture(name: &str) -> PathBuf {
    workspace("tests/fixtures/packed").join(name)
}

/// A copy of a fixture whose `quantization_config` has other values.
fn changed(name: &str, changes: &Value) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let from = fixture(name);
    let text = std::fs::read(from.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config["quantization_config"][key] = value.clone();
    }
    std::fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(from.join("model.safetensors"), copy.path().join("model.safetensors")).unwrap();
    copy
}

#[test]
fn what_cannot_be_unpacked_is_refused_by_name() {
    for (name, changes, expect) in [
        ("gptq_llama", json!({"bits": 3}), "quantization_config.bits = 3: expected 4 or 8"),
        (
            "gptq_llama",
            json!({"quant_method": "quip"}),
            "quantization_config.quant_method = \"quip\": expected \"gptq\" or \"awq\"",
        ),
        (
            "gptq_llama",
            json!({"group_size": 48}),
            "quantization_config.group_size = 48: expected -1, 32, 64 or 128",
        ),
        (
            "gptq_llama",
            json!({"checkpoint_format": "marlin"}),
            "quantization_config.checkpoint_format = \"marlin\": expected \"gptq\" or \"gptq_v2\"",
        ),
        ("awq_llama", json!({"version": "gemv"}), "version = \"gemv\": expected \"gemm\""),
        ("awq_llama", json!({"bits": 8}), "quantization_config.bits = 8: expected 4"),
        ("awq_llama", json!({"group_size": 64}), ".scales\": its shape is [3, "),
        ("gptq_llama", json!({"bits": 8}), ".scales\": its shape is [3, "),
    ] {
        let dir = changed(name, &changes);
        let Err(error) = try_load(dir.path(), &[]) else { panic!("{name} {changes} is loaded") };
        assert!(error.message().contains(expect), "{name} {changes}: {error}");
    }
}

#[test]
fn quantize_may_say_what_the_files_are() {
    for (name, method, other) in [("gptq_llama", "gptq", "awq"), ("awq_llama", "AWQ", "gptq")] {
        try_load(&fixture(name), &[("quantize", method)]).map(drop).unwrap();
        let Err(error) = try_load(&fixture(name), &[("quantize", other)]) else {
            panic!("{name} is no {other}")
        };
        assert_eq!(error.kind(), ErrorKind::BadInput);
        let expect = format!("option.quantize={other}: the model is not packed so");
        assert!(error.message().starts_with(&expect), "{error}");
    }
    let plain = workspace("tests/fixtures/gpt2");
    let Err(error) = try_load(&plain, &[("quantize", "gptq")]) else { panic!("it is not packed") };
    assert!(error.message().contains("it has no quantization_config"), "{error}");
}

/// As the files have it, and nothing else asked for: activations may be rounded, weights are not.
#[test]
fn packed_models_answer_near_the_exact_ones() {
    for name in ["gptq_llama", "gptq_llama_sym", "gptq_gpt2", "gptq_bloom", "awq_llama"] {
        let dir = fixture(name);
        let text = std::fs::read(dir.join("reference.json")).unwrap();
        let reference: Value = serde_json::from_slice(&text).unwrap();
        let prompt = ids(&reference["prompts"][0]["ids"]);
        let logits = |options: &[(&str, &str)]| {
            let mut model = Model::of(try_load(&dir, options).unwrap());
            let sequence = model.begin(&prompt);
            model.step(sequence, &prompt, 0, Wanted::AllLogits).logits
        };
        let (found, expect) = (logits(&[]), logits(&[("dtype", "fp32")]));
        let largest = expect.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        assert_close(name, &found, &expect, 6e-2 * largest);
    }
}
