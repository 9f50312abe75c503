//! What many families have in common: sizes under the usual keys, and whole descriptions of the
//! usual shapes.

use super::reader::Reader;
use crate::activation::Activation;
use crate::architecture::{
    Architecture, ConfigKeys, DefaultDecoderInput, Kind, Layer, LmHead, Pooler, Stack, StackKeys,
};
use crate::attention::{Attention, AttentionBias, Heads};
use crate::embedding::{EmbeddedPositions, Embedding};
use crate::error::TransformerError;
use crate::feed_forward::{FeedForward, FeedForwardForm};
use crate::norm::{Norm, Norms};

/// Longest sequence of models whose positions have no end (ALiBi, relative buckets): what a
/// request may ask for, not what there is memory for.
pub(super) const UNBOUNDED: u32 = 1 << 15;

/// The usual names of a model's sizes.
pub(super) const KEYS: ConfigKeys =
    ConfigKeys { vocab: "vocab_size", dim: "hidden_size", positions: "max_position_embeddings" };

/// The usual names of a stack's sizes.
pub(super) const STACK_KEYS: StackKeys = StackKeys {
    layers: "num_hidden_layers",
    heads: "num_attention_heads",
    kv_heads: "num_attention_heads",
    feed_forward: "intermediate_size",
};

/// A model of one causal stack.
pub(super) fn decoder_model(
    family: &'static str,
    dim: u32,
    stack: Stack,
    head: LmHead,
    keys: ConfigKeys,
) -> Architecture {
    Architecture {
        family,
        kind: Kind::Decoder,
        vocab: stack.embedding.n_tokens,
        dim,
        encoder: None,
        decoder: Some(stack),
        head: Some(head),
        task_head: None,
        pooler: None,
        default_decoder_input: DefaultDecoderInput::None,
        keys,
    }
}

/// A model of one bidirectional stack.
pub(super) fn encoder_model(
    family: &'static str,
    dim: u32,
    stack: Stack,
    pooler: Option<Pooler>,
    keys: ConfigKeys,
) -> Architecture {
    Architecture {
        family,
        kind: Kind::Encoder,
        vocab: stack.embedding.n_tokens,
        dim,
        encoder: Some(stack),
        decoder: None,
        head: None,
        task_head: None,
        pooler,
        default_decoder_input: DefaultDecoderInput::None,
        keys,
    }
}

/// A feed-forward branch of two matrices.
pub(super) fn plain(width: u32, activation: Activation, bias: bool) -> FeedForward {
    FeedForward { width, activation, form: FeedForwardForm::Plain, bias }
}

/// Heads that divide the hidden size, as many for keys and values as for queries.
pub(super) fn whole_heads(
    config: &Reader<'_>,
    (dim_key, dim): (&str, u32),
    (heads_key, default): (&str, u32),
) -> Result<Heads, TransformerError> {
    let n = config.size(heads_key, default)?;
    Ok(Heads { n, n_kv: n, dim: config.head_dim((dim_key, dim), (heads_key, n))? })
}

/// What the encoders of BERT's kind differ in.
pub(super) struct Bidirectional {
    pub(super) vocab: u32,
    pub(super) layers: u32,
    pub(super) heads: u32,
    pub(super) dim: u32,
    pub(super) width: u32,
    pub(super) positions: EmbeddedPositions,
    pub(super) max_positions: u32,
    pub(super) n_token_types: u32,
    pub(super) eps: f64,
}

/// A post-norm encoder under the usual keys: BERT, RoBERTa, MPNet, DeBERTa.
pub(super) fn bert_stack(
    config: &Reader<'_>,
    sizes: &Bidirectional,
) -> Result<Stack, TransformerError> {
    let dim = sizes.dim;
    let heads = whole_heads(config, ("hidden_size", dim), ("num_attention_heads", sizes.heads))?;
    let norm = Norm::layer(sizes.eps);
    let mut attention = Attention::new(heads, false);
    attention.bias = AttentionBias::all(true);
    let activation = config.activation("hidden_act", Activation::Gelu)?;
    let feed_forward = plain(config.size("intermediate_size", sizes.width)?, activation, true);
    let layer = Layer::new(attention, feed_forward, Norms::post(norm));
    let n_layers = config.layers("num_hidden_layers", sizes.layers)?;
    let embedding = Embedding {
        positions: sizes.positions,
        n_token_types: sizes.n_token_types,
        norm: Some(norm),
        ..Embedding::tokens(sizes.vocab, dim)
    };
    let layers = vec![layer; n_layers as usize];
    Ok(Stack::new("encoder", embedding, layers, sizes.max_positions, STACK_KEYS))
}
