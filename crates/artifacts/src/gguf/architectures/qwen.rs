//! Qwen 2 and 3.

use super::llama::{GATED, OUTER};
use super::{Architecture, Config, Module, names};
use crate::error::ArtifactError;
use crate::gguf::config::Meta;
use crate::gguf::rope;

pub(super) static QWEN2: Architecture = Architecture {
    name: "qwen2",
    config: |meta| config(meta, "qwen2", "Qwen2ForCausalLM"),
    modules: |_| &[OUTER, LAYERS, GATED],
};

pub(super) static QWEN3: Architecture = Architecture {
    name: "qwen3",
    config: |meta| config(meta, "qwen3", "Qwen3ForCausalLM"),
    modules: |_| &[OUTER, LAYERS, NORMS, GATED],
};

const LAYERS: &[Module] = &names! {
    Plain:
        "blk.{i}.attn_norm" => "model.layers.{i}.input_layernorm",
        "blk.{i}.attn_q" => "model.layers.{i}.self_attn.q_proj",
        "blk.{i}.attn_k" => "model.layers.{i}.self_attn.k_proj",
        "blk.{i}.attn_v" => "model.layers.{i}.self_attn.v_proj",
        "blk.{i}.attn_output" => "model.layers.{i}.self_attn.o_proj",
        "blk.{i}.ffn_norm" => "model.layers.{i}.post_attention_layernorm",
};

const NORMS: &[Module] = &names! {
    Plain:
        "blk.{i}.attn_q_norm" => "model.layers.{i}.self_attn.q_norm",
        "blk.{i}.attn_k_norm" => "model.layers.{i}.self_attn.k_norm",
};

fn config(meta: &Meta<'_, '_>, model_type: &str, class: &str) -> Result<Config, ArtifactError> {
    let heads = meta.heads()?;
    let mut config = meta.decoder(model_type, class)?;
    config.extend([
        ("num_key_value_heads".to_owned(), heads.n_kv_heads.into()),
        ("head_dim".to_owned(), heads.head_dim.into()),
        ("hidden_act".to_owned(), "silu".into()),
        ("rms_norm_eps".to_owned(), meta.f64("attention.layer_norm_rms_epsilon")?.into()),
        ("use_sliding_window".to_owned(), false.into()),
    ]);
    if model_type == "qwen3" {
        config.insert("attention_bias".to_owned(), meta.header.has("blk.0.attn_q.bias").into());
    }
    rope::write(meta, heads.head_dim, &mut config)?;
    Ok(config)
}
