//! Canonical weights of files that are made here.

use std::path::Path;

use drivetrain_artifacts::{JsonFile, ModelConfig, ModelDir, UnpackOptions};
use serde_json::{Map, Value, json};

use super::*;

/// A safetensors file of f32 tensors, each filled with `start, start + 1, ...`.
fn write_safetensors(path: &Path, tensors: &[(String, Vec<usize>, f32)]) {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, shape, start) in tensors {
        let n: usize = shape.iter().product();
        let begin = data.len();
        for i in 0..n {
            data.extend((start + i as f32).to_le_bytes());
        }
        header.insert(
            name.clone(),
            json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]}),
        );
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    std::fs::write(path, file).unwrap();
}

const DIM: usize = 2;

fn gpt2() -> Architecture {
    let json = json!({"model_type": "gpt2", "n_embd": DIM, "n_head": 1, "n_layer": 1,
        "n_positions": 4, "vocab_size": 5, "n_inner": 3, "architectures": ["GPT2LMHeadModel"]});
    let config = ModelConfig::from_json(JsonFile::from_value("config.json", json)).unwrap();
    Architecture::from_config(&config).unwrap()
}

/// The tensors of [`gpt2`] with GPT-2's names and layouts.
fn gpt2_tensors() -> Vec<(String, Vec<usize>, f32)> {
    [
        ("wte.weight", vec![5, DIM], 0.0),
        ("wpe.weight", vec![4, DIM], 100.0),
        ("h.0.ln_1.weight", vec![DIM], 0.0),
        ("h.0.ln_1.bias", vec![DIM], 0.0),
        ("h.0.attn.c_attn.weight", vec![DIM, 3 * DIM], 0.0),
        ("h.0.attn.c_attn.bias", vec![3 * DIM], 0.0),
        ("h.0.attn.c_proj.weight", vec![DIM, DIM], 0.0),
        ("h.0.attn.c_proj.bias", vec![DIM], 0.0),
        ("h.0.ln_2.weight", vec![DIM], 0.0),
        ("h.0.ln_2.bias", vec![DIM], 0.0),
        ("h.0.mlp.c_fc.weight", vec![DIM, 3], 0.0),
        ("h.0.mlp.c_fc.bias", vec![3], 0.0),
        ("h.0.mlp.c_proj.weight", vec![3, DIM], 0.0),
        ("h.0.mlp.c_proj.bias", vec![DIM], 0.0),
        ("ln_f.weight", vec![DIM], 0.0),
        ("ln_f.bias", vec![DIM], 0.0),
    ]
    .map(|(name, shape, start)| (name.to_owned(), shape, start))
    .to_vec()
}

