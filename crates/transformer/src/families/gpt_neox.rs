//! GPT-NeoX and Pythia (Black et al. 2022, arXiv:2204.06745); transformers 5.24,
//! `models/gpt_neox`.

use super::reader::Reader;
use super::rope::{self, Defaults};
use super::shapes::{self, KEYS, STACK_KEYS};
use super::{Family, Form, FusedPart, ModuleNames, Place, names};
use crate::activation::Activation;
use crate::architecture::{Architecture, Layer, LmHead, Residual, Stack};
use crate::attention::{Attention, AttentionBias, AttentionPositions};
use crate::embedding::Embedding;
use crate::error::TransformerError;
use crate::norm::{Norm, Norms};

pub(super) static FAMILY: Family = Family {
    model_type: "gpt_neox",
    aliases: &[],
    describe,
    prefixes: &["gpt_neox.", ""],
    probes: &["layers.0.attention.query_key_value.weight", "embed_in.weight"],
    modules: &[&EMBEDDINGS, &QKV, &MODULES],
};

const TOKENS: Place = Place::new("embed_in");
/// A class of later versions calls it `lm_head`.
const HEADS: [Place; 2] = [Place::top("embed_out"), Place::top("lm_head")];

static EMBEDDINGS: [ModuleNames; 2] = [
    ModuleNames {
        canonical: "decoder.embedding.tokens",
        found: &[TOKENS, HEADS[0].tied(), HEADS[1].tied()],
    },
    ModuleNames { canonical: "head", found: &[HEADS[0], HEADS[1], TOKENS.tied()] },
];

const FUSED: Place = Place::new("layers.{i}.attention.query_key_value");

static QKV: [ModuleNames; 3] = [
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

static MODULES: [ModuleNames; 6] = names! {
    "decoder.layers.{i}.self_attention.o" => "layers.{i}.attention.dense",
    "decoder.layers.{i}.self_attention.norm_before" => "layers.{i}.input_layernorm",
    "decoder.layers.{i}.feed_forward.norm_before" => "layers.{i}.post_attention_layernorm",
    "decoder.layers.{i}.feed_forward.up" => "layers.{i}.mlp.dense_h_to_4h",
    "decoder.layers.{i}.feed_forward.down" => "layers.{i}.mlp.dense_4h_to_h",
    "decoder.final_norm" => "final_layer_norm",
};

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let dim = config.size("hidden_size", 6144)?;
    let heads = shapes::whole_heads(config, ("hidden_size", dim), ("num_attention_heads", 64))?;
    let defaults = Defaults {
        theta_key: "rotary_emb_base",
        partial: Some(0.25),
        partial_key: "rotary_pct",
        ..Defaults::new(heads.dim, 2048)
    };
    let rope = rope::read(config, &defaults)?;
    let norm = Norm::layer(config.eps("layer_norm_eps", 1e-5)?);
    let mut attention = Attention::new(heads, true);
    attention.bias = AttentionBias::all(config.flag("attention_bias", true)?);
    attention.positions = AttentionPositions::Rotary(rope.rotary);
    let activation = config.activation("hidden_act", Activation::Gelu)?;
    let feed_forward = shapes::plain(config.size("intermediate_size", 24_576)?, activation, true);
    let mut layer = Layer::new(attention, feed_forward, Norms::pre(norm));
    if config.flag("use_parallel_residual", true)? {
        layer.residual = Residual::Parallel { shared_norm: false };
    }
    let layers = vec![layer; config.layers("num_hidden_layers", 44)? as usize];
    let embedding = Embedding::tokens(config.rows("vocab_size", 50_432)?, dim);
    let mut stack = Stack::new("decoder", embedding, layers, rope.max_positions, STACK_KEYS);
    stack.final_norm = Some(norm);
    let tied = config.flag("tie_word_embeddings", false)?;
    let head = LmHead::new(tied, config.has_lm_class());
    Ok(shapes::decoder_model(config.family, dim, stack, head, KEYS))
}
