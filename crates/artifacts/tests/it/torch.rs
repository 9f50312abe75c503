//! PyTorch checkpoints that `data/make_torch.py` made, good and hostile.

use std::fs;
use std::path::{Path, PathBuf};

use drivetrain_artifacts::{DType, ModelDir, Tensor, UnpackOptions, Weights};
use serde_json::Value;
use tempfile::TempDir;

use crate::fixtures;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/torch").join(name)
}

/// Opens bytes as a model's `pytorch_model.bin`.
fn open(bytes: &[u8]) -> Result<Weights, String> {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("pytorch_model.bin"), bytes).unwrap();
    let model = ModelDir::open(dir.path(), &UnpackOptions::default()).unwrap();
    Weights::open(&model).map_err(|error| error.to_string())
}

fn open_data(name: &str) -> Result<Weights, String> {
    open(&fs::read(data(name)).unwrap())
}

fn check_tensor(tensor: Tensor<'_>, expect: &Value) {
    let name = tensor.name();
    let shape: Vec<u64> = tensor.shape().iter().map(|&n| n as u64).collect();
    assert_eq!(serde_json::to_value(shape).unwrap(), expect["shape"], "{name}");
    let values: Vec<f32> = expect["values"]
        .as_array()
        .unwrap()
        .iter()
        .map(|value| value.as_f64().unwrap() as f32)
        .collect();
    assert_eq!(tensor.to_f32_vec().unwrap(), values, "{name}");
    assert_eq!(Value::Bool(tensor.is_contiguous()), expect["contiguous"], "{name}");
    if tensor.is_contiguous() {
        assert_eq!(tensor.bytes().len(), tensor.n_elements() * tensor.dtype().size(), "{name}");
    }
}

#[test]
fn every_tensor_equals_what_torch_saved() {
    let expect: Value = serde_json::from_slice(&fs::read(data("expect.json")).unwrap()).unwrap();
    for (file, n_tensors) in [("zip.bin", 22), ("protocol4.bin", 19), ("legacy.bin", 19)] {
        let weights = open_data(file).unwrap();
        assert_eq!(weights.len(), n_tensors, "{file}");
        for name in weights.names() {
            check_tensor(weights.get(name).unwrap(), &expect[name]);
        }
        assert_eq!(weights.get("bf16").unwrap().dtype(), DType::BF16);
        // Two names of one storage count once, a part of it counts for itself.
        let (a, b) = (weights.get("tied_a").unwrap(), weights.get("tied_b").unwrap());
        assert_eq!(a.bytes().as_ptr(), b.bytes().as_ptr());
        let all: u64 = weights.names().map(|n| weights.get(n).unwrap().n_elements() as u64).sum();
        assert!(weights.n_parameters() <= all - 12);
    }
}

#[test]
fn dictionaries_are_found_where_training_puts_them() {
    assert_eq!(
        open_data("state_dict.bin").unwrap().names().collect::<Vec<_>>(),
        ["bias", "weight"]
    );
    assert_eq!(open_data("wrapped.bin").unwrap().names().collect::<Vec<_>>(), ["w"]);
}

#[test]
fn the_opt_fixture_opens() {
    let weights = Weights::open(&fixtures::open("opt")).unwrap();
    let embedding = weights.get("model.decoder.embed_tokens.weight").unwrap();
    assert_eq!(embedding.dtype(), DType::F32);
    assert!(embedding.file().ends_with("pytorch_model.bin"));
    assert!(embedding.to_f32_vec().unwrap().iter().all(|value| value.abs() < 10.0));
}

#[test]
fn whatever_is_no_tensor_is_refused_by_name() {
    let check = |file: &str, name: &str| {
        let message = open_data(file).unwrap_err();
        let expect = format!(
            "pytorch_model.bin: refuses {name}: only tensors are read and nothing is executed; \
             convert the file to safetensors"
        );
        assert!(message.ends_with(&expect), "{file}: {message}");
    };
    check("hostile_system.bin", "posix.system");
    check("hostile_system4.bin", "posix.system");
    check("hostile_bare.bin", "posix.system");
    check("hostile_inst.bin", "os.system");
    check("hostile_eval.bin", "builtins.eval");
    check("hostile_newobj.bin", "the pickle opcode NEWOBJ");
    check("hostile_whole_model.bin", "torch.nn.modules.linear.Linear");
    check("tensor_odd_storage.bin", "torch.QInt8Storage");
    assert!(!Path::new("/tmp/drivetrain-pickle-ran").exists());
}

#[test]
fn impossible_tensors_are_refused_by_name() {
    let check = |file: &str, expect: &str| {
        let message = open_data(file).map(|_| ()).unwrap_err();
        assert!(message.contains("tensor \"w\"") && message.contains(expect), "{file}: {message}");
    };
    assert_eq!(open_data("tensor_fine.bin").unwrap().n_parameters(), 16);
    check("tensor_short_storage.bin", "takes 128 bytes, the file holds 64");
    check("tensor_out_of_range.bin", "does not fit");
    check("tensor_bad_offset.bin", "does not fit");
    check("tensor_negative_stride.bin", "does not fit");
    check("tensor_negative_shape.bin", "does not fit");
    check("tensor_overflow.bin", "does not fit");
    check("tensor_expanded.bin", "repeats its data");
    check("tensor_huge_stride.bin", "does not fit");
    check("tensor_huge_numel.bin", "elements");
    check("tensor_no_data.bin", "\"archive/data/7\" is not in the file");
    check("tensor_path_key.bin", "is not in the file");
}

#[test]
fn pickle_bombs_are_cheap_errors() {
    let check = |program: &[u8], expect: &str| {
        let message = open(program).unwrap_err();
        assert!(message.contains(expect), "{message}");
    };
    // Nested tuples, one a byte; a chain that long would overflow a recursive drop.
    check(&[b")".as_slice(), &vec![0x85; 1000 << 10]].concat(), "wanted");
    check(&vec![b'('; 1200 << 10], "marks");
    check(&[b"N".as_slice(), &vec![b'2'; 1200 << 10]].concat(), "stack");
    check(&vec![b']'; 1200 << 10], "");
    check(&[b"N".as_slice(), &vec![0x94; 1200 << 10]].concat(), "values");
    // A number, a string and bytes that claim more than the file holds.
    check(b"\x80\x02\x8b\xff\xff\xff\x7f", "bytes are wanted");
    check(b"\x80\x02X\xff\xff\xff\xff", "bytes are wanted");
    check(b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff", "bytes are wanted");
    check(b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", "bytes are wanted");
    check(&[b"c".as_slice(), &vec![b'x'; 10_000]].concat(), "a line has no end");
    check(b"", "bytes are wanted");
    check(b"}(K\x01u.", "without a value");
    check(b"h\x05.", "memo that was not written");
    check(b"\x80\x09N.", "protocol 9");
    check(b"just text", "");
}

#[test]
fn truncated_checkpoints_are_errors() {
    for file in ["zip.bin", "legacy.bin"] {
        let bytes = fs::read(data(file)).unwrap();
        for n in [0, 1, 10, 100, bytes.len() / 2, bytes.len() - 1] {
            assert!(open(&bytes[..n]).is_err(), "{file} cut to {n}");
        }
    }
}
