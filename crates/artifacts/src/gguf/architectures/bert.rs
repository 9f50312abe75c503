//! BERT, and RoBERTa's kind, whose positions GGUF counts from the first that is used. The pooler is
//! not in such files.

use super::{Architecture, Config, Module, names};
use crate::error::ArtifactError;
use crate::gguf::config::Meta;

pub(super) static BERT: Architecture =
    Architecture { name: "bert", config, modules: |_| &[OUTER, LAYERS] };

const OUTER: &[Module] = &names! {
    Plain:
        "token_embd" => "embeddings.word_embeddings",
        "token_types" => "embeddings.token_type_embeddings",
        "position_embd" => "embeddings.position_embeddings",
        "token_embd_norm" => "embeddings.LayerNorm",
};

const LAYERS: &[Module] = &names! {
    Plain:
        "blk.{i}.attn_q" => "encoder.layer.{i}.attention.self.query",
        "blk.{i}.attn_k" => "encoder.layer.{i}.attention.self.key",
        "blk.{i}.attn_v" => "encoder.layer.{i}.attention.self.value",
        "blk.{i}.attn_output" => "encoder.layer.{i}.attention.output.dense",
        "blk.{i}.attn_output_norm" => "encoder.layer.{i}.attention.output.LayerNorm",
        "blk.{i}.ffn_up" => "encoder.layer.{i}.intermediate.dense",
        "blk.{i}.ffn_down" => "encoder.layer.{i}.output.dense",
        "blk.{i}.layer_output_norm" => "encoder.layer.{i}.output.LayerNorm",
};

fn config(meta: &Meta<'_, '_>) -> Result<Config, ArtifactError> {
    let mut config = meta.start("bert", "BertModel")?;
    let rows = |name: &str| meta.header.tensor(name).and_then(|t| t.shape.first().copied());
    let (types, positions) = (rows("token_types.weight"), rows("position_embd.weight"));
    config.extend([
        ("num_hidden_layers".to_owned(), meta.n_layers()?.into()),
        ("num_attention_heads".to_owned(), meta.u32("attention.head_count")?.into()),
        ("hidden_size".to_owned(), meta.u32("embedding_length")?.into()),
        ("intermediate_size".to_owned(), meta.u32("feed_forward_length")?.into()),
        ("layer_norm_eps".to_owned(), meta.f64("attention.layer_norm_epsilon")?.into()),
        ("hidden_act".to_owned(), "gelu".into()),
        ("type_vocab_size".to_owned(), types.unwrap_or(0).into()),
    ]);
    let positions = match positions {
        Some(positions) => positions.into(),
        None => meta.u32("context_length")?.into(),
    };
    config.insert("max_position_embeddings".to_owned(), positions);
    Ok(config)
}
