//! Adapters held against models.

use std::path::{Path, PathBuf};

use drivetrain_artifacts::{ModelConfig, ModelDir, Weights};

use super::*;
use crate::CanonicalWeights;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn model(name: &str) -> (Architecture, Weights) {
    let dir = ModelDir::open(&fixtures().join(name), &UnpackOptions::default()).unwrap();
    let config = ModelConfig::read(&dir).unwrap();
    (Architecture::from_config(&config).unwrap(), Weights::open(&dir).unwrap())
}

fn files(name: &str) -> AdapterFiles {
    AdapterFiles::open(&fixtures().join("adapters").join(name)).unwrap()
}

#[test]
fn parts_of_a_fused_matrix_share_one_factor() {
    let (architecture, _) = model("phi3");
    let adapter = Adapter::read(&files("phi3_fused"), &architecture).unwrap();
    let part = |name: &str| adapter.get(&format!("decoder.layers.1.{name}")).unwrap();
    let (q, v) = (part("self_attention.q"), part("self_attention.v"));
    assert!(Arc::ptr_eq(q.down(), v.down()));
    let attention = &architecture.decoder.as_ref().unwrap().layers[1].self_attention;
    assert_eq!((q.n_out(), v.n_out()), (attention.q_width(), attention.kv_width()));
    let (gate, up) = (part("feed_forward.gate"), part("feed_forward.up"));
    assert_eq!((gate.rank(), gate.n_out()), (4, up.n_out()));
    assert_eq!(adapter.modules().count(), 2 * 6);
}

#[test]
fn merging_changes_what_is_adapted_and_unties_it() {
    let (architecture, weights) = model("llama_gqa");
    let tables = files("llama_tables");
    let plain = CanonicalWeights::new(&architecture, &weights).unwrap();
    let merged = CanonicalWeights::with_adapter(&architecture, &weights, &tables).unwrap();
    let read = |weights: &CanonicalWeights<'_>, name: &str| {
        let mut values = vec![0.0; weights.get(name).unwrap().n_elements()];
        weights.read_f32(name, &mut values).unwrap();
        values
    };
    for (name, is_changed) in [
        ("decoder.embedding.tokens.weight", true),
        ("head.weight", true),
        ("decoder.layers.0.self_attention.k.weight", true),
        ("decoder.layers.0.self_attention.q.weight", false),
    ] {
        assert_eq!(merged.is_changed(name), is_changed, "{name}");
        assert_eq!(read(&plain, name) != read(&merged, name), is_changed, "{name}");
    }
    assert_eq!(plain.first_name("head.weight").unwrap(), "decoder.embedding.tokens.weight");
    assert_eq!(merged.first_name("head.weight").unwrap(), "head.weight");
}

#[test]
fn a_low_rank_matrix_is_the_product_of_its_factors() {
    let low_rank =
        LowRank::new(vec![1.0, 2.0, 3.0, 10.0, 20.0, 30.0].into(), vec![1.0, 0.5, 0.0, 2.0], 2);
    assert_eq!((low_rank.n_out(), low_rank.n_in(), low_rank.bytes()), (2, 3, 40));
    let mut data = [1.0; 6];
    low_rank.add_to(&mut data);
    assert_eq!(data, [7.0, 13.0, 19.0, 21.0, 41.0, 61.0]);
}
