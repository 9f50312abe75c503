//! GPT-2. Checkpoints have its matrices `[in, out]` (Conv1D); GGUF turns them round.

use super::{Architecture, Config, Module, names};
use crate::error::ArtifactError;
use crate::gguf::config::Meta;

pub(super) static GPT2: Architecture =
    Architecture { name: "gpt2", config, modules: |_| &[OUTER, LAYERS] };

const OUTER: &[Module] = &names! {
    Plain:
        "token_embd" => "transformer.wte",
        "position_embd" => "transformer.wpe",
        "output_norm" => "transformer.ln_f",
        "output" => "lm_head",
};

const LAYERS: &[Module] = &names! {
    Plain:
        "blk.{i}.attn_norm" => "transformer.h.{i}.ln_1",
        "blk.{i}.ffn_norm" => "transformer.h.{i}.ln_2";
    Transposed:
        "blk.{i}.attn_qkv" => "transformer.h.{i}.attn.c_attn",
        "blk.{i}.attn_output" => "transformer.h.{i}.attn.c_proj",
        "blk.{i}.ffn_up" => "transformer.h.{i}.mlp.c_fc",
        "blk.{i}.ffn_down" => "transformer.h.{i}.mlp.c_proj",
};

fn config(meta: &Meta<'_, '_>) -> Result<Config, ArtifactError> {
    let mut config = meta.start("gpt2", "GPT2LMHeadModel")?;
    let positions = meta.u32("context_length")?;
    config.extend([
        ("n_layer".to_owned(), meta.n_layers()?.into()),
        ("n_head".to_owned(), meta.u32("attention.head_count")?.into()),
        ("n_embd".to_owned(), meta.u32("embedding_length")?.into()),
        ("n_inner".to_owned(), meta.u32("feed_forward_length")?.into()),
        ("n_positions".to_owned(), positions.into()),
        ("n_ctx".to_owned(), positions.into()),
        ("layer_norm_epsilon".to_owned(), meta.f64("attention.layer_norm_epsilon")?.into()),
        ("activation_function".to_owned(), "gelu_new".into()),
    ]);
    Ok(config)
}
