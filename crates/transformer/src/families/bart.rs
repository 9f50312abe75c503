//! BART (Lewis et al. 2019, arXiv:1910.13461) and its kin: mBART (Liu et al. 2020,
//! arXiv:2001.08210), Marian (Junczys-Dowmunt et al. 2018, arXiv:1804.00344) and Pegasus (Zhang et
//! al. 2019, arXiv:1912.08777); transformers 5.24, `models/bart`, `mbart`, `marian`, `pegasus`.

use super::reader::Reader;
use super::shapes;
use super::{Family, Form, ModuleNames, Place, names};
use crate::activation::Activation;
use crate::architecture::{
    Architecture, ConfigKeys, DefaultDecoderInput, HeadBias, Kind, Layer, LmHead, Stack, StackKeys,
};
use crate::attention::{Attention, AttentionBias};
use crate::embedding::{EmbeddedPositions, Embedding};
use crate::error::TransformerError;
use crate::norm::{Norm, Norms};

pub(super) static BART: Family = Family {
    model_type: "bart",
    aliases: &[
        ("hidden_size", "d_model"),
        ("num_attention_heads", "encoder_attention_heads"),
        ("num_hidden_layers", "encoder_layers"),
    ],
    describe: describe_bart,
    prefixes: &["model.", ""],
    probes: &["encoder.layers.0.fc1.weight", "decoder.layers.0.fc1.weight", "shared.weight"],
    modules: &[&EMBEDDINGS, &LAYERS, &POST_NORMS],
};

pub(super) static MBART: Family = Family {
    model_type: "mbart",
    describe: describe_mbart,
    modules: &[&EMBEDDINGS, &LAYERS, &PRE_NORMS],
    ..BART
};

pub(super) static MARIAN: Family =
    Family { model_type: "marian", describe: describe_marian, ..BART };

pub(super) static PEGASUS: Family =
    Family { model_type: "pegasus", describe: describe_pegasus, ..MBART };

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

static LAYERS: [ModuleNames; 12] = names! {
    "{s}.embedding.positions" => "{s}.embed_positions",
    "{s}.embedding.norm" => "{s}.layernorm_embedding",
    "{s}.layers.{i}.self_attention.q" => "{s}.layers.{i}.self_attn.q_proj",
    "{s}.layers.{i}.self_attention.k" => "{s}.layers.{i}.self_attn.k_proj",
    "{s}.layers.{i}.self_attention.v" => "{s}.layers.{i}.self_attn.v_proj",
    "{s}.layers.{i}.self_attention.o" => "{s}.layers.{i}.self_attn.out_proj",
    "{s}.layers.{i}.cross_attention.q" => "{s}.layers.{i}.encoder_attn.q_proj",
    "{s}.layers.{i}.cross_attention.k" => "{s}.layers.{i}.encoder_attn.k_proj",
    "{s}.layers.{i}.cross_attention.v" => "{s}.layers.{i}.encoder_attn.v_proj",
    "{s}.layers.{i}.cross_attention.o" => "{s}.layers.{i}.encoder_attn.out_proj",
    "{s}.layers.{i}.feed_forward.up" => "{s}.layers.{i}.fc1",
    "{s}.layers.{i}.feed_forward.down" => "{s}.layers.{i}.fc2",
};

static POST_NORMS: [ModuleNames; 3] = names! {
    "{s}.layers.{i}.self_attention.norm_after" => "{s}.layers.{i}.self_attn_layer_norm",
    "{s}.layers.{i}.cross_attention.norm_after" => "{s}.layers.{i}.encoder_attn_layer_norm",
    "{s}.layers.{i}.feed_forward.norm_after" => "{s}.layers.{i}.final_layer_norm",
};

static PRE_NORMS: [ModuleNames; 4] = names! {
    "{s}.layers.{i}.self_attention.norm_before" => "{s}.layers.{i}.self_attn_layer_norm",
    "{s}.layers.{i}.cross_attention.norm_before" => "{s}.layers.{i}.encoder_attn_layer_norm",
    "{s}.layers.{i}.feed_forward.norm_before" => "{s}.layers.{i}.final_layer_norm",
    "{s}.final_norm" => "{s}.layer_norm",
};

/// What the four families differ in.
struct Kin {
    /// Norms stand ahead of the branches, and one at the end of each stack.
    pre_norm: bool,
    embedding_norm: bool,
    learned_positions: bool,
    vocab: u32,
    default_decoder_input: DefaultDecoderInput,
}

