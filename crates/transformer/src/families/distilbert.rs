//! DistilBERT (Sanh et al. 2019, arXiv:1910.01108); transformers 5.24, `models/distilbert`.

use super::reader::Reader;
use super::shapes;
use super::{Family, ModuleNames, names};
use crate::activation::Activation;
use crate::architecture::{Architecture, ConfigKeys, Layer, Stack, StackKeys};
use crate::attention::{Attention, AttentionBias};
use crate::embedding::{EmbeddedPositions, Embedding};
use crate::error::TransformerError;
use crate::norm::{Norm, Norms};

pub(super) static FAMILY: Family = Family {
    model_type: "distilbert",
    aliases: &[
        ("hidden_size", "dim"),
        ("num_attention_heads", "n_heads"),
        ("num_hidden_layers", "n_layers"),
    ],
    describe,
    prefixes: &["distilbert.", ""],
    probes: &["embeddings.word_embeddings.weight", "transformer.layer.0.ffn.lin1.weight"],
    modules: &[&MODULES],
};

/// The config can't change it.
const NORM_EPS: f64 = 1e-12;

static MODULES: [ModuleNames; 11] = names! {
    "encoder.embedding.tokens" => "embeddings.word_embeddings",
    "encoder.embedding.positions" => "embeddings.position_embeddings",
    "encoder.embedding.norm" => "embeddings.LayerNorm",
    "encoder.layers.{i}.self_attention.q" => "transformer.layer.{i}.attention.q_lin",
    "encoder.layers.{i}.self_attention.k" => "transformer.layer.{i}.attention.k_lin",
    "encoder.layers.{i}.self_attention.v" => "transformer.layer.{i}.attention.v_lin",
    "encoder.layers.{i}.self_attention.o" => "transformer.layer.{i}.attention.out_lin",
    "encoder.layers.{i}.self_attention.norm_after" => "transformer.layer.{i}.sa_layer_norm",
    "encoder.layers.{i}.feed_forward.up" => "transformer.layer.{i}.ffn.lin1",
    "encoder.layers.{i}.feed_forward.down" => "transformer.layer.{i}.ffn.lin2",
    "encoder.layers.{i}.feed_forward.norm_after" => "transformer.layer.{i}.output_layer_norm",
};

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let dim = config.size("dim", 768)?;
    let heads = shapes::whole_heads(config, ("dim", dim), ("n_heads", 12))?;
    let max_positions = config.rows("max_position_embeddings", 512)?;
    let norm = Norm::layer(NORM_EPS);
    let mut attention = Attention::new(heads, false);
    attention.bias = AttentionBias::all(true);
    let activation = config.activation("activation", Activation::Gelu)?;
    let feed_forward = shapes::plain(config.size("hidden_dim", 3072)?, activation, true);
    let layer = Layer::new(attention, feed_forward, Norms::post(norm));
    let layers = vec![layer; config.layers("n_layers", 6)? as usize];
    let embedding = Embedding {
        positions: EmbeddedPositions::Learned { n_rows: max_positions, offset: 0, skipped: None },
        norm: Some(norm),
        ..Embedding::tokens(config.rows("vocab_size", 30_522)?, dim)
    };
    let stack_keys = StackKeys {
        layers: "n_layers",
        heads: "n_heads",
        kv_heads: "n_heads",
        feed_forward: "hidden_dim",
    };
    let stack = Stack::new("encoder", embedding, layers, max_positions, stack_keys);
    let keys = ConfigKeys { vocab: "vocab_size", dim: "dim", positions: "max_position_embeddings" };
    Ok(shapes::encoder_model(config.family, dim, stack, None, keys))
}
