//! OPT (Zhang et al. 2022, arXiv:2205.01068) and Galactica; transformers 5.24, `models/opt`.

use super::reader::Reader;
use super::shapes::{self, KEYS, STACK_KEYS};
use super::{Family, ModuleNames, Place, names};
use crate::activation::Activation;
use crate::architecture::{Architecture, Layer, LmHead, Stack, StackKeys};
use crate::attention::{Attention, AttentionBias};
use crate::embedding::{EmbeddedPositions, Embedding};
use crate::error::TransformerError;
use crate::norm::{Norm, Norms};

pub(super) static FAMILY: Family = Family {
    model_type: "opt",
    aliases: &[],
    describe,
    prefixes: &["model.decoder.", "decoder.", ""],
    probes: &["layers.0.self_attn.q_proj.weight", "embed_tokens.weight"],
    modules: &[&EMBEDDINGS, &MODULES],
};

const TOKENS: Place = Place::new("embed_tokens");
const LM_HEAD: Place = Place::top("lm_head");
/// The position table has two rows ahead of position 0.
const POSITION_OFFSET: u32 = 2;
/// torch's default, which the config can't change.
const NORM_EPS: f64 = 1e-5;

static EMBEDDINGS: [ModuleNames; 2] = [
    ModuleNames { canonical: "decoder.embedding.tokens", found: &[TOKENS, LM_HEAD.tied()] },
    ModuleNames { canonical: "head", found: &[LM_HEAD, TOKENS.tied()] },
];

static MODULES: [ModuleNames; 14] = names! {
    "decoder.embedding.positions" => "embed_positions",
    "decoder.embedding.projection" => "project_in",
    "decoder.layers.{i}.self_attention.q" => "layers.{i}.self_attn.q_proj",
    "decoder.layers.{i}.self_attention.k" => "layers.{i}.self_attn.k_proj",
    "decoder.layers.{i}.self_attention.v" => "layers.{i}.self_attn.v_proj",
    "decoder.layers.{i}.self_attention.o" => "layers.{i}.self_attn.out_proj",
    "decoder.layers.{i}.self_attention.norm_before" => "layers.{i}.self_attn_layer_norm",
    "decoder.layers.{i}.self_attention.norm_after" => "layers.{i}.self_attn_layer_norm",
    "decoder.layers.{i}.feed_forward.up" => "layers.{i}.fc1",
    "decoder.layers.{i}.feed_forward.down" => "layers.{i}.fc2",
    "decoder.layers.{i}.feed_forward.norm_before" => "layers.{i}.final_layer_norm",
    "decoder.layers.{i}.feed_forward.norm_after" => "layers.{i}.final_layer_norm",
    "decoder.final_norm" => "final_layer_norm",
    "decoder.output_projection" => "project_out",
};

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let dim = config.size("hidden_size", 768)?;
    let heads = shapes::whole_heads(config, ("hidden_size", dim), ("num_attention_heads", 12))?;
    let max_positions = config.rows("max_position_embeddings", 2048)?;
    let affine = config.flag("layer_norm_elementwise_affine", true)?;
    let norm = Norm { weight: affine, bias: affine, ..Norm::layer(NORM_EPS) };
    let before = config.flag("do_layer_norm_before", true)?;
    let has_final_norm = before && !config.flag("_remove_final_layer_norm", false)?;
    let has_bias = config.flag("enable_bias", true)?;
    let mut attention = Attention::new(heads, true);
    attention.bias = AttentionBias::all(has_bias);
    let activation = config.activation("activation_function", Activation::Relu)?;
    let feed_forward = shapes::plain(config.size("ffn_dim", 3072)?, activation, has_bias);
    let norms = if before { Norms::pre(norm) } else { Norms::post(norm) };
    let layer = Layer::new(attention, feed_forward, norms);
    let layers = vec![layer; config.layers("num_hidden_layers", 12)? as usize];
    let width = config.opt_size("word_embed_proj_dim")?.unwrap_or(dim);
    let embedding = Embedding {
        width,
        positions: EmbeddedPositions::Learned {
            n_rows: max_positions + POSITION_OFFSET,
            offset: POSITION_OFFSET,
            skipped: None,
        },
        projection: width != dim,
        ..Embedding::tokens(config.rows("vocab_size", 50_272)?, dim)
    };
    let keys = StackKeys { feed_forward: "ffn_dim", ..STACK_KEYS };
    let mut stack = Stack::new("decoder", embedding, layers, max_positions, keys);
    stack.final_norm = has_final_norm.then_some(norm);
    stack.output_projection = (width != dim).then_some(width);
    let tied = config.flag("tie_word_embeddings", true)?;
    let head = LmHead::new(tied, config.has_lm_class());
    Ok(shapes::decoder_model(config.family, dim, stack, head, KEYS))
}
