//! BLOOM (Le Scao et al. 2022, arXiv:2211.05100); transformers 5.24, `models/bloom`.

use super::reader::Reader;
use super::shapes::{self, KEYS, UNBOUNDED};
use super::{Family, Form, FusedPart, ModuleNames, Place, names};
use crate::activation::Activation;
use crate::architecture::{Architecture, Layer, LmHead, Residual, Stack, StackKeys};
use crate::attention::{Attention, AttentionBias, AttentionPositions};
use crate::embedding::Embedding;
use crate::error::TransformerError;
use crate::norm::{Norm, Norms};
use crate::positions::Alibi;

pub(super) static FAMILY: Family = Family {
    model_type: "bloom",
    aliases: &[
        ("n_embed", "hidden_size"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
    ],
    describe,
    prefixes: &["transformer.", ""],
    probes: &["h.0.self_attention.query_key_value.weight", "word_embeddings_layernorm.weight"],
    modules: &[&EMBEDDINGS, &QKV, &MODULES],
};

const TOKENS: Place = Place::new("word_embeddings");
const LM_HEAD: Place = Place::top("lm_head");
const FUSED: Place = Place::new("h.{i}.self_attention.query_key_value");

/// The token table and the head of BLOOM and Falcon.
pub(super) static EMBEDDINGS: [ModuleNames; 2] = [
    ModuleNames { canonical: "decoder.embedding.tokens", found: &[TOKENS, LM_HEAD.tied()] },
    ModuleNames { canonical: "head", found: &[LM_HEAD, TOKENS.tied()] },
];

/// The fused projection of BLOOM and Falcon.
pub(super) static QKV: [ModuleNames; 3] = [
    ModuleNames {
        canonical: "decoder.layers.{i}.self_attention.q",
        found: &[FUSED.form(Form::FusedByGroup(FusedPart::Q))],
    },
    ModuleNames {
        canonical: "decoder.layers.{i}.self_attention.k",
        found: &[FUSED.form(Form::FusedByGroup(FusedPart::K))],
    },
    ModuleNames {
        canonical: "decoder.layers.{i}.self_attention.v",
        found: &[FUSED.form(Form::FusedByGroup(FusedPart::V))],
    },
];

static MODULES: [ModuleNames; 7] = names! {
    "decoder.embedding.norm" => "word_embeddings_layernorm",
    "decoder.layers.{i}.self_attention.o" => "h.{i}.self_attention.dense",
    "decoder.layers.{i}.self_attention.norm_before" => "h.{i}.input_layernorm",
    "decoder.layers.{i}.feed_forward.norm_before" => "h.{i}.post_attention_layernorm",
    "decoder.layers.{i}.feed_forward.up" => "h.{i}.mlp.dense_h_to_4h",
    "decoder.layers.{i}.feed_forward.down" => "h.{i}.mlp.dense_4h_to_h",
    "decoder.final_norm" => "ln_f",
};

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let dim = config.size("hidden_size", 64)?;
    let heads = shapes::whole_heads(config, ("hidden_size", dim), ("n_head", 8))?;
    let norm = Norm::layer(config.eps("layer_norm_epsilon", 1e-5)?);
    let mut attention = Attention::new(heads, true);
    attention.bias = AttentionBias::all(true);
    attention.positions = AttentionPositions::Alibi(Alibi { rounded: false, scale: 1.0 });
    let feed_forward = shapes::plain(4 * dim, Activation::GeluTanh, true);
    let mut layer = Layer::new(attention, feed_forward, Norms::pre(norm));
    if config.flag("apply_residual_connection_post_layernorm", false)? {
        layer.residual = Residual::SequentialFromNorm;
    }
    let layers = vec![layer; config.layers("n_layer", 2)? as usize];
    let embedding = Embedding {
        norm: Some(norm),
        ..Embedding::tokens(config.rows("vocab_size", 250_880)?, dim)
    };
    let keys = StackKeys {
        layers: "n_layer",
        heads: "n_head",
        kv_heads: "n_head",
        feed_forward: "hidden_size",
    };
    let mut stack = Stack::new("decoder", embedding, layers, UNBOUNDED, keys);
    stack.final_norm = Some(norm);
    let tied = config.flag("tie_word_embeddings", true)?;
    let head = LmHead::new(tied, config.has_lm_class());
    Ok(shapes::decoder_model(config.family, dim, stack, head, KEYS))
}
