//! Gemma 1 to 3. Their norms multiply by one plus the weight; GGUF has that sum as the weight.

use serde_json::{Value as Json, json};

use super::llama::GATED;
use super::{Architecture, Config, Module, names};
use crate::error::ArtifactError;
use crate::gguf::config::Meta;
use crate::gguf::rope;

pub(super) static GEMMA: Architecture =
    Architecture { name: "gemma", config: gemma, modules: |_| &[OUTER, LAYERS, TWO_NORMS, GATED] };

pub(super) static GEMMA2: Architecture = Architecture {
    name: "gemma2",
    config: gemma2,
    modules: |_| &[OUTER, LAYERS, FOUR_NORMS, GATED],
};

pub(super) static GEMMA3: Architecture = Architecture {
    name: "gemma3",
    config: gemma3,
    modules: |_| &[OUTER, LAYERS, FOUR_NORMS, HEAD_NORMS, GATED],
};

const OUTER: &[Module] = &names! {
    Plain:
        "token_embd" => "model.embed_tokens",
        "output" => "lm_head";
    PlusOne: "output_norm" => "model.norm";
};

const LAYERS: &[Module] = &names! {
    Plain:
        "blk.{i}.attn_q" => "model.layers.{i}.self_attn.q_proj",
        "blk.{i}.attn_k" => "model.layers.{i}.self_attn.k_proj",
        "blk.{i}.attn_v" => "model.layers.{i}.self_attn.v_proj",
        "blk.{i}.attn_output" => "model.layers.{i}.self_attn.o_proj";
    PlusOne: "blk.{i}.attn_norm" => "model.layers.{i}.input_layernorm";
};

const TWO_NORMS: &[Module] = &names! {
    PlusOne: "blk.{i}.ffn_norm" => "model.layers.{i}.post_attention_layernorm";
};

const FOUR_NORMS: &[Module] = &names! {
    PlusOne:
        "blk.{i}.post_attention_norm" => "model.layers.{i}.post_attention_layernorm",
        "blk.{i}.ffn_norm" => "model.layers.{i}.pre_feedforward_layernorm",
        "blk.{i}.post_ffw_norm" => "model.layers.{i}.post_feedforward_layernorm",
};

const HEAD_NORMS: &[Module] = &names! {
    PlusOne:
        "blk.{i}.attn_q_norm" => "model.layers.{i}.self_attn.q_norm",
        "blk.{i}.attn_k_norm" => "model.layers.{i}.self_attn.k_norm",
};

/// What the three have in common.
fn common(
    meta: &Meta<'_, '_>,
    model_type: &str,
    class: &str,
) -> Result<(Config, u32), ArtifactError> {
    let heads = meta.heads()?;
    let mut config = meta.decoder(model_type, class)?;
    config.extend([
        ("num_key_value_heads".to_owned(), heads.n_kv_heads.into()),
        ("head_dim".to_owned(), heads.head_dim.into()),
        ("hidden_activation".to_owned(), "gelu_pytorch_tanh".into()),
        ("hidden_act".to_owned(), "gelu_pytorch_tanh".into()),
        ("attention_bias".to_owned(), false.into()),
        ("rms_norm_eps".to_owned(), meta.f64("attention.layer_norm_rms_epsilon")?.into()),
    ]);
    Ok((config, heads.head_dim))
}

fn gemma(meta: &Meta<'_, '_>) -> Result<Config, ArtifactError> {
    let (mut config, head_dim) = common(meta, "gemma", "GemmaForCausalLM")?;
    rope::write(meta, head_dim, &mut config)?;
    Ok(config)
}

/// What scores are divided by the root of, where a file does not say what they are multiplied by: the
/// size of a head, save in the largest model of a generation, told by its layers, whose makers chose
/// the width by the number of heads.
fn pre_attention_scalar(meta: &Meta<'_, '_>, largest: u32) -> Result<Json, ArtifactError> {
    let heads = meta.heads()?;
    if let Some(scale) = meta.opt_f64("attention.scale")?.filter(|scale| *scale > 0.0) {
        return Ok((1.0 / (scale * scale)).into());
    }
    if meta.n_layers()? != largest {
        return Ok(heads.head_dim.into());
    }
    Ok((meta.u32("embedding_length")? / heads.n_heads).into())
}

fn gemma2(meta: &Meta<'_, '_>) -> Result<Config, ArtifactError> {
    let (mut config, head_dim) = common(meta, "gemma2", "Gemma2ForCausalLM")?;
    let n_layers = meta.n_layers()?;
    let soft_cap = |key: &str, default: f64| Ok(meta.opt_f64(key)?.unwrap_or(default).into());
    config.extend([
        ("attn_logit_softcapping".to_owned(), soft_cap("attn_logit_softcapping", 50.0)?),
        ("final_logit_softcapping".to_owned(), soft_cap("final_logit_softcapping", 30.0)?),
        (
            "sliding_window".to_owned(),
            meta.opt_u32("attention.sliding_window")?.unwrap_or(4096).into(),
        ),
        ("query_pre_attn_scalar".to_owned(), pre_attention_scalar(meta, 46)?),
        ("layer_types".to_owned(), layer_types(n_layers, 2)),
    ]);
    rope::write(meta, head_dim, &mut config)?;
    Ok(config)
}

fn gemma3(meta: &Meta<'_, '_>) -> Result<Config, ArtifactError> {
    let (mut config, head_dim) = common(meta, "gemma3_text", "Gemma3ForCausalLM")?;
    let n_layers = meta.n_layers()?;
    let window = meta.opt_u32("attention.sliding_window")?.filter(|window| *window > 0);
    // Neither the pattern nor the base of the local layers is in most files.
    let pattern = match window {
        None => 1,
        Some(_) => meta.opt_u32("attention.sliding_window_pattern")?.unwrap_or(6).max(1),
    };
    config.extend([
        ("sliding_window".to_owned(), json!(window)),
        ("sliding_window_pattern".to_owned(), pattern.into()),
        ("layer_types".to_owned(), layer_types(n_layers, pattern)),
        ("query_pre_attn_scalar".to_owned(), pre_attention_scalar(meta, 62)?),
        (
            "rope_local_base_freq".to_owned(),
            meta.opt_f64("rope.freq_base_swa")?.unwrap_or(10_000.0).into(),
        ),
    ]);
    if let Some(cap) = meta.opt_f64("final_logit_softcapping")? {
        config.insert("final_logit_softcapping".to_owned(), cap.into());
    }
    rope::write_with_base(meta, head_dim, 1e6, &mut config)?;
    Ok(config)
}

/// Every layer attends to a window, save each that is a multiple of `pattern`, counted from one.
fn layer_types(n_layers: u32, pattern: u32) -> Json {
    let of = |layer: u32| match layer.is_multiple_of(pattern) {
        true => "full_attention",
        false => "sliding_attention",
    };
    (1..=n_layers).map(of).collect()
}
