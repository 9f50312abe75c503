//! Weights of the fixtures and their damaged copies.

use drivetrain_artifacts::{DType, ModelConfig, Weights};

use crate::fixtures;

#[test]
fn every_safetensors_fixture_opens() {
    for (name, tensor, dtype) in [
        ("bart", "model.shared.weight", DType::F32),
        ("falcon", "transformer.word_embeddings.weight", DType::BF16),
        ("gpt2", "wte.weight", DType::F32),
        ("phi", "model.embed_tokens.weight", DType::F32),
        ("roberta", "embeddings.word_embeddings.weight", DType::F16),
    ] {
        let dir = fixtures::open(name);
        let config = ModelConfig::read(&dir).unwrap();
        assert_eq!(config.model_type, name);
        let weights = Weights::open(&dir).unwrap();
        let Some(embedding) = weights.get(tensor) else {
            panic!("{name}: {:?}", weights.names().collect::<Vec<_>>());
        };
        assert_eq!(embedding.dtype(), dtype, "{name}");
        assert_eq!(embedding.shape()[0] as u32, config.json.u32("vocab_size").unwrap(), "{name}");
        assert!(embedding.is_contiguous());
        let values = embedding.to_f32_vec().unwrap();
        assert!(values.iter().all(|value| value.abs() < 10.0));
    }
    assert_eq!(Weights::open(&fixtures::open("phi")).unwrap().files().len(), 2);
}
