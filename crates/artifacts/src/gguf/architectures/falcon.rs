//! Falcon. Checkpoints have the fused projection by groups of queries with their key and value.

use super::{Architecture, Config, Module, names};
use crate::error::ArtifactError;
use crate::gguf::config::Meta;
use crate::gguf::header::Header;
use crate::gguf::rope;

pub(super) static FALCON: Architecture = Architecture { name: "falcon", config, modules };

const OUTER: &[Module] = &names! {
    Plain:
        "token_embd" => "transformer.word_embeddings",
        "output_norm" => "transformer.ln_f",
        "output" => "lm_head",
};

const LAYERS: &[Module] = &names! {
    Grouped: "blk.{i}.attn_qkv" => "transformer.h.{i}.self_attention.query_key_value";
    Plain:
        "blk.{i}.attn_output" => "transformer.h.{i}.self_attention.dense",
        "blk.{i}.ffn_up" => "transformer.h.{i}.mlp.dense_h_to_4h",
        "blk.{i}.ffn_down" => "transformer.h.{i}.mlp.dense_4h_to_h",
};

/// One norm for both branches, as in the model of 7 billion parameters.
const ONE_NORM: &[Module] = &names! {
    Plain: "blk.{i}.attn_norm" => "transformer.h.{i}.input_layernorm";
};

/// A norm for each branch, as in the model of 40 billion.
const TWO_NORMS: &[Module] = &names! {
    Plain:
        "blk.{i}.attn_norm" => "transformer.h.{i}.ln_mlp",
        "blk.{i}.attn_norm_2" => "transformer.h.{i}.ln_attn",
};

fn has_two_norms(header: &Header<'_>) -> bool {
    header.has("blk.0.attn_norm_2.weight")
}

fn modules(header: &Header<'_>) -> &'static [&'static [Module]] {
    match has_two_norms(header) {
        true => &[OUTER, LAYERS, TWO_NORMS],
        false => &[OUTER, LAYERS, ONE_NORM],
    }
}

fn config(meta: &Meta<'_, '_>) -> Result<Config, ArtifactError> {
    let heads = meta.heads()?;
    let two_norms = has_two_norms(meta.header);
    let is_grouped = two_norms || (heads.n_kv_heads > 1 && heads.n_kv_heads < heads.n_heads);
    let mut config = meta.decoder("falcon", "FalconForCausalLM")?;
    config.extend([
        ("num_kv_heads".to_owned(), heads.n_kv_heads.into()),
        ("multi_query".to_owned(), (heads.n_kv_heads == 1).into()),
        ("new_decoder_architecture".to_owned(), is_grouped.into()),
        ("parallel_attn".to_owned(), true.into()),
        ("bias".to_owned(), meta.header.has("blk.0.attn_qkv.bias").into()),
        ("alibi".to_owned(), false.into()),
        ("activation".to_owned(), "gelu".into()),
        ("layer_norm_epsilon".to_owned(), meta.f64("attention.layer_norm_epsilon")?.into()),
    ]);
    if is_grouped && !two_norms {
        config.insert("num_ln_in_parallel_attn".to_owned(), 1.into());
    }
    // Converters write four times the width, whatever the tensors are.
    let rows = meta.header.tensor("blk.0.ffn_up.weight").and_then(|up| up.shape.first().copied());
    let width = config.remove("intermediate_size").unwrap_or_default();
    config.insert("ffn_hidden_size".to_owned(), rows.map_or(width, Into::into));
    rope::write(meta, heads.head_dim, &mut config)?;
    Ok(config)
}
