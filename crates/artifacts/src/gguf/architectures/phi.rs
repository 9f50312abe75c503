//! Phi 2 and 3.

use serde_json::json;

use super::llama::OUTER;
use super::{Architecture, Config, Module, names};
use crate::error::ArtifactError;
use crate::gguf::config::Meta;
use crate::gguf::rope;

pub(super) static PHI2: Architecture =
    Architecture { name: "phi2", config: phi2, modules: |_| &[PHI2_OUTER, PHI2_LAYERS] };

pub(super) static PHI3: Architecture =
    Architecture { name: "phi3", config: phi3, modules: |_| &[OUTER, PHI3_LAYERS] };

const PHI2_OUTER: &[Module] = &names! {
    Plain:
        "token_embd" => "model.embed_tokens",
        "output_norm" => "model.final_layernorm",
        "output" => "lm_head",
};

const PHI2_LAYERS: &[Module] = &names! {
    Plain:
        "blk.{i}.attn_norm" => "model.layers.{i}.input_layernorm",
        "blk.{i}.attn_q" => "model.layers.{i}.self_attn.q_proj",
        "blk.{i}.attn_k" => "model.layers.{i}.self_attn.k_proj",
        "blk.{i}.attn_v" => "model.layers.{i}.self_attn.v_proj",
        "blk.{i}.attn_output" => "model.layers.{i}.self_attn.dense",
        "blk.{i}.ffn_up" => "model.layers.{i}.mlp.fc1",
        "blk.{i}.ffn_down" => "model.layers.{i}.mlp.fc2";
    Fused: "blk.{i}.attn_qkv" => "model.layers.{i}.self_attn.{p}_proj";
};

const PHI3_LAYERS: &[Module] = &names! {
    Plain:
        "blk.{i}.attn_norm" => "model.layers.{i}.input_layernorm",
        "blk.{i}.attn_qkv" => "model.layers.{i}.self_attn.qkv_proj",
        "blk.{i}.attn_output" => "model.layers.{i}.self_attn.o_proj",
        "blk.{i}.ffn_norm" => "model.layers.{i}.post_attention_layernorm",
        "blk.{i}.ffn_up" => "model.layers.{i}.mlp.gate_up_proj",
        "blk.{i}.ffn_down" => "model.layers.{i}.mlp.down_proj",
};

fn phi2(meta: &Meta<'_, '_>) -> Result<Config, ArtifactError> {
    let heads = meta.heads()?;
    let mut config = meta.decoder("phi", "PhiForCausalLM")?;
    config.extend([
        ("num_key_value_heads".to_owned(), heads.n_kv_heads.into()),
        ("hidden_act".to_owned(), "gelu_new".into()),
        ("layer_norm_eps".to_owned(), meta.f64("attention.layer_norm_epsilon")?.into()),
        ("qk_layernorm".to_owned(), false.into()),
    ]);
    rope::write(meta, heads.head_dim, &mut config)?;
    Ok(config)
}

fn phi3(meta: &Meta<'_, '_>) -> Result<Config, ArtifactError> {
    let heads = meta.heads()?;
    let mut config = meta.decoder("phi3", "Phi3ForCausalLM")?;
    let window = meta.opt_u32("attention.sliding_window")?.filter(|window| *window > 0);
    config.extend([
        ("num_key_value_heads".to_owned(), heads.n_kv_heads.into()),
        ("hidden_act".to_owned(), "silu".into()),
        ("rms_norm_eps".to_owned(), meta.f64("attention.layer_norm_rms_epsilon")?.into()),
        ("sliding_window".to_owned(), json!(window)),
    ]);
    if let Some(original) = meta.opt_u32("rope.scaling.original_context_length")? {
        config.insert("original_max_position_embeddings".to_owned(), original.into());
    }
    rope::write(meta, heads.head_dim, &mut config)?;
    Ok(config)
}
