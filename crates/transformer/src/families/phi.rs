//! Phi 1, 1.5 and 2 (Li et al. 2023, arXiv:2309.05463); transformers 5.24, `models/phi`.

use super::llama::{self, Kin, LLAMA};
use super::reader::Reader;
use super::rope::{self, Defaults};
use super::shapes::{self, KEYS};
use super::{Family, ModuleNames, names};
use crate::activation::Activation;
use crate::architecture::{Architecture, HeadBias, Layer, LmHead, Residual, Stack};
use crate::attention::{Attention, AttentionBias, AttentionPositions};
use crate::embedding::Embedding;
use crate::error::TransformerError;
use crate::norm::{Norm, Norms};

pub(super) static FAMILY: Family = Family {
    model_type: "phi",
    describe,
    probes: &["layers.0.self_attn.q_proj.weight", "embed_tokens.weight"],
    modules: &[&llama::EMBEDDINGS, &MODULES],
    ..llama::FAMILY
};

static MODULES: [ModuleNames; 10] = names! {
    "decoder.layers.{i}.self_attention.q" => "layers.{i}.self_attn.q_proj",
    "decoder.layers.{i}.self_attention.k" => "layers.{i}.self_attn.k_proj",
    "decoder.layers.{i}.self_attention.v" => "layers.{i}.self_attn.v_proj",
    "decoder.layers.{i}.self_attention.o" => "layers.{i}.self_attn.dense",
    "decoder.layers.{i}.self_attention.q_norm" => "layers.{i}.self_attn.q_layernorm",
    "decoder.layers.{i}.self_attention.k_norm" => "layers.{i}.self_attn.k_layernorm",
    "decoder.layers.{i}.self_attention.norm_before" => "layers.{i}.input_layernorm",
    "decoder.layers.{i}.feed_forward.up" => "layers.{i}.mlp.fc1",
    "decoder.layers.{i}.feed_forward.down" => "layers.{i}.mlp.fc2",
    "decoder.final_norm" => "final_layernorm",
};

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let dim = config.size("hidden_size", 2048)?;
    let heads = llama::grouped_heads(config, dim, &Kin { heads: 32, ..LLAMA })?;
    let defaults = Defaults { partial: Some(0.5), ..Defaults::new(heads.dim, 2048) };
    let rope = rope::read(config, &defaults)?;
    let norm = Norm::layer(config.eps("layer_norm_eps", 1e-5)?);
    let mut attention = Attention::new(heads, true);
    attention.bias = AttentionBias::all(true);
    attention.positions = AttentionPositions::Rotary(rope.rotary);
    attention.qk_norm = config.flag("qk_layernorm", false)?.then_some(norm);
    let activation = config.activation("hidden_act", Activation::GeluTanh)?;
    let feed_forward = shapes::plain(config.size("intermediate_size", 8192)?, activation, true);
    let layer = Layer {
        feed_forward_norms: Norms::default(),
        residual: Residual::Parallel { shared_norm: true },
        ..Layer::new(attention, feed_forward, Norms::pre(norm))
    };
    let layers = vec![layer; config.layers("num_hidden_layers", 24)? as usize];
    let embedding = Embedding::tokens(config.rows("vocab_size", 51_200)?, dim);
    let mut stack = Stack::new("decoder", embedding, layers, rope.max_positions, llama::STACK);
    stack.final_norm = Some(norm);
    let tied = config.flag("tie_word_embeddings", false)?;
    let head = LmHead { bias: HeadBias::Required, ..LmHead::new(tied, config.has_lm_class()) };
    Ok(shapes::decoder_model(config.family, dim, stack, head, KEYS))
}
