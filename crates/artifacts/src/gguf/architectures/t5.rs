//! T5, its encoder and its decoder, with a plain or a gated feed-forward.

use super::{Architecture, Config, Module, names};
use crate::error::ArtifactError;
use crate::gguf::config::Meta;
use crate::gguf::header::Header;

pub(super) static T5: Architecture = Architecture { name: "t5", config, modules };

const OUTER: &[Module] = &names! {
    Plain:
        "token_embd" => "shared",
        "enc.output_norm" => "encoder.final_layer_norm",
        "dec.output_norm" => "decoder.final_layer_norm",
        "output" => "lm_head",
};

const ENCODER: &[Module] = &names! {
    Plain:
        "enc.blk.{i}.attn_norm" => "encoder.block.{i}.layer.0.layer_norm",
        "enc.blk.{i}.attn_q" => "encoder.block.{i}.layer.0.SelfAttention.q",
        "enc.blk.{i}.attn_k" => "encoder.block.{i}.layer.0.SelfAttention.k",
        "enc.blk.{i}.attn_v" => "encoder.block.{i}.layer.0.SelfAttention.v",
        "enc.blk.{i}.attn_o" => "encoder.block.{i}.layer.0.SelfAttention.o",
        "enc.blk.{i}.attn_rel_b" =>
            "encoder.block.{i}.layer.0.SelfAttention.relative_attention_bias",
        "enc.blk.{i}.ffn_norm" => "encoder.block.{i}.layer.1.layer_norm",
        "enc.blk.{i}.ffn_down" => "encoder.block.{i}.layer.1.DenseReluDense.wo",
};

const DECODER: &[Module] = &names! {
    Plain:
        "dec.blk.{i}.attn_norm" => "decoder.block.{i}.layer.0.layer_norm",
        "dec.blk.{i}.attn_q" => "decoder.block.{i}.layer.0.SelfAttention.q",
        "dec.blk.{i}.attn_k" => "decoder.block.{i}.layer.0.SelfAttention.k",
        "dec.blk.{i}.attn_v" => "decoder.block.{i}.layer.0.SelfAttention.v",
        "dec.blk.{i}.attn_o" => "decoder.block.{i}.layer.0.SelfAttention.o",
        "dec.blk.{i}.attn_rel_b" =>
            "decoder.block.{i}.layer.0.SelfAttention.relative_attention_bias",
        "dec.blk.{i}.cross_attn_norm" => "decoder.block.{i}.layer.1.layer_norm",
        "dec.blk.{i}.cross_attn_q" => "decoder.block.{i}.layer.1.EncDecAttention.q",
        "dec.blk.{i}.cross_attn_k" => "decoder.block.{i}.layer.1.EncDecAttention.k",
        "dec.blk.{i}.cross_attn_v" => "decoder.block.{i}.layer.1.EncDecAttention.v",
        "dec.blk.{i}.cross_attn_o" => "decoder.block.{i}.layer.1.EncDecAttention.o",
        // T5's first checkpoints carry this one, which nothing uses.
        "dec.blk.{i}.cross_attn_rel_b" =>
            "decoder.block.{i}.layer.1.EncDecAttention.relative_attention_bias",
        "dec.blk.{i}.ffn_norm" => "decoder.block.{i}.layer.2.layer_norm",
        "dec.blk.{i}.ffn_down" => "decoder.block.{i}.layer.2.DenseReluDense.wo",
};

const PLAIN: &[Module] = &names! {
    Plain:
        "enc.blk.{i}.ffn_up" => "encoder.block.{i}.layer.1.DenseReluDense.wi",
        "dec.blk.{i}.ffn_up" => "decoder.block.{i}.layer.2.DenseReluDense.wi",
};

const GATED: &[Module] = &names! {
    Plain:
        "enc.blk.{i}.ffn_gate" => "encoder.block.{i}.layer.1.DenseReluDense.wi_0",
        "enc.blk.{i}.ffn_up" => "encoder.block.{i}.layer.1.DenseReluDense.wi_1",
        "dec.blk.{i}.ffn_gate" => "decoder.block.{i}.layer.2.DenseReluDense.wi_0",
        "dec.blk.{i}.ffn_up" => "decoder.block.{i}.layer.2.DenseReluDense.wi_1",
};

fn is_gated(header: &Header<'_>) -> bool {
    header.has("enc.blk.0.ffn_gate.weight")
}

fn modules(header: &Header<'_>) -> &'static [&'static [Module]] {
    match is_gated(header) {
        true => &[OUTER, ENCODER, DECODER, GATED],
        false => &[OUTER, ENCODER, DECODER, PLAIN],
    }
}

/// Whether the head is the embedding. A tied head, which is scaled, may be in the file as a copy.
fn is_tied(header: &Header<'_>) -> bool {
    let bytes = |name| header.tensor(name).map(|tensor| header.bytes_of(tensor));
    match bytes("output.weight") {
        None => true,
        Some(head) => bytes("token_embd.weight") == Some(head),
    }
}

fn config(meta: &Meta<'_, '_>) -> Result<Config, ArtifactError> {
    let mut config = meta.start("t5", "T5ForConditionalGeneration")?;
    config.insert("tie_word_embeddings".to_owned(), is_tied(meta.header).into());
    let n_layers = meta.n_layers()?;
    let n_decoder_layers = meta.opt_u32("decoder_block_count")?.unwrap_or(n_layers);
    let form = if is_gated(meta.header) { "gated-gelu" } else { "relu" };
    config.extend([
        ("is_encoder_decoder".to_owned(), true.into()),
        ("d_model".to_owned(), meta.u32("embedding_length")?.into()),
        ("d_kv".to_owned(), meta.u32("attention.key_length")?.into()),
        ("d_ff".to_owned(), meta.u32("feed_forward_length")?.into()),
        ("num_layers".to_owned(), n_layers.into()),
        ("num_decoder_layers".to_owned(), n_decoder_layers.into()),
        ("num_heads".to_owned(), meta.u32("attention.head_count")?.into()),
        ("n_positions".to_owned(), meta.u32("context_length")?.into()),
        (
            "relative_attention_num_buckets".to_owned(),
            meta.u32("attention.relative_buckets_count")?.into(),
        ),
        // Not in the file; the same in every T5.
        ("relative_attention_max_distance".to_owned(), 128.into()),
        ("layer_norm_epsilon".to_owned(), meta.f64("attention.layer_norm_rms_epsilon")?.into()),
        ("feed_forward_proj".to_owned(), form.into()),
        (
            "decoder_start_token_id".to_owned(),
            meta.opt_u32("decoder_start_token_id")?.unwrap_or(0).into(),
        ),
    ]);
    Ok(config)
}
