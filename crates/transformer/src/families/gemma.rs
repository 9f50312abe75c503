//! Gemma 1 (Mesnard et al. 2024, arXiv:2403.08295), 2 (Rivière et al. 2024, arXiv:2408.00118) and 3
//! (Kamath et al. 2025, arXiv:2503.19786); transformers 5.24, `models/gemma`, `gemma2`, `gemma3`.

use super::llama::{self, Kin, LLAMA};
use super::reader::Reader;
use super::rope::{self, Defaults};
use super::{Family, ModuleNames, names};
use crate::activation::Activation;
use crate::architecture::Architecture;
use crate::attention::{AttentionBias, AttentionPositions};
use crate::error::TransformerError;
use crate::norm::{Norm, Norms};

pub(super) static GEMMA: Family = Family { model_type: "gemma", describe, ..llama::FAMILY };

pub(super) static GEMMA2: Family = Family {
    model_type: "gemma2",
    describe: describe2,
    modules: &[&llama::EMBEDDINGS, &llama::ATTENTION, &llama::FEED_FORWARD, &FOUR_NORMS],
    ..llama::FAMILY
};

pub(super) static GEMMA3: Family =
    Family { model_type: "gemma3_text", describe: describe3, ..GEMMA2 };

/// Norms ahead of both branches and of what comes out of them.
static FOUR_NORMS: [ModuleNames; 5] = names! {
    "decoder.layers.{i}.self_attention.norm_before" => "layers.{i}.input_layernorm",
    "decoder.layers.{i}.self_attention.norm_branch" => "layers.{i}.post_attention_layernorm",
    "decoder.layers.{i}.feed_forward.norm_before" => "layers.{i}.pre_feedforward_layernorm",
    "decoder.layers.{i}.feed_forward.norm_branch" => "layers.{i}.post_feedforward_layernorm",
    "decoder.final_norm" => "norm",
};

const GEMMA_KIN: Kin = Kin {
    vocab: 256_000,
    dim: 3072,
    width: 24_576,
    layers: 28,
    heads: 16,
    kv_heads: Some(16),
    head_dim: Some(256),
    max_positions: 8192,
    activation: Activation::GeluTanh,
    tied: true,
    ..LLAMA
};

const GEMMA2_KIN: Kin = Kin {
    dim: 2304,
    width: 9216,
    layers: 26,
    heads: 8,
    kv_heads: Some(4),
    activation_key: "hidden_activation",
    ..GEMMA_KIN
};

/// Positions of Gemma 3 where the config names none.
const GEMMA3_POSITIONS: u32 = 131_072;

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let activation_key = if config.json.contains("hidden_activation") {
        "hidden_activation"
    } else {
        GEMMA_KIN.activation_key
    };
    Ok(describe_common(config, Kin { activation_key, ..GEMMA_KIN })?.0)
}

fn describe2(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let mut architecture = describe_four_norms(config, GEMMA2_KIN, (Some(50.0), Some(30.0)))?;
    let window = config.window(Some(4096))?;
    config.slide(&mut architecture, window, |idx| idx % 2 == 0)?;
    Ok(architecture)
}

fn describe3(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let kin = Kin { vocab: 262_208, theta: 1e6, max_positions: GEMMA3_POSITIONS, ..GEMMA2_KIN };
    let mut architecture = describe_four_norms(config, kin, (None, None))?;
    let pattern = config.size("sliding_window_pattern", 6)?;
    let window = config.window(Some(4096))?;
    config.slide(&mut architecture, window, |idx| !(idx + 1).is_multiple_of(pattern))?;
    let norm = gemma_norm(config)?;
    for layer in architecture.layers_mut() {
        let attention = &mut layer.self_attention;
        attention.qk_norm = Some(norm);
        if attention.window.is_none() {
            continue;
        }
        // In the old spelling `rope_theta` and `rope_scaling` are those of the other layers.
        let local = if rope::has_layer_types(config, "rope_parameters") {
            let defaults = Defaults::new(attention.head_dim, GEMMA3_POSITIONS);
            rope::read_for(config, &defaults, "sliding_attention")?.rotary
        } else {
            rope::plain(config, attention.head_dim, "rope_local_base_freq")?
        };
        attention.positions = AttentionPositions::Rotary(local);
    }
    Ok(architecture)
}

fn gemma_norm(config: &Reader<'_>) -> Result<Norm, TransformerError> {
    Ok(Norm { weight_offset: 1.0, ..Norm::rms(config.eps("rms_norm_eps", 1e-6)?) })
}

/// What all three share: norms of `1 + w`, and embeddings times the root of their size.
fn describe_common(
    config: &Reader<'_>,
    kin: Kin,
) -> Result<(Architecture, Norm), TransformerError> {
    config.refuse_set("use_bidirectional_attention")?;
    let bias = AttentionBias::all(config.flag("attention_bias", false)?);
    let mut architecture = llama::describe_kin(config, &Kin { bias, ..kin })?;
    let norm = gemma_norm(config)?;
    for layer in architecture.layers_mut() {
        layer.self_attention_norms = Norms::pre(norm);
        layer.feed_forward_norms = Norms::pre(norm);
    }
    let dim = architecture.dim;
    if let Some(decoder) = &mut architecture.decoder {
        decoder.final_norm = Some(norm);
        decoder.embedding.scale = f64::from(dim).sqrt();
    }
    Ok((architecture, norm))
}

/// What 2 and 3 share. `caps` are the defaults of the scores' and the logits'.
fn describe_four_norms(
    config: &Reader<'_>,
    kin: Kin,
    caps: (Option<f32>, Option<f32>),
) -> Result<Architecture, TransformerError> {
    let (mut architecture, norm) = describe_common(config, kin)?;
    let scalar = config.json.opt_f64("query_pre_attn_scalar")?.unwrap_or(256.0);
    if scalar <= 0.0 {
        return Err(config.json.invalid("query_pre_attn_scalar", "a number above 0").into());
    }
    let score_cap = config.cap("attn_logit_softcapping", caps.0)?;
    let norms = Norms { before: Some(norm), branch_out: Some(norm), after: None };
    for layer in architecture.layers_mut() {
        layer.self_attention.scale = scalar.powf(-0.5);
        layer.self_attention.soft_cap = score_cap;
        layer.self_attention_norms = norms;
        layer.feed_forward_norms = norms;
    }
    if let Some(head) = &mut architecture.head {
        head.soft_cap = config.cap("final_logit_softcapping", caps.1)?;
    }
    Ok(architecture)
}
