//! GPT-2 (Radford et al. 2019); transformers 5.24, `models/gpt2`.

use super::reader::Reader;
use super::shapes;
use super::{Family, Form, FusedPart, ModuleNames, Place, names};
use crate::activation::Activation;
use crate::architecture::{Architecture, ConfigKeys, Layer, LmHead, Stack, StackKeys};
use crate::attention::{Attention, AttentionBias};
use crate::embedding::{EmbeddedPositions, Embedding};
use crate::error::TransformerError;
use crate::norm::{Norm, Norms};

pub(super) static FAMILY: Family = Family {
    model_type: "gpt2",
    aliases: &ALIASES,
    describe,
    prefixes: &["transformer.", ""],
    probes: &["h.0.attn.c_attn.weight", "wpe.weight"],
    modules: &[&PLAIN, &SPECIAL],
};

/// Other names of the sizes in the configs of GPT-2 and GPT-J.
pub(super) static ALIASES: [(&str, &str); 4] = [
    ("hidden_size", "n_embd"),
    ("max_position_embeddings", "n_positions"),
    ("num_attention_heads", "n_head"),
    ("num_hidden_layers", "n_layer"),
];

static PLAIN: [ModuleNames; 4] = names! {
    "decoder.embedding.positions" => "wpe",
    "decoder.layers.{i}.self_attention.norm_before" => "h.{i}.ln_1",
    "decoder.layers.{i}.feed_forward.norm_before" => "h.{i}.ln_2",
    "decoder.final_norm" => "ln_f",
};

const TOKENS: Place = Place::new("wte");
const LM_HEAD: Place = Place::top("lm_head");
const FUSED: Place = Place::new("h.{i}.attn.c_attn");

/// The token table and the head of GPT-2, GPT-Neo and GPT-J.
pub(super) static EMBEDDINGS: [ModuleNames; 2] = [
    ModuleNames { canonical: "decoder.embedding.tokens", found: &[TOKENS, LM_HEAD.tied()] },
    ModuleNames { canonical: "head", found: &[LM_HEAD, TOKENS.tied()] },
];

static SPECIAL: [ModuleNames; 8] = [
    ModuleNames { canonical: "decoder.embedding.tokens", found: &[TOKENS, LM_HEAD.tied()] },
    ModuleNames { canonical: "head", found: &[LM_HEAD, TOKENS.tied()] },
    ModuleNames {
        canonical: "decoder.layers.{i}.self_attention.q",
        found: &[FUSED.form(Form::TransposedFused(FusedPart::Q))],
    },
    ModuleNames {
        canonical: "decoder.layers.{i}.self_attention.k",
        found: &[FUSED.form(Form::TransposedFused(FusedPart::K))],
    },
    ModuleNames {
        canonical: "decoder.layers.{i}.self_attention.v",
        found: &[FUSED.form(Form::TransposedFused(FusedPart::V))],
    },
    ModuleNames {
        canonical: "decoder.layers.{i}.self_attention.o",
        found: &[Place::new("h.{i}.attn.c_proj").form(Form::Transposed)],
    },
    ModuleNames {
        canonical: "decoder.layers.{i}.feed_forward.up",
        found: &[Place::new("h.{i}.mlp.c_fc").form(Form::Transposed)],
    },
    ModuleNames {
        canonical: "decoder.layers.{i}.feed_forward.down",
        found: &[Place::new("h.{i}.mlp.c_proj").form(Form::Transposed)],
    },
];

/// The names of the sizes of GPT-2 and GPT-J.
pub(super) const KEYS: ConfigKeys =
    ConfigKeys { vocab: "vocab_size", dim: "n_embd", positions: "n_positions" };
pub(super) const STACK_KEYS: StackKeys =
    StackKeys { layers: "n_layer", heads: "n_head", kv_heads: "n_head", feed_forward: "n_inner" };

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    config.refuse_set("add_cross_attention")?;
    let dim = config.size("n_embd", 768)?;
    let heads = shapes::whole_heads(config, ("n_embd", dim), ("n_head", 12))?;
    let max_positions = config.rows("n_positions", 1024)?;
    let norm = Norm::layer(config.eps("layer_norm_epsilon", 1e-5)?);
    let mut attention = Attention::new(heads, true);
    attention.bias = AttentionBias::all(true);
    if !config.flag("scale_attn_weights", true)? {
        attention.scale = 1.0;
    }
    let width = config.opt_size("n_inner")?.unwrap_or(4 * dim);
    let activation = config.activation("activation_function", Activation::GeluTanh)?;
    let feed_forward = shapes::plain(width, activation, true);
    let layer = Layer::new(attention, feed_forward, Norms::pre(norm));
    let mut layers = vec![layer; config.layers("n_layer", 12)? as usize];
    if config.flag("scale_attn_by_inverse_layer_idx", false)? {
        for (idx, layer) in layers.iter_mut().enumerate() {
            layer.self_attention.scale /= (idx + 1) as f64;
        }
    }
    let embedding = Embedding {
        positions: EmbeddedPositions::Learned { n_rows: max_positions, offset: 0, skipped: None },
        ..Embedding::tokens(config.rows("vocab_size", 50_257)?, dim)
    };
    let mut stack = Stack::new("decoder", embedding, layers, max_positions, STACK_KEYS);
    stack.final_norm = Some(norm);
    let tied = config.flag("tie_word_embeddings", true)?;
    let head = LmHead::new(tied, config.has_lm_class());
    Ok(shapes::decoder_model(config.family, dim, stack, head, KEYS))
}
