//! DeBERTa v2 and v3 (He et al. 2021, arXiv:2111.09543); transformers 5.24, `models/deberta_v2`.

use serde_json::Value;

use super::reader::Reader;
use super::shapes::{self, Bidirectional, KEYS};
use super::{Family, ModuleNames, names};
use crate::architecture::{Architecture, RelativeTable};
use crate::attention::AttentionPositions;
use crate::embedding::EmbeddedPositions;
use crate::error::TransformerError;
use crate::norm::Norm;
use crate::positions::Disentangled;

pub(super) static FAMILY: Family = Family {
    model_type: "deberta-v2",
    aliases: &[],
    describe,
    prefixes: &["deberta.", ""],
    probes: &["embeddings.word_embeddings.weight", "encoder.layer.0.intermediate.dense.weight"],
    modules: &[&MODULES],
};

static MODULES: [ModuleNames; 17] = names! {
    "encoder.embedding.tokens" => "embeddings.word_embeddings",
    "encoder.embedding.projection" => "embeddings.embed_proj",
    "encoder.embedding.positions" => "embeddings.position_embeddings",
    "encoder.embedding.token_types" => "embeddings.token_type_embeddings",
    "encoder.embedding.norm" => "embeddings.LayerNorm",
    "encoder.relative" => "encoder.rel_embeddings",
    "encoder.relative.norm" => "encoder.LayerNorm",
    "encoder.layers.{i}.self_attention.q" => "encoder.layer.{i}.attention.self.query_proj",
    "encoder.layers.{i}.self_attention.k" => "encoder.layer.{i}.attention.self.key_proj",
    "encoder.layers.{i}.self_attention.v" => "encoder.layer.{i}.attention.self.value_proj",
    "encoder.layers.{i}.self_attention.relative_q" => "encoder.layer.{i}.attention.self.pos_query_proj",
    "encoder.layers.{i}.self_attention.relative_k" => "encoder.layer.{i}.attention.self.pos_key_proj",
    "encoder.layers.{i}.self_attention.o" => "encoder.layer.{i}.attention.output.dense",
    "encoder.layers.{i}.self_attention.norm_after" => "encoder.layer.{i}.attention.output.LayerNorm",
    "encoder.layers.{i}.feed_forward.up" => "encoder.layer.{i}.intermediate.dense",
    "encoder.layers.{i}.feed_forward.down" => "encoder.layer.{i}.output.dense",
    "encoder.layers.{i}.feed_forward.norm_after" => "encoder.layer.{i}.output.LayerNorm",
};

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    if config.json.opt_f64("conv_kernel_size")?.is_some_and(|size| size > 0.0) {
        return Err(config.unsupported("conv_kernel_size", "0"));
    }
    let dim = config.size("hidden_size", 1536)?;
    for key in ["embedding_size", "attention_head_size"] {
        if let Some(size) = config.opt_size(key)? {
            let usual = if key == "embedding_size" {
                dim
            } else {
                dim / config.size("num_attention_heads", 24)?
            };
            if size != usual {
                return Err(config.unsupported(key, usual.to_string()));
            }
        }
    }
    let n_rows = config.rows("max_position_embeddings", 512)?;
    let n_token_types = config.json.opt_u32("type_vocab_size")?.unwrap_or(0);
    let biased = config.flag("position_biased_input", true)?;
    let sizes = Bidirectional {
        vocab: config.rows("vocab_size", 128_100)?,
        layers: 24,
        heads: 24,
        dim,
        width: 6144,
        positions: if biased {
            EmbeddedPositions::Learned { n_rows, offset: 0, skipped: None }
        } else {
            EmbeddedPositions::None
        },
        // The reference numbers its positions up to the table's end even where it has no table.
        max_positions: n_rows,
        n_token_types,
        eps: config.eps("layer_norm_eps", 1e-7)?,
    };
    let mut stack = shapes::bert_stack(config, &sizes)?;
    if config.flag("relative_attention", false)? {
        let disentangled = disentangled(config, n_rows)?;
        let factor = 1
            + u32::from(disentangled.content_to_position)
            + u32::from(disentangled.position_to_content);
        for layer in &mut stack.layers {
            let attention = &mut layer.self_attention;
            attention.scale = f64::from(attention.head_dim * factor).powf(-0.5);
            attention.positions = AttentionPositions::Disentangled(disentangled);
        }
        let normed = norms_distances(config)?;
        stack.relative_table = Some(RelativeTable {
            n_rows: 2 * disentangled.span,
            norm: normed.then(|| Norm::layer(sizes.eps)),
        });
    }
    Ok(shapes::encoder_model(config.family, dim, stack, None, KEYS))
}

fn disentangled(config: &Reader<'_>, max_positions: u32) -> Result<Disentangled, TransformerError> {
    let positive = |key: &str| -> Result<Option<u32>, TransformerError> {
        let value = config.json.opt_f64(key)?.filter(|value| *value > 0.0);
        value.map(|_| config.rows(key, 1)).transpose()
    };
    let max_distance = positive("max_relative_positions")?.unwrap_or(max_positions);
    let buckets = positive("position_buckets")?;
    let kinds = match config.json.get("pos_att_type")? {
        None => Vec::new(),
        Some(Value::String(text)) => {
            text.split('|').map(|kind| kind.trim().to_lowercase()).collect()
        }
        Some(_) => config.json.opt_strings("pos_att_type")?.unwrap_or_default(),
    };
    if kinds.iter().any(|kind| kind != "c2p" && kind != "p2c") {
        return Err(config.unsupported("pos_att_type", "\"c2p\", \"p2c\" or both"));
    }
    Ok(Disentangled {
        span: buckets.unwrap_or(max_distance),
        max_distance: buckets.map(|_| max_distance),
        content_to_position: kinds.iter().any(|kind| kind == "c2p"),
        position_to_content: kinds.iter().any(|kind| kind == "p2c"),
        shared_projections: config.flag("share_att_key", false)?,
    })
}

fn norms_distances(config: &Reader<'_>) -> Result<bool, TransformerError> {
    let text = config.json.opt_str("norm_rel_ebd")?.unwrap_or("none").to_lowercase();
    Ok(text.split('|').any(|kind| kind.trim() == "layer_norm"))
}
