//! GPT-J (Wang & Komatsuzaki 2021); transformers 5.24, `models/gptj`.

use super::reader::Reader;
use super::{Family, ModuleNames, gpt2, names, shapes};
use crate::activation::Activation;
use crate::architecture::{Architecture, HeadBias, Layer, LmHead, Residual, Stack};
use crate::attention::{Attention, AttentionPositions};
use crate::embedding::Embedding;
use crate::error::TransformerError;
use crate::norm::{Norm, Norms};
use crate::rotary::{Rotary, RotaryPairs, RotaryScaling};

pub(super) static FAMILY: Family = Family {
    model_type: "gptj",
    aliases: &gpt2::ALIASES,
    describe,
    prefixes: &["transformer.", ""],
    probes: &["h.0.attn.q_proj.weight", "h.0.mlp.fc_in.weight"],
    modules: &[&gpt2::EMBEDDINGS, &MODULES],
};

static MODULES: [ModuleNames; 8] = names! {
    "decoder.layers.{i}.self_attention.q" => "h.{i}.attn.q_proj",
    "decoder.layers.{i}.self_attention.k" => "h.{i}.attn.k_proj",
    "decoder.layers.{i}.self_attention.v" => "h.{i}.attn.v_proj",
    "decoder.layers.{i}.self_attention.o" => "h.{i}.attn.out_proj",
    "decoder.layers.{i}.self_attention.norm_before" => "h.{i}.ln_1",
    "decoder.layers.{i}.feed_forward.up" => "h.{i}.mlp.fc_in",
    "decoder.layers.{i}.feed_forward.down" => "h.{i}.mlp.fc_out",
    "decoder.final_norm" => "ln_f",
};

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let dim = config.size("n_embd", 4096)?;
    let heads = shapes::whole_heads(config, ("n_embd", dim), ("n_head", 16))?;
    let max_positions = config.rows("n_positions", 2048)?;
    let norm = Norm::layer(config.eps("layer_norm_epsilon", 1e-5)?);
    let rotated = match config.opt_size("rotary_dim")? {
        Some(rotated) => rotated,
        None if config.is_null("rotary_dim") => heads.dim,
        None => 64,
    };
    if rotated > heads.dim || !rotated.is_multiple_of(2) {
        let wanted = format!("an even number up to the size of a head, {}", heads.dim);
        return Err(config.json.invalid("rotary_dim", wanted).into());
    }
    let mut attention = Attention::new(heads, true);
    attention.positions = AttentionPositions::Rotary(Rotary {
        dim: rotated,
        theta: 10_000.0,
        pairs: RotaryPairs::Interleaved,
        scaling: RotaryScaling::None,
    });
    let width = config.opt_size("n_inner")?.unwrap_or(4 * dim);
    let activation = config.activation("activation_function", Activation::GeluTanh)?;
    let layer = Layer {
        feed_forward_norms: Norms::default(),
        residual: Residual::Parallel { shared_norm: true },
        ..Layer::new(attention, shapes::plain(width, activation, true), Norms::pre(norm))
    };
    let layers = vec![layer; config.layers("n_layer", 28)? as usize];
    let embedding = Embedding::tokens(config.rows("vocab_size", 50_400)?, dim);
    let mut stack = Stack::new("decoder", embedding, layers, max_positions, gpt2::STACK_KEYS);
    stack.final_norm = Some(norm);
    let tied = config.flag("tie_word_embeddings", false)?;
    let head = LmHead { bias: HeadBias::Required, ..LmHead::new(tied, config.has_lm_class()) };
    Ok(shapes::decoder_model(config.family, dim, stack, head, gpt2::KEYS))
}
