//! GPT-Neo (Black et al. 2021); transformers 5.24, `models/gpt_neo`.

use serde_json::Value;

use super::reader::Reader;
use super::shapes::{self, KEYS};
use super::{Family, ModuleNames, gpt2, names};
use crate::activation::Activation;
use crate::architecture::{Architecture, Layer, LmHead, Stack, StackKeys};
use crate::attention::{Attention, AttentionBias};
use crate::embedding::{EmbeddedPositions, Embedding};
use crate::error::TransformerError;
use crate::norm::{Norm, Norms};

pub(super) static FAMILY: Family = Family {
    model_type: "gpt_neo",
    aliases: &[("num_attention_heads", "num_heads"), ("num_hidden_layers", "num_layers")],
    describe,
    prefixes: &["transformer.", ""],
    probes: &["h.0.attn.attention.q_proj.weight", "wpe.weight"],
    modules: &[&gpt2::EMBEDDINGS, &MODULES],
};

static MODULES: [ModuleNames; 10] = names! {
    "decoder.embedding.positions" => "wpe",
    "decoder.layers.{i}.self_attention.q" => "h.{i}.attn.attention.q_proj",
    "decoder.layers.{i}.self_attention.k" => "h.{i}.attn.attention.k_proj",
    "decoder.layers.{i}.self_attention.v" => "h.{i}.attn.attention.v_proj",
    "decoder.layers.{i}.self_attention.o" => "h.{i}.attn.attention.out_proj",
    "decoder.layers.{i}.self_attention.norm_before" => "h.{i}.ln_1",
    "decoder.layers.{i}.feed_forward.norm_before" => "h.{i}.ln_2",
    "decoder.layers.{i}.feed_forward.up" => "h.{i}.mlp.c_fc",
    "decoder.layers.{i}.feed_forward.down" => "h.{i}.mlp.c_proj",
    "decoder.final_norm" => "ln_f",
};

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let dim = config.size("hidden_size", 2048)?;
    let heads = shapes::whole_heads(config, ("hidden_size", dim), ("num_heads", 16))?;
    let max_positions = config.rows("max_position_embeddings", 2048)?;
    let norm = Norm::layer(config.eps("layer_norm_epsilon", 1e-5)?);
    let mut attention = Attention::new(heads, true);
    attention.scale = 1.0;
    attention.bias = AttentionBias { o: true, ..AttentionBias::default() };
    let width = config.opt_size("intermediate_size")?.unwrap_or(4 * dim);
    let activation = config.activation("activation_function", Activation::GeluTanh)?;
    let feed_forward = shapes::plain(width, activation, true);
    let window = config.rows("window_size", 256)?;
    let layer = Layer::new(attention, feed_forward, Norms::pre(norm));
    let n_layers = config.layers("num_layers", 24)?;
    let layers = local_layers(config, n_layers)?.into_iter().map(|local| {
        let mut layer = layer.clone();
        layer.self_attention.window = local.then_some(window);
        layer
    });
    let embedding = Embedding {
        positions: EmbeddedPositions::Learned { n_rows: max_positions, offset: 0, skipped: None },
        ..Embedding::tokens(config.rows("vocab_size", 50_257)?, dim)
    };
    let keys = StackKeys {
        layers: "num_layers",
        heads: "num_heads",
        kv_heads: "num_heads",
        feed_forward: "intermediate_size",
    };
    let mut stack = Stack::new("decoder", embedding, layers.collect(), max_positions, keys);
    stack.final_norm = Some(norm);
    let tied = config.flag("tie_word_embeddings", true)?;
    let head = LmHead::new(tied, config.has_lm_class());
    Ok(shapes::decoder_model(config.family, dim, stack, head, KEYS))
}

/// Which of `n_layers` see a window only: `attention_types` is a list of kinds and how often they
/// are repeated, `[[["global", "local"], 12]]`.
fn local_layers(config: &Reader<'_>, n_layers: u32) -> Result<Vec<bool>, TransformerError> {
    const KEY: &str = "attention_types";
    let invalid = || -> TransformerError {
        let wanted = format!(
            "lists of \"global\" and \"local\" with a number of repetitions, {n_layers} layers in all"
        );
        config.json.invalid(KEY, wanted).into()
    };
    let Some(groups) = config.json.get(KEY)? else {
        return Ok((0..n_layers).map(|idx| idx % 2 == 1).collect());
    };
    let mut local = Vec::new();
    for group in groups.as_array().ok_or_else(invalid)? {
        let [kinds, times] = group.as_array().map(Vec::as_slice).unwrap_or_default() else {
            return Err(invalid());
        };
        let kinds = kinds.as_array().ok_or_else(invalid)?;
        let times = times.as_u64().filter(|n| *n <= u64::from(n_layers)).ok_or_else(invalid)?;
        if kinds.len() > n_layers as usize {
            return Err(invalid());
        }
        for _ in 0..times {
            for kind in kinds {
                local.push(match kind {
                    Value::String(kind) if kind == "global" => false,
                    Value::String(kind) if kind == "local" => true,
                    _ => return Err(invalid()),
                });
            }
            if local.len() > n_layers as usize {
                return Err(invalid());
            }
        }
    }
    if local.len() == n_layers as usize { Ok(local) } else { Err(invalid()) }
}
