//! Matrices that GPTQ and AWQ packed, against what `tests/fixtures/make_packed.py` unpacks.

use std::fs;
use std::path::Path;

use drivetrain_artifacts::{DType, ModelDir, QuantizationMethod, UnpackOptions, Weights};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::fixtures;

const ALL: [&str; 9] = [
    "gptq_llama",
    "gptq_llama_sym",
    "gptq_llama_act_order",
    "gptq_gpt2",
    "gptq_neox",
    "gptq_bloom",
    "gptq_opt",
    "awq_llama",
    "awq_qwen2",
];

fn open(dir: &Path) -> Result<Weights, String> {
    let dir = ModelDir::open(dir, &UnpackOptions::default()).unwrap();
    Weights::open(&dir).map_err(|error| error.to_string())
}

fn fixture(name: &str) -> std::path::PathBuf {
    fixtures::path("packed").join(name)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
}

/// To the last bit, whichever way a matrix is read.
#[test]
fn packed_matrices_are_unpacked_exactly() {
    for name in ALL {
        let weights = open(&fixture(name)).unwrap();
        let reference = fs::read(fixture(name).join("reference.safetensors")).unwrap();
        let reference = SafeTensors::deserialize(&reference).unwrap();
        let unpacked = reference.names().into_iter().find(|n| n.starts_with("weight.")).unwrap();
        let expect = reference.tensor(unpacked).unwrap();
        let module = unpacked.strip_prefix("weight.").unwrap();
        let tensor = weights.get(&format!("{module}.weight")).unwrap();
        assert_eq!(tensor.shape(), expect.shape(), "{name}");
        let expect = floats(expect.data());
        assert!(tensor.to_f32_vec().unwrap() == expect, "{name}");
        let (n_out, n_in) = (tensor.shape()[0], tensor.shape()[1]);
        let mut part = vec![0.0; n_in + 7];
        tensor.read_f32_at(n_in - 5, &mut part).unwrap();
        assert!(part == expect[n_in - 5..2 * n_in + 2], "{name}");
        let mut stored = vec![0.0; tensor.n_elements()];
        let turned: Vec<f32> = (0..n_in)
            .flat_map(|i| (0..n_out).map(move |o| (o, i)))
            .map(|(o, i)| expect[o * n_in + i])
            .collect();
        tensor.read_stored_f32(0, &mut stored).unwrap();
        assert!(stored == turned, "{name}");
        let mut scratch = Vec::new();
        tensor.fetch_stored_f32(n_out, &mut scratch, &mut stored[n_out..]).unwrap();
        assert!(stored == turned, "{name}");
        let mut copy = Vec::new();
        tensor.fetch(&mut copy).unwrap();
        assert!(tensor.over(&copy).unwrap().to_f32_vec().unwrap() == expect, "{name}");
        assert!(tensor.over(&copy[1..]).is_err(), "{name}");
        let groups = tensor.groups().unwrap();
        let (row, column) = (n_out - 1, n_in - 1);
        let steps = i32::from(groups.number(row, column)) - i32::from(groups.zero(row, column));
        assert_eq!(steps as f32 * groups.scale(row, column), expect[n_out * n_in - 1], "{name}");
        assert_eq!(groups.group_len().is_none(), name == "gptq_llama_act_order", "{name}");
        assert!(groups.has_f16_scales(), "{name}");
        tensor.release_pages();
        assert!(tensor.hold().tensor().to_f32_vec().unwrap() == expect, "{name}");
    }
}

#[test]
fn packed_files_say_what_they_are() {
    let weights = open(&fixture("awq_qwen2")).unwrap();
    let config = weights.quantization().unwrap();
    assert_eq!((config.method, config.bits), (QuantizationMethod::Awq, 4));
    assert_eq!(config.group_size, Some(64));
    let dtype = |name: &str| weights.get(name).unwrap().dtype();
    assert_eq!(dtype("model.layers.0.self_attn.q_proj.weight"), DType::Int4Groups);
    assert_eq!(dtype("model.layers.0.mlp.down_proj.weight"), DType::F16, "it is not converted");
    assert_eq!(dtype("lm_head.weight"), DType::F16);
    let parts = [".qweight", ".qzeros", ".scales", ".g_idx"];
    assert!(weights.names().all(|name| parts.iter().all(|part| !name.ends_with(part))));
    let weights = open(&fixture("gptq_neox")).unwrap();
    let tensor = weights.get("gpt_neox.layers.0.attention.query_key_value.weight").unwrap();
    assert_eq!((tensor.dtype(), tensor.shape()), (DType::Int8Groups, &[192, 64][..]));
    assert_eq!(tensor.groups().unwrap().bits(), 8);
    assert!(open(&fixtures::path("gpt2")).unwrap().quantization().is_none());
}

