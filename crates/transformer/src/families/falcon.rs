//! Falcon (Almazrouei et al. 2023, arXiv:2311.16867); transformers 5.24, `models/falcon`.

use super::reader::Reader;
use super::rope::{self, Defaults};
use super::shapes::{self, KEYS, STACK_KEYS, UNBOUNDED};
use super::{Family, ModuleNames, Place, bloom, names};
use crate::activation::Activation;
use crate::architecture::{Architecture, Layer, LmHead, Residual, Stack, StackKeys};
use crate::attention::{Attention, AttentionBias, AttentionPositions, Heads};
use crate::embedding::Embedding;
use crate::error::TransformerError;
use crate::norm::{Norm, Norms};
use crate::positions::Alibi;

pub(super) static FAMILY: Family = Family {
    model_type: "falcon",
    aliases: &[
        ("n_embed", "hidden_size"),
        ("n_layer", "num_hidden_layers"),
        ("n_head", "num_attention_heads"),
        ("n_head_kv", "num_kv_heads"),
    ],
    describe,
    prefixes: &["transformer.", ""],
    probes: &["h.0.self_attention.query_key_value.weight", "word_embeddings.weight"],
    modules: &[&bloom::EMBEDDINGS, &bloom::QKV, &NORMS, &MODULES],
};

/// One norm, or one for each of the parallel branches.
static NORMS: [ModuleNames; 2] = [
    ModuleNames {
        canonical: "decoder.layers.{i}.self_attention.norm_before",
        found: &[Place::new("h.{i}.input_layernorm"), Place::new("h.{i}.ln_attn")],
    },
    ModuleNames {
        canonical: "decoder.layers.{i}.feed_forward.norm_before",
        found: &[Place::new("h.{i}.post_attention_layernorm"), Place::new("h.{i}.ln_mlp")],
    },
];

static MODULES: [ModuleNames; 4] = names! {
    "decoder.layers.{i}.self_attention.o" => "h.{i}.self_attention.dense",
    "decoder.layers.{i}.feed_forward.up" => "h.{i}.mlp.dense_h_to_4h",
    "decoder.layers.{i}.feed_forward.down" => "h.{i}.mlp.dense_4h_to_h",
    "decoder.final_norm" => "ln_f",
};

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let dim = config.size("hidden_size", 4544)?;
    let new = config.flag("new_decoder_architecture", false)?;
    let heads = heads(config, dim, new)?;
    let norm = Norm::layer(config.eps("layer_norm_epsilon", 1e-5)?);
    let has_bias = config.flag("bias", false)?;
    let mut attention = Attention::new(heads, true);
    attention.bias = AttentionBias::all(has_bias);
    let max_positions = if config.flag("alibi", false)? {
        let scale = attention.scale as f32;
        attention.positions = AttentionPositions::Alibi(Alibi { rounded: true, scale });
        UNBOUNDED
    } else {
        let rope = rope::read(config, &Defaults::new(heads.dim, 2048))?;
        attention.positions = AttentionPositions::Rotary(rope.rotary);
        rope.max_positions
    };
    let width = config.opt_size("ffn_hidden_size")?.unwrap_or(4 * dim);
    let activation = config.activation("activation", Activation::Gelu)?;
    let feed_forward = shapes::plain(width, activation, has_bias);
    let mut layer = Layer::new(attention, feed_forward, Norms::pre(norm));
    if new || config.flag("parallel_attn", true)? {
        let n_norms = config.json.opt_u32("num_ln_in_parallel_attn")?;
        let shared_norm = !(new && n_norms.unwrap_or(2) == 2);
        if n_norms.is_some_and(|n| n != 1 && !(n == 2 && new)) {
            let wanted = if new { "1 or 2" } else { "1" };
            return Err(config.unsupported("num_ln_in_parallel_attn", wanted));
        }
        layer.residual = Residual::Parallel { shared_norm };
        if shared_norm {
            layer.feed_forward_norms = Norms::default();
        }
    }
    let layers = vec![layer; config.layers("num_hidden_layers", 32)? as usize];
    let embedding = Embedding::tokens(config.rows("vocab_size", 65_024)?, dim);
    let keys =
        StackKeys { kv_heads: "num_kv_heads", feed_forward: "ffn_hidden_size", ..STACK_KEYS };
    let mut stack = Stack::new("decoder", embedding, layers, max_positions, keys);
    stack.final_norm = Some(norm);
    let tied = config.flag("tie_word_embeddings", true)?;
    let head = LmHead::new(tied, config.has_lm_class());
    Ok(shapes::decoder_model(config.family, dim, stack, head, KEYS))
}

/// Groups of heads that share keys and values in the new architecture; in the old one all heads
/// share one, or each has its own.
fn heads(config: &Reader<'_>, dim: u32, new: bool) -> Result<Heads, TransformerError> {
    let mut heads = shapes::whole_heads(config, ("hidden_size", dim), ("num_attention_heads", 71))?;
    if new {
        heads.n_kv = config.opt_size("num_kv_heads")?.unwrap_or(heads.n);
        if !heads.n.is_multiple_of(heads.n_kv) {
            let wanted = format!("a divisor of num_attention_heads = {}", heads.n);
            return Err(config.json.invalid("num_kv_heads", wanted).into());
        }
    } else if config.flag("multi_query", true)? {
        heads.n_kv = 1;
    }
    Ok(heads)
}
