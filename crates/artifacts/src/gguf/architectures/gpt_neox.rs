//! GPT-NeoX and BLOOM. Checkpoints have the fused projection head by head.

use super::{Architecture, Config, Module, names};
use crate::error::ArtifactError;
use crate::gguf::config::Meta;
use crate::gguf::rope;

pub(super) static GPT_NEOX: Architecture =
    Architecture { name: "gptneox", config: gpt_neox, modules: |_| &[NEOX_OUTER, NEOX_LAYERS] };

pub(super) static BLOOM: Architecture =
    Architecture { name: "bloom", config: bloom, modules: |_| &[BLOOM_OUTER, BLOOM_LAYERS] };

const NEOX_OUTER: &[Module] = &names! {
    Plain:
        "token_embd" => "gpt_neox.embed_in",
        "output_norm" => "gpt_neox.final_layer_norm",
        "output" => "embed_out",
};

const NEOX_LAYERS: &[Module] = &names! {
    Grouped: "blk.{i}.attn_qkv" => "gpt_neox.layers.{i}.attention.query_key_value";
    Plain:
        "blk.{i}.attn_norm" => "gpt_neox.layers.{i}.input_layernorm",
        "blk.{i}.attn_output" => "gpt_neox.layers.{i}.attention.dense",
        "blk.{i}.ffn_norm" => "gpt_neox.layers.{i}.post_attention_layernorm",
        "blk.{i}.ffn_up" => "gpt_neox.layers.{i}.mlp.dense_h_to_4h",
        "blk.{i}.ffn_down" => "gpt_neox.layers.{i}.mlp.dense_4h_to_h",
};

const BLOOM_OUTER: &[Module] = &names! {
    Plain:
        "token_embd" => "transformer.word_embeddings",
        "token_embd_norm" => "transformer.word_embeddings_layernorm",
        "output_norm" => "transformer.ln_f",
        "output" => "lm_head",
};

const BLOOM_LAYERS: &[Module] = &names! {
    Grouped: "blk.{i}.attn_qkv" => "transformer.h.{i}.self_attention.query_key_value";
    Plain:
        "blk.{i}.attn_norm" => "transformer.h.{i}.input_layernorm",
        "blk.{i}.attn_output" => "transformer.h.{i}.self_attention.dense",
        "blk.{i}.ffn_norm" => "transformer.h.{i}.post_attention_layernorm",
        "blk.{i}.ffn_up" => "transformer.h.{i}.mlp.dense_h_to_4h",
        "blk.{i}.ffn_down" => "transformer.h.{i}.mlp.dense_4h_to_h",
};

fn gpt_neox(meta: &Meta<'_, '_>) -> Result<Config, ArtifactError> {
    let heads = meta.heads()?;
    let mut config = meta.decoder("gpt_neox", "GPTNeoXForCausalLM")?;
    let parallel = meta.opt_bool("use_parallel_residual")?.unwrap_or(true);
    config.extend([
        ("hidden_act".to_owned(), "gelu".into()),
        ("layer_norm_eps".to_owned(), meta.f64("attention.layer_norm_epsilon")?.into()),
        ("use_parallel_residual".to_owned(), parallel.into()),
        ("attention_bias".to_owned(), meta.header.has("blk.0.attn_qkv.bias").into()),
    ]);
    rope::write(meta, heads.head_dim, &mut config)?;
    // This family's older names for the base and the share of a head that is turned.
    let share = config.remove("partial_rotary_factor").unwrap_or_else(|| 1.0.into());
    config.insert("rotary_pct".to_owned(), share);
    let base = config.get("rope_theta").cloned().unwrap_or_default();
    config.insert("rotary_emb_base".to_owned(), base);
    Ok(config)
}

fn bloom(meta: &Meta<'_, '_>) -> Result<Config, ArtifactError> {
    let mut config = meta.start("bloom", "BloomForCausalLM")?;
    config.extend([
        ("n_layer".to_owned(), meta.n_layers()?.into()),
        ("n_head".to_owned(), meta.u32("attention.head_count")?.into()),
        ("hidden_size".to_owned(), meta.u32("embedding_length")?.into()),
        ("seq_length".to_owned(), meta.u32("context_length")?.into()),
        ("layer_norm_epsilon".to_owned(), meta.f64("attention.layer_norm_epsilon")?.into()),
    ]);
    Ok(config)
}
