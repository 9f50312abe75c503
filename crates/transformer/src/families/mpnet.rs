//! MPNet (Song et al. 2020, arXiv:2004.09297); transformers 5.24, `models/mpnet`.

use super::reader::Reader;
use super::shapes::{self, Bidirectional, KEYS};
use super::{Family, ModuleNames, names, roberta};
use crate::architecture::{Architecture, Pooler};
use crate::attention::AttentionPositions;
use crate::error::TransformerError;
use crate::positions::RelativeBuckets;

pub(super) static FAMILY: Family = Family {
    model_type: "mpnet",
    aliases: &[],
    describe,
    prefixes: &["mpnet.", ""],
    probes: &["embeddings.word_embeddings.weight", "encoder.layer.0.intermediate.dense.weight"],
    modules: &[&MODULES],
};

static MODULES: [ModuleNames; 13] = names! {
    "encoder.embedding.tokens" => "embeddings.word_embeddings",
    "encoder.embedding.positions" => "embeddings.position_embeddings",
    "encoder.embedding.norm" => "embeddings.LayerNorm",
    "encoder.layers.{i}.self_attention.q" => "encoder.layer.{i}.attention.attn.q",
    "encoder.layers.{i}.self_attention.k" => "encoder.layer.{i}.attention.attn.k",
    "encoder.layers.{i}.self_attention.v" => "encoder.layer.{i}.attention.attn.v",
    "encoder.layers.{i}.self_attention.o" => "encoder.layer.{i}.attention.attn.o",
    "encoder.layers.{i}.self_attention.norm_after" => "encoder.layer.{i}.attention.LayerNorm",
    "encoder.layers.{i}.self_attention.relative_bias" => "encoder.relative_attention_bias",
    "encoder.layers.{i}.feed_forward.up" => "encoder.layer.{i}.intermediate.dense",
    "encoder.layers.{i}.feed_forward.down" => "encoder.layer.{i}.output.dense",
    "encoder.layers.{i}.feed_forward.norm_after" => "encoder.layer.{i}.output.LayerNorm",
    "pooler" => "pooler.dense",
};

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let dim = config.size("hidden_size", 768)?;
    let (positions, max_positions) = roberta::after_padding(config, 512)?;
    let sizes = Bidirectional {
        vocab: config.rows("vocab_size", 30_527)?,
        layers: 12,
        heads: 12,
        dim,
        width: 3072,
        positions,
        max_positions,
        n_token_types: 0,
        eps: config.eps("layer_norm_eps", 1e-12)?,
    };
    let mut stack = shapes::bert_stack(config, &sizes)?;
    // The reference makes its buckets for a table of 32 rows, whatever the config says.
    let n_buckets = config.rows("relative_attention_num_buckets", 32)?;
    if n_buckets != 32 {
        return Err(config.unsupported("relative_attention_num_buckets", "32"));
    }
    for layer in &mut stack.layers {
        layer.self_attention.positions = AttentionPositions::RelativeBuckets(RelativeBuckets {
            n_buckets,
            max_distance: 128,
            bidirectional: true,
        });
    }
    Ok(shapes::encoder_model(config.family, dim, stack, Some(Pooler { width: dim }), KEYS))
}
