//! LLaMA, and Mistral and Mixtral, which GGUF calls by the same name.

use serde_json::json;

use super::{Architecture, Config, Module, names};
use crate::error::ArtifactError;
use crate::gguf::config::Meta;
use crate::gguf::header::Header;
use crate::gguf::rope;

pub(super) static LLAMA: Architecture = Architecture { name: "llama", config, modules };

/// The names that all families have which follow LLaMA's.
pub(super) const OUTER: &[Module] = &names! {
    Plain:
        "token_embd" => "model.embed_tokens",
        "output_norm" => "model.norm",
        "output" => "lm_head",
};

const LAYERS: &[Module] = &names! {
    RotaryQuery: "blk.{i}.attn_q" => "model.layers.{i}.self_attn.q_proj";
    RotaryKey: "blk.{i}.attn_k" => "model.layers.{i}.self_attn.k_proj";
    Plain:
        "blk.{i}.attn_norm" => "model.layers.{i}.input_layernorm",
        "blk.{i}.attn_v" => "model.layers.{i}.self_attn.v_proj",
        "blk.{i}.attn_output" => "model.layers.{i}.self_attn.o_proj",
        "blk.{i}.ffn_norm" => "model.layers.{i}.post_attention_layernorm",
};

/// A gated feed-forward.
pub(super) const GATED: &[Module] = &names! {
    Plain:
        "blk.{i}.ffn_gate" => "model.layers.{i}.mlp.gate_proj",
        "blk.{i}.ffn_up" => "model.layers.{i}.mlp.up_proj",
        "blk.{i}.ffn_down" => "model.layers.{i}.mlp.down_proj",
};

/// Mixtral's experts, in one tensor or, in old files, each in its own.
const EXPERTS: &[Module] = &names! {
    Plain:
        "blk.{i}.ffn_gate_inp" => "model.layers.{i}.block_sparse_moe.gate",
        "blk.{i}.ffn_gate.{e}" => "model.layers.{i}.block_sparse_moe.experts.{e}.w1",
        "blk.{i}.ffn_down.{e}" => "model.layers.{i}.block_sparse_moe.experts.{e}.w2",
        "blk.{i}.ffn_up.{e}" => "model.layers.{i}.block_sparse_moe.experts.{e}.w3";
    Experts:
        "blk.{i}.ffn_gate_exps" => "model.layers.{i}.block_sparse_moe.experts.{e}.w1",
        "blk.{i}.ffn_down_exps" => "model.layers.{i}.block_sparse_moe.experts.{e}.w2",
        "blk.{i}.ffn_up_exps" => "model.layers.{i}.block_sparse_moe.experts.{e}.w3",
};

fn modules(_: &Header<'_>) -> &'static [&'static [Module]] {
    &[OUTER, LAYERS, GATED, EXPERTS]
}

fn config(meta: &Meta<'_, '_>) -> Result<Config, ArtifactError> {
    let heads = meta.heads()?;
    let n_experts = meta.opt_u32("expert_count")?.filter(|n| *n > 0);
    let (model_type, class) = match n_experts {
        None => ("llama", "LlamaForCausalLM"),
        Some(_) => ("mixtral", "MixtralForCausalLM"),
    };
    let mut config = meta.decoder(model_type, class)?;
    config.extend([
        ("num_key_value_heads".to_owned(), heads.n_kv_heads.into()),
        ("head_dim".to_owned(), heads.head_dim.into()),
        ("hidden_act".to_owned(), "silu".into()),
        ("rms_norm_eps".to_owned(), meta.f64("attention.layer_norm_rms_epsilon")?.into()),
    ]);
    rope::write(meta, heads.head_dim, &mut config)?;
    match n_experts {
        None => {
            config.insert("attention_bias".to_owned(), meta.header.has("blk.0.attn_q.bias").into());
            config.insert("mlp_bias".to_owned(), meta.header.has("blk.0.ffn_up.bias").into());
        }
        Some(n_experts) => {
            config.insert("num_local_experts".to_owned(), n_experts.into());
            let used = meta.u32("expert_used_count")?;
            config.insert("num_experts_per_tok".to_owned(), used.into());
            config.insert("sliding_window".to_owned(), json!(null));
        }
    }
    Ok(config)
}
