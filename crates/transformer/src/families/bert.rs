//! BERT (Devlin et al. 2018, arXiv:1810.04805); transformers 5.24, `models/bert`.

use super::reader::Reader;
use super::shapes::{self, Bidirectional, KEYS};
use super::{Family, ModuleNames, names};
use crate::architecture::{Architecture, Pooler};
use crate::embedding::EmbeddedPositions;
use crate::error::TransformerError;

pub(super) static FAMILY: Family = Family {
    model_type: "bert",
    aliases: &[],
    describe,
    prefixes: &["bert.", ""],
    probes: &["embeddings.word_embeddings.weight", "encoder.layer.0.intermediate.dense.weight"],
    modules: &[&MODULES],
};

static MODULES: [ModuleNames; 13] = names! {
    "encoder.embedding.tokens" => "embeddings.word_embeddings",
    "encoder.embedding.positions" => "embeddings.position_embeddings",
    "encoder.embedding.token_types" => "embeddings.token_type_embeddings",
    "encoder.embedding.norm" => "embeddings.LayerNorm",
    "encoder.layers.{i}.self_attention.q" => "encoder.layer.{i}.attention.self.query",
    "encoder.layers.{i}.self_attention.k" => "encoder.layer.{i}.attention.self.key",
    "encoder.layers.{i}.self_attention.v" => "encoder.layer.{i}.attention.self.value",
    "encoder.layers.{i}.self_attention.o" => "encoder.layer.{i}.attention.output.dense",
    "encoder.layers.{i}.self_attention.norm_after" => "encoder.layer.{i}.attention.output.LayerNorm",
    "encoder.layers.{i}.feed_forward.up" => "encoder.layer.{i}.intermediate.dense",
    "encoder.layers.{i}.feed_forward.down" => "encoder.layer.{i}.output.dense",
    "encoder.layers.{i}.feed_forward.norm_after" => "encoder.layer.{i}.output.LayerNorm",
    "pooler" => "pooler.dense",
};

/// Refuses what makes another model of an encoder.
pub(super) fn refuse_variants(config: &Reader<'_>) -> Result<(), TransformerError> {
    config.refuse_set("is_decoder")?;
    config.refuse_set("add_cross_attention")?;
    if config.json.opt_str("position_embedding_type")?.is_some_and(|kind| kind != "absolute") {
        return Err(config.unsupported("position_embedding_type", "\"absolute\""));
    }
    Ok(())
}

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    refuse_variants(config)?;
    let dim = config.size("hidden_size", 768)?;
    let max_positions = config.rows("max_position_embeddings", 512)?;
    let sizes = Bidirectional {
        vocab: config.rows("vocab_size", 30_522)?,
        layers: 12,
        heads: 12,
        dim,
        width: 3072,
        positions: EmbeddedPositions::Learned { n_rows: max_positions, offset: 0, skipped: None },
        max_positions,
        n_token_types: config.rows("type_vocab_size", 2)?,
        eps: config.eps("layer_norm_eps", 1e-12)?,
    };
    let stack = shapes::bert_stack(config, &sizes)?;
    Ok(shapes::encoder_model(config.family, dim, stack, Some(Pooler { width: dim }), KEYS))
}
