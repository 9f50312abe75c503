//! LLaMA 1 to 3 (Touvron et al. 2023, arXiv:2302.13971), and what its kin share with it;
//! transformers 5.24, `models/llama`.

use super::reader::Reader;
use super::rope::{self, Defaults};
use super::shapes::{self, KEYS, STACK_KEYS};
use super::{Family, ModuleNames, Place, names};
use crate::activation::Activation;
use crate::architecture::{Architecture, Layer, LmHead, Stack, StackKeys};
use crate::attention::{Attention, AttentionBias, AttentionPositions, Heads};
use crate::embedding::Embedding;
use crate::error::TransformerError;
use crate::feed_forward::{FeedForward, FeedForwardForm};
use crate::norm::{Norm, Norms};

pub(super) static FAMILY: Family = Family {
    model_type: "llama",
    aliases: &[],
    describe,
    prefixes: &PREFIXES,
    probes: &PROBES,
    modules: &[&EMBEDDINGS, &ATTENTION, &FEED_FORWARD, &NORMS],
};

pub(super) static PREFIXES: [&str; 2] = ["model.", ""];
pub(super) static PROBES: [&str; 3] =
    ["layers.0.self_attn.o_proj.weight", "norm.weight", "embed_tokens.weight"];

const TOKENS: Place = Place::new("embed_tokens");
const LM_HEAD: Place = Place::top("lm_head");

pub(super) static EMBEDDINGS: [ModuleNames; 2] = [
    ModuleNames { canonical: "decoder.embedding.tokens", found: &[TOKENS, LM_HEAD.tied()] },
    ModuleNames { canonical: "head", found: &[LM_HEAD, TOKENS.tied()] },
];

pub(super) static ATTENTION: [ModuleNames; 6] = names! {
    "decoder.layers.{i}.self_attention.q" => "layers.{i}.self_attn.q_proj",
    "decoder.layers.{i}.self_attention.k" => "layers.{i}.self_attn.k_proj",
    "decoder.layers.{i}.self_attention.v" => "layers.{i}.self_attn.v_proj",
    "decoder.layers.{i}.self_attention.o" => "layers.{i}.self_attn.o_proj",
    "decoder.layers.{i}.self_attention.q_norm" => "layers.{i}.self_attn.q_norm",
    "decoder.layers.{i}.self_attention.k_norm" => "layers.{i}.self_attn.k_norm",
};

pub(super) static FEED_FORWARD: [ModuleNames; 3] = names! {
    "decoder.layers.{i}.feed_forward.gate" => "layers.{i}.mlp.gate_proj",
    "decoder.layers.{i}.feed_forward.up" => "layers.{i}.mlp.up_proj",
    "decoder.layers.{i}.feed_forward.down" => "layers.{i}.mlp.down_proj",
};

pub(super) static NORMS: [ModuleNames; 3] = names! {
    "decoder.layers.{i}.self_attention.norm_before" => "layers.{i}.input_layernorm",
    "decoder.layers.{i}.feed_forward.norm_before" => "layers.{i}.post_attention_layernorm",
    "decoder.final_norm" => "norm",
};

pub(super) static STACK: StackKeys = StackKeys { kv_heads: "num_key_value_heads", ..STACK_KEYS };

/// What the configs of LLaMA's kin say when they say nothing.
pub(super) struct Kin {
    pub(super) vocab: u32,
    pub(super) dim: u32,
    pub(super) width: u32,
    pub(super) layers: u32,
    pub(super) heads: u32,
    /// As many as `heads` where it is `None`.
    pub(super) kv_heads: Option<u32>,
    /// The quotient of `dim` and `heads` where it is `None`.
    pub(super) head_dim: Option<u32>,
    pub(super) eps: f64,
    pub(super) theta: f64,
    pub(super) max_positions: u32,
    /// See [`Defaults::partial`].
    pub(super) partial: Option<f64>,
    pub(super) activation: Activation,
    pub(super) activation_key: &'static str,
    pub(super) bias: AttentionBias,
    pub(super) tied: bool,
}

pub(super) const LLAMA: Kin = Kin {
    vocab: 32_000,
    dim: 4096,
    width: 11_008,
    layers: 32,
    heads: 32,
    kv_heads: None,
    head_dim: None,
    eps: 1e-6,
    theta: 10_000.0,
    max_positions: 2048,
    partial: None,
    activation: Activation::Silu,
    activation_key: "hidden_act",
    bias: AttentionBias { q: false, k: false, v: false, o: false },
    tied: false,
};

/// Query heads, and key and value heads that divide them.
pub(super) fn grouped_heads(
    config: &Reader<'_>,
    dim: u32,
    kin: &Kin,
) -> Result<Heads, TransformerError> {
    let n = config.size("num_attention_heads", kin.heads)?;
    let n_kv = match (config.opt_size("num_key_value_heads")?, kin.kv_heads) {
        (Some(n_kv), _) => n_kv,
        (None, Some(n_kv)) if !config.is_null("num_key_value_heads") => n_kv,
        (None, _) => n,
    };
    if !n.is_multiple_of(n_kv) {
        let wanted = format!("a divisor of num_attention_heads = {n}");
        return Err(config.json.invalid("num_key_value_heads", wanted).into());
    }
    let head_dim = match config.opt_size("head_dim")?.or(kin.head_dim) {
        Some(head_dim) => head_dim,
        None => config.head_dim(("hidden_size", dim), ("num_attention_heads", n))?,
    };
    Ok(Heads { n, n_kv, dim: head_dim })
}

/// The description that LLaMA's kin start from.
pub(super) fn describe_kin(
    config: &Reader<'_>,
    kin: &Kin,
) -> Result<Architecture, TransformerError> {
    let dim = config.size("hidden_size", kin.dim)?;
    let heads = grouped_heads(config, dim, kin)?;
    let defaults = Defaults {
        theta: kin.theta,
        partial: kin.partial,
        ..Defaults::new(heads.dim, kin.max_positions)
    };
    let rope = rope::read_for(config, &defaults, "full_attention")?;
    let norm = Norm::rms(config.eps("rms_norm_eps", kin.eps)?);
    let mut attention = Attention::new(heads, true);
    attention.positions = AttentionPositions::Rotary(rope.rotary);
    attention.bias = kin.bias;
    let feed_forward = FeedForward {
        width: config.size("intermediate_size", kin.width)?,
        activation: config.activation(kin.activation_key, kin.activation)?,
        form: FeedForwardForm::Gated,
        bias: false,
    };
    let layer = Layer::new(attention, feed_forward, Norms::pre(norm));
    let layers = vec![layer; config.layers("num_hidden_layers", kin.layers)? as usize];
    let embedding = Embedding::tokens(config.rows("vocab_size", kin.vocab)?, dim);
    let mut stack = Stack::new("decoder", embedding, layers, rope.max_positions, STACK);
    stack.final_norm = Some(norm);
    let tied = config.flag("tie_word_embeddings", kin.tied)?;
    let head = LmHead::new(tied, config.has_lm_class());
    Ok(shapes::decoder_model(config.family, dim, stack, head, KEYS))
}

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let attention_bias = config.flag("attention_bias", false)?;
    let kin = Kin { bias: AttentionBias::all(attention_bias), ..LLAMA };
    let mut architecture = describe_kin(config, &kin)?;
    let mlp_bias = config.flag("mlp_bias", false)?;
    architecture.layers_mut().for_each(|layer| layer.feed_forward.bias = mlp_bias);
    Ok(architecture)
}