fn describe_bart(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let kin = Kin {
        pre_norm: false,
        embedding_norm: true,
        learned_positions: true,
        vocab: 50_265,
        default_decoder_input: DefaultDecoderInput::ShiftRight,
    };
    describe(config, &kin)
}

fn describe_mbart(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let kin = Kin {
        pre_norm: true,
        embedding_norm: true,
        learned_positions: true,
        vocab: 50_265,
        default_decoder_input: DefaultDecoderInput::RotateLast,
    };
    describe(config, &kin)
}

fn describe_marian(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let kin = Kin {
        pre_norm: false,
        embedding_norm: false,
        learned_positions: false,
        vocab: 58_101,
        default_decoder_input: DefaultDecoderInput::None,
    };
    let mut architecture = describe(config, &kin)?;
    let n_tokens = match config.json.opt_u32("decoder_vocab_size")? {
        Some(_) => config.rows("decoder_vocab_size", 1)?,
        None => architecture.vocab,
    };
    let shared = config.flag("share_encoder_decoder_embeddings", true)?;
    if shared && n_tokens != architecture.vocab {
        let wanted =
            format!("vocab_size = {} of embeddings that both stacks share", architecture.vocab);
        return Err(config.json.invalid("decoder_vocab_size", wanted).into());
    }
    architecture.vocab = n_tokens;
    if let Some(decoder) = &mut architecture.decoder {
        decoder.embedding.n_tokens = n_tokens;
    }
    Ok(architecture)
}

fn describe_pegasus(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let kin = Kin {
        pre_norm: true,
        embedding_norm: false,
        learned_positions: false,
        vocab: 50_265,
        default_decoder_input: DefaultDecoderInput::None,
    };
    describe(config, &kin)
}

fn describe(config: &Reader<'_>, kin: &Kin) -> Result<Architecture, TransformerError> {
    if !config.config.is_encoder_decoder {
        return Err(config.unsupported("is_encoder_decoder", "true"));
    }
    let dim = config.size("d_model", 1024)?;
    let encoder = stack(config, "encoder", dim, kin)?;
    let tied = config.flag("tie_word_embeddings", true)?;
    Ok(Architecture {
        family: config.family,
        kind: Kind::EncoderDecoder,
        vocab: encoder.embedding.n_tokens,
        dim,
        encoder: Some(encoder),
        decoder: Some(stack(config, "decoder", dim, kin)?),
        head: Some(LmHead { bias: HeadBias::Optional, ..LmHead::new(tied, config.has_lm_class()) }),
        task_head: None,
        pooler: None,
        default_decoder_input: kin.default_decoder_input,
        keys: ConfigKeys {
            vocab: "vocab_size",
            dim: "d_model",
            positions: "max_position_embeddings",
        },
    })
}

fn stack(
    config: &Reader<'_>,
    name: &'static str,
    dim: u32,
    kin: &Kin,
) -> Result<Stack, TransformerError> {
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
    let heads = shapes::whole_heads(config, ("d_model", dim), (keys.heads, 16))?;
    let max_positions = config.rows("max_position_embeddings", 1024)?;
    let attention =
        |causal| Attention { bias: AttentionBias::all(true), ..Attention::new(heads, causal) };
    let norm = Norm::layer(NORM_EPS);
    let norms = if kin.pre_norm { Norms::pre(norm) } else { Norms::post(norm) };
    let activation = config.activation("activation_function", Activation::Gelu)?;
    let feed_forward = shapes::plain(config.size(keys.feed_forward, 4096)?, activation, true);
    let mut layer = Layer::new(attention(decoder), feed_forward, norms);
    if decoder {
        layer.cross_attention = Some(attention(false));
        layer.cross_attention_norms = norms;
    }
    let scaled = config.flag("scale_embedding", false)?;
    let embedding = Embedding {
        scale: if scaled { f64::from(dim).sqrt() } else { 1.0 },
        positions: if kin.learned_positions {
            EmbeddedPositions::Learned {
                n_rows: max_positions + POSITION_OFFSET,
                offset: POSITION_OFFSET,
                skipped: None,
            }
        } else {
            EmbeddedPositions::Sinusoidal { n_rows: max_positions }
        },
        norm: kin.embedding_norm.then_some(norm),
        ..Embedding::tokens(config.rows("vocab_size", kin.vocab)?, dim)
    };
    let layers = vec![layer; config.layers(keys.layers, 12)? as usize];
    let mut stack = Stack::new(name, embedding, layers, max_positions, keys);
    stack.final_norm = kin.pre_norm.then_some(norm);
    Ok(stack)
}