fn with_weights<R>(
    tensors: &[(String, Vec<usize>, f32)],
    body: impl FnOnce(Result<CanonicalWeights<'_>, TransformerError>) -> R,
) -> R {
    let dir = tempfile::tempdir().unwrap();
    write_safetensors(&dir.path().join("model.safetensors"), tensors);
    let dir = ModelDir::open(dir.path(), &UnpackOptions::default()).unwrap();
    let weights = Weights::open(&dir).unwrap();
    body(CanonicalWeights::new(&gpt2(), &weights))
}

#[test]
fn fused_and_transposed_matrices_become_out_by_in() {
    with_weights(&gpt2_tensors(), |weights| {
        let weights = weights.unwrap();
        let read = |name: &str| weights.get(name).unwrap().to_f32_vec().unwrap();
        // c_attn is [[0 1 | 2 3 | 4 5], [6 7 | 8 9 | 10 11]]: rows are inputs, thirds q, k, v.
        assert_eq!(read("decoder.layers.0.self_attention.q.weight"), [0.0, 6.0, 1.0, 7.0]);
        assert_eq!(read("decoder.layers.0.self_attention.v.weight"), [4.0, 10.0, 5.0, 11.0]);
        assert_eq!(read("decoder.layers.0.self_attention.k.bias"), [2.0, 3.0]);
        let up = weights.get("decoder.layers.0.feed_forward.up.weight").unwrap();
        assert_eq!(up.shape(), [3, 2]);
        assert_eq!(up.to_f32_vec().unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert!(up.read_f32(&mut [0.0; 5]).is_err(), "a buffer of another size");
    });
}

#[test]
fn a_head_is_tied_unless_the_file_has_another() {
    let n_of = |extra: Option<f32>| {
        let mut tensors = gpt2_tensors();
        tensors.extend(extra.map(|start| ("lm_head.weight".to_owned(), vec![5, DIM], start)));
        with_weights(&tensors, |weights| {
            let weights = weights.unwrap();
            (weights.first_name("head.weight").unwrap(), weights.n_parameters())
        })
    };
    let (name, n) = n_of(None);
    assert_eq!(name, "decoder.embedding.tokens.weight");
    assert_eq!(n_of(Some(0.0)), (name, n), "the same numbers under both names");
    assert_eq!(n_of(Some(1.0)), ("head.weight".to_owned(), n + 5 * DIM as u64));
    // Whichever name is there holds the table.
    let mut tensors = gpt2_tensors();
    tensors[0].0 = "lm_head.weight".to_owned();
    with_weights(&tensors, |weights| {
        let tokens = weights.unwrap().get("decoder.embedding.tokens.weight").cloned();
        assert_eq!(tokens.unwrap().source().name(), "lm_head.weight");
    });
}

#[test]
fn a_prefix_is_found_out() {
    let tensors: Vec<_> = gpt2_tensors()
        .into_iter()
        .map(|(name, shape, start)| (format!("transformer.{name}"), shape, start))
        .collect();
    with_weights(&tensors, |weights| assert!(weights.is_ok()));
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let mut tensors = gpt2_tensors();
    tensors.remove(6);
    with_weights(&tensors, |weights| {
        let text = weights.unwrap_err().to_string();
        assert!(text.contains("h.0.attn.c_proj.weight is missing"), "{text}");
    });
    let mut tensors = gpt2_tensors();
    tensors[1].1 = vec![3, DIM];
    with_weights(&tensors, |weights| {
        let text = weights.unwrap_err().to_string();
        assert!(text.contains("wpe.weight has shape [3, 2]") && text.contains("n_positions"));
    });
}

#[test]
fn all_that_is_wrong_is_listed_at_once() {
    let mut tensors = gpt2_tensors();
    tensors[1].1 = vec![3, DIM];
    tensors.remove(6);
    tensors.push(("h.0.mlp.extra.weight".to_owned(), vec![2], 0.0));
    with_weights(&tensors, |weights| {
        let text = weights.unwrap_err().to_string();
        for part in ["wpe.weight has shape", "c_proj.weight is missing", "not used: h.0.mlp.extra"]
        {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(text.matches("c_proj").count(), 1, "its bias is there: {text}");
    });
    let mut tensors = gpt2_tensors();
    tensors.push(("unknown".to_owned(), vec![2], 0.0));
    with_weights(&tensors, |weights| assert_eq!(weights.unwrap().unused(), ["unknown"]));
}

#[test]
fn rows_of_groups_are_gathered() {
    let tensor = |rows: Rows| {
        let dir = tempfile::tempdir().unwrap();
        let file = [("t".to_owned(), vec![6, 1], 0.0)];
        write_safetensors(&dir.path().join("model.safetensors"), &file);
        let dir = ModelDir::open(dir.path(), &UnpackOptions::default()).unwrap();
        let weights = Weights::open(&dir).unwrap();
        let spec = TensorSpec {
            module: "m".into(),
            parameter: crate::Parameter::Weight,
            shape: vec![rows.n(), 1],
            presence: Presence::Required,
            keys: Vec::new(),
            norm: false,
        };
        let source = weights.get("t").unwrap();
        let tensor = CanonicalTensor { spec, source, transposed: false, rows };
        let values = tensor.to_f32_vec().unwrap();
        // The same as bytes of the file, from any row on.
        assert_eq!(tensor.row_bytes(), Some(4));
        for first in 0..=rows.n() {
            let mut bytes = vec![0; (rows.n() - first) * 4];
            tensor.fetch_rows(first, &mut Scratch::default(), &mut bytes).unwrap();
            let found = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
            assert_eq!(found.collect::<Vec<_>>(), values[first..]);
            let expect = std::mem::replace(&mut bytes, vec![0; (rows.n() - first) * 4]);
            tensor.hold_rows().unwrap().fetch(first, &mut bytes).unwrap();
            assert_eq!(bytes, expect);
        }
        for (first, n_bytes) in [(0, 3), (0, rows.n() * 4 + 4), (rows.n(), 4)] {
            let mut bytes = vec![0; n_bytes];
            assert!(tensor.fetch_rows(first, &mut Scratch::default(), &mut bytes).is_err());
            assert!(tensor.hold_rows().unwrap().fetch(first, &mut bytes).is_err());
        }
        let held = tensor.hold_rows().unwrap();
        let (mut row, mut scratch) = ([0.0], Vec::new());
        for (idx, value) in values.iter().enumerate() {
            held.fetch_row_f32(idx, &mut scratch, &mut row).unwrap();
            assert_eq!(row, [*value]);
        }
        assert!(held.fetch_row_f32(values.len(), &mut scratch, &mut row).is_err());
        let turned = CanonicalTensor { transposed: true, ..tensor };
        assert_eq!(turned.row_bytes(), None);
        assert!(turned.hold_rows().is_none());
        values
    };
    assert_eq!(tensor(Rows::run(2, 3, 6)), [2.0, 3.0, 4.0]);
    let strided = Rows { start: 1, block: 1, stride: 3, n_blocks: 2, total: 6 };
    assert_eq!(tensor(strided), [1.0, 4.0]);
}

#[test]
fn parts_are_what_lies_in_their_rows_and_columns() {
    let (n_out, n_in) = (12, 37);
    let layouts = [Rows::all(n_out), Rows::run(5, n_out, 20)];
    let grouped = Rows { start: 1, block: 4, stride: 6, n_blocks: 3, total: 18 };
    for (rows, transposed) in
        layouts.into_iter().chain([grouped]).flat_map(|rows| [(rows, false), (rows, true)])
    {
        let dir = tempfile::tempdir().unwrap();
        let mut shape = vec![rows.total, n_in];
        if transposed {
            shape.reverse();
        }
        write_safetensors(&dir.path().join("model.safetensors"), &[("t".to_owned(), shape, 0.0)]);
        let dir = ModelDir::open(dir.path(), &UnpackOptions::default()).unwrap();
        let weights = Weights::open(&dir).unwrap();
        let spec = TensorSpec {
            module: "m".into(),
            parameter: crate::Parameter::Weight,
            shape: vec![n_out, n_in],
            presence: Presence::Required,
            keys: Vec::new(),
            norm: false,
        };
        let source = weights.get("t").unwrap();
        let tensor = CanonicalTensor { spec, source, transposed, rows };
        let whole = tensor.to_f32_vec().unwrap();
        for (own, columns) in [(0..12, 0..37), (3..9, 0..37), (0..12, 5..36), (2..3, 20..21)] {
            let expect: Vec<f32> = whole[own.start * n_in..own.end * n_in]
                .chunks_exact(n_in)
                .flat_map(|row| &row[columns.clone()])
                .copied()
                .collect();
            let mut found = vec![0.0; expect.len()];
            tensor.read_part_f32(own.clone(), columns.clone(), &mut found).unwrap();
            assert_eq!(found, expect, "{rows:?} {transposed} {own:?} {columns:?}");
        }
        assert!(tensor.read_part_f32(0..13, 0..1, &mut [0.0; 13]).is_err());
        assert!(tensor.read_part_f32(0..1, 0..2, &mut [0.0; 3]).is_err());
    }
}

#[test]
fn modules_add_up() {
    with_weights(&gpt2_tensors(), |weights| {
        let weights = weights.unwrap();
        let root = weights.modules();
        assert_eq!(
            (root.n_parameters, root.bytes),
            (weights.n_parameters(), weights.total_bytes())
        );
        let paths: Vec<&str> = root.children.iter().map(|child| child.path.as_str()).collect();
        assert_eq!(paths, ["decoder", "head"]);
        assert_eq!(root.find("head").unwrap().bytes, 0, "tied");
        let layer = root.find("decoder.layers.0").unwrap();
        assert!(layer.is_layer() && !root.find("decoder.layers").unwrap().is_layer());
        let sum: u64 = layer.children.iter().map(|child| child.bytes).sum();
        assert_eq!(sum, layer.bytes);
    });
}
