//! BART (Lewis et al. 2019, arXiv:1910.13461); transformers 5.23, `models/bart`.

use super::reader::Reader;
use super::{Family, Form, ModuleNames, Place, names};
use crate::activation::Activation;
use crate::architecture::{
    Architecture, ConfigKeys, DefaultDecoderInput, HeadBias, Kind, Layer, LmHead, Residual, Stack,
    StackKeys,
};
use crate::attention::{Attention, AttentionBias, AttentionPositions};
use crate::embedding::{EmbeddedPositions, Embedding};
use crate::error::TransformerError;
use crate::feed_forward::{FeedForward, FeedForwardForm};
use crate::norm::{Norm, Norms};

pub(super) static FAMILY: Family = Family {
    model_type: "bart",
    describe,
    prefixes: &["model.", ""],
    probes: &["encoder.layers.0.fc1.weight", "decoder.layers.0.fc1.weight", "shared.weight"],
    modules: &[&EMBEDDINGS, &LAYERS],
};

/// The position table has two rows ahead of position 0.
const POSITION_OFFSET: u32 = 2;
/// torch's default, which the config can't change.
const NORM_EPS: f64 = 1e-5;

const SHARED: Place = Place::new("shared");
const ENCODER_TOKENS: Place = Place::new("encoder.embed_tokens");
const DECODER_TOKENS: Place = Place::new("decoder.embed_tokens");
const LM_HEAD: Place = Place::top("lm_head");

/// Any of the four names may hold the one table.
static EMBEDDINGS: [ModuleNames; 4] = [
    ModuleNames {
        canonical: "encoder.embedding.tokens",
        found: &[ENCODER_TOKENS, SHARED, DECODER_TOKENS, LM_HEAD.tied()],
    },
    ModuleNames {
        canonical: "decoder.embedding.tokens",
        found: &[DECODER_TOKENS, SHARED, ENCODER_TOKENS, LM_HEAD.tied()],
    },
    ModuleNames {
        canonical: "head",
        found: &[LM_HEAD, SHARED.tied(), DECODER_TOKENS.tied(), ENCODER_TOKENS.tied()],
    },
    ModuleNames {
        canonical: "head.bias",
        found: &[Place::top("final_logits_bias").form(Form::Tensor)],
    },
];

static LAYERS: [ModuleNames; 15] = names! {
    "{s}.embedding.positions" => "{s}.embed_positions",
    "{s}.embedding.norm" => "{s}.layernorm_embedding",
    "{s}.layers.{i}.self_attention.q" => "{s}.layers.{i}.self_attn.q_proj",
    "{s}.layers.{i}.self_attention.k" => "{s}.layers.{i}.self_attn.k_proj",
    "{s}.layers.{i}.self_attention.v" => "{s}.layers.{i}.self_attn.v_proj",
    "{s}.layers.{i}.self_attention.o" => "{s}.layers.{i}.self_attn.out_proj",
    "{s}.layers.{i}.self_attention.norm_after" => "{s}.layers.{i}.self_attn_layer_norm",
    "{s}.layers.{i}.cross_attention.q" => "{s}.layers.{i}.encoder_attn.q_proj",
    "{s}.layers.{i}.cross_attention.k" => "{s}.layers.{i}.encoder_attn.k_proj",
    "{s}.layers.{i}.cross_attention.v" => "{s}.layers.{i}.encoder_attn.v_proj",
    "{s}.layers.{i}.cross_attention.o" => "{s}.layers.{i}.encoder_attn.out_proj",
    "{s}.layers.{i}.cross_attention.norm_after" => "{s}.layers.{i}.encoder_attn_layer_norm",
    "{s}.layers.{i}.feed_forward.up" => "{s}.layers.{i}.fc1",
    "{s}.layers.{i}.feed_forward.down" => "{s}.layers.{i}.fc2",
    "{s}.layers.{i}.feed_forward.norm_after" => "{s}.layers.{i}.final_layer_norm",
};

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    if !config.config.is_encoder_decoder {
        return Err(config.unsupported("is_encoder_decoder", "true"));
    }
    let vocab = config.rows("vocab_size", 50_265)?;
    let dim = config.size("d_model", 1024)?;
    let lm_class = config.has_lm_class();
    Ok(Architecture {
        family: FAMILY.model_type,
        kind: Kind::EncoderDecoder,
        vocab,
        dim,
        encoder: Some(stack(config, "encoder", dim)?),
        decoder: Some(stack(config, "decoder", dim)?),
        head: Some(LmHead {
            tied: config.flag("tie_word_embeddings", true)?,
            required: lm_class,
            bias: HeadBias::Optional,
            scale: None,
            soft_cap: None,
        }),
        pooler: None,
        default_decoder_input: DefaultDecoderInput::ShiftRight,
        keys: ConfigKeys {
            vocab: "vocab_size",
            dim: "d_model",
            positions: "max_position_embeddings",
        },
    })
}

fn stack(config: &Reader<'_>, name: &'static str, dim: u32) -> Result<Stack, TransformerError> {
    let decoder = name == "decoder";
    let keys = if decoder {
        StackKeys {
            layers: "decoder_layers",
            heads: "decoder_attention_heads",
            kv_heads: "decoder_attention_heads",
            feed_forward: "decoder_ffn_dim",
        }
    } else {
        StackKeys {
            layers: "encoder_layers",
            heads: "encoder_attention_heads",
            kv_heads: "encoder_attention_heads",
            feed_forward: "encoder_ffn_dim",
        }
    };
    let n_heads = config.size(keys.heads, 16)?;
    let head_dim = config.head_dim(("d_model", dim), (keys.heads, n_heads))?;
    let max_positions = config.rows("max_position_embeddings", 1024)?;
    let attention = |causal| Attention {
        n_heads,
        n_kv_heads: n_heads,
        head_dim,
        scale: f64::from(head_dim).powf(-0.5),
        causal,
        window: None,
        soft_cap: None,
        positions: AttentionPositions::None,
        bias: AttentionBias::all(true),
        qk_norm: None,
    };
    let norm = Norm::layer(NORM_EPS);
    let layer = Layer {
        self_attention: attention(decoder),
        self_attention_norms: Norms::post(norm),
        cross_attention: decoder.then(|| attention(false)),
        cross_attention_norms: if decoder { Norms::post(norm) } else { Norms::default() },
        feed_forward: FeedForward {
            width: config.size(keys.feed_forward, 4096)?,
            activation: config.activation("activation_function", Activation::Gelu)?,
            form: FeedForwardForm::Plain,
            bias: true,
        },
        feed_forward_norms: Norms::post(norm),
        residual: Residual::Sequential,
    };
    let scaled = config.flag("scale_embedding", false)?;
    Ok(Stack {
        name,
        embedding: Embedding {
            width: dim,
            scale: if scaled { f64::from(dim).sqrt() } else { 1.0 },
            positions: EmbeddedPositions::Learned {
                n_rows: max_positions + POSITION_OFFSET,
                offset: POSITION_OFFSET,
            },
            n_token_types: 0,
            norm: Some(norm),
            projection: false,
        },
        layers: vec![layer; config.layers(keys.layers, 12)? as usize],
        final_norm: None,
        max_positions,
        keys,
    })
}