/// Opens a copy of `gptq_llama` with other tensors and another `quantization_config`.
fn refused(
    edit: impl Fn(&mut Vec<(String, Dtype, Vec<usize>, Vec<u8>)>),
    config: &Value,
) -> String {
    let from = fixture("gptq_llama");
    let bytes = fs::read(from.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    edit(&mut tensors);
    let copy = tempfile::tempdir().unwrap();
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let file = safetensors::serialize(views, None).unwrap();
    fs::write(copy.path().join("model.safetensors"), file).unwrap();
    let text = fs::read(from.join("config.json")).unwrap();
    let mut json: Value = serde_json::from_slice(&text).unwrap();
    for (key, value) in config.as_object().unwrap() {
        json["quantization_config"][key] = value.clone();
    }
    fs::write(copy.path().join("config.json"), json.to_string()).unwrap();
    open(copy.path()).map(drop).unwrap_err()
}

const Q: &str = "model.layers.0.self_attn.q_proj";

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    let says = |error: String, expect: &str| assert!(error.contains(expect), "{error}");
    let same = json!({});
    let part = |part: &'static str| move |name: &str| name == format!("{Q}.{part}");
    for missing in ["scales", "qzeros"] {
        let is_it = part(missing);
        let error = refused(|all| all.retain(|(name, ..)| !is_it(name)), &same);
        says(
            error,
            &format!("tensor \"{Q}.{missing}\": is missing: gptq has it beside {Q}.qweight"),
        );
    }
    let is_it = part("g_idx");
    let error = refused(
        |all| {
            let order = all.iter_mut().find(|(name, ..)| is_it(name)).unwrap();
            order.3[..4].copy_from_slice(&2_u32.to_le_bytes());
        },
        &same,
    );
    says(error, &format!("tensor \"{Q}.g_idx\": names group 2, there are 2"));
    let is_it = part("qzeros");
    let error =
        refused(|all| all.iter_mut().find(|(name, ..)| is_it(name)).unwrap().1 = Dtype::F32, &same);
    says(error, &format!("tensor \"{Q}.qzeros\": is of F32, expected I32 or U32"));
    let is_it = part("scales");
    let error = refused(
        |all| {
            let scales = all.iter_mut().find(|(name, ..)| is_it(name)).unwrap();
            scales.2.reverse();
        },
        &same,
    );
    says(error, &format!("tensor \"{Q}.scales\": its shape is [64, 2], expected [2, 64]"));
    let error =
        refused(|all| all.push((format!("{Q}.weight"), Dtype::F16, vec![2], vec![0; 4])), &same);
    says(error, &format!("tensor \"{Q}.weight\": is there beside {Q}.qweight"));
    let error = refused(|all| all.retain(|(name, ..)| !name.ends_with(".qweight")), &same);
    says(error, "has no tensor m.qweight, though quantization_config says gptq");
}

#[test]
fn settings_that_cannot_be_read_are_refused_by_key() {
    for (key, value, expect) in [
        ("bits", json!(2), "bits = 2: expected 4 or 8"),
        ("bits", json!("4"), "bits = \"4\": expected a whole number"),
        ("group_size", json!(0), "group_size = 0: expected -1, 32, 64 or 128"),
        ("desc_act", json!(1), "desc_act = 1: expected true or false"),
        ("dynamic", json!({"-:.*": {}}), "dynamic = "),
        ("quant_method", Value::Null, "quant_method is missing: expected \"gptq\" or \"awq\""),
    ] {
        let error = refused(|_| {}, &json!({ key: value }));
        let expect = format!("config.json: quantization_config.{expect}");
        assert!(error.contains(&expect), "{error}");
    }
}
