//! LLaMA 1 to 3 (Touvron et al. 2023, arXiv:2302.13971); transformers 5.23, `models/llama`.

use super::reader::Reader;
use super::rope;
use super::{Family, ModuleNames, Place, names};
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
    model_type: "llama",
    describe,
    prefixes: &["model.", ""],
    probes: &["layers.0.self_attn.q_proj.weight", "norm.weight", "embed_tokens.weight"],
    modules: &[&EMBEDDINGS, &LAYERS],
};

const TOKENS: Place = Place::new("embed_tokens");
const LM_HEAD: Place = Place::top("lm_head");

static EMBEDDINGS: [ModuleNames; 2] = [
    ModuleNames { canonical: "decoder.embedding.tokens", found: &[TOKENS, LM_HEAD.tied()] },
    ModuleNames { canonical: "head", found: &[LM_HEAD, TOKENS.tied()] },
];

static LAYERS: [ModuleNames; 10] = names! {
    "decoder.layers.{i}.self_attention.q" => "layers.{i}.self_attn.q_proj",
    "decoder.layers.{i}.self_attention.k" => "layers.{i}.self_attn.k_proj",
    "decoder.layers.{i}.self_attention.v" => "layers.{i}.self_attn.v_proj",
    "decoder.layers.{i}.self_attention.o" => "layers.{i}.self_attn.o_proj",
    "decoder.layers.{i}.self_attention.norm_before" => "layers.{i}.input_layernorm",
    "decoder.layers.{i}.feed_forward.gate" => "layers.{i}.mlp.gate_proj",
    "decoder.layers.{i}.feed_forward.up" => "layers.{i}.mlp.up_proj",
    "decoder.layers.{i}.feed_forward.down" => "layers.{i}.mlp.down_proj",
    "decoder.layers.{i}.feed_forward.norm_before" => "layers.{i}.post_attention_layernorm",
    "decoder.final_norm" => "norm",
};

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let vocab = config.rows("vocab_size", 32_000)?;
    let dim = config.size("hidden_size", 4096)?;
    let n_heads = config.size("num_attention_heads", 32)?;
    let n_kv_heads = config.opt_size("num_key_value_heads")?.unwrap_or(n_heads);
    if !n_heads.is_multiple_of(n_kv_heads) {
        let wanted = format!("a divisor of num_attention_heads = {n_heads}");
        return Err(config.json.invalid("num_key_value_heads", wanted).into());
    }
    let head_dim = match config.opt_size("head_dim")? {
        Some(head_dim) => head_dim,
        None => config.head_dim(("hidden_size", dim), ("num_attention_heads", n_heads))?,
    };
    let rope = rope::read(config, head_dim)?;
    let norm = Norm::rms(config.eps("rms_norm_eps", 1e-6)?);
    let bias = AttentionBias::all(config.flag("attention_bias", false)?);
    let layer = Layer {
        self_attention: Attention {
            n_heads,
            n_kv_heads,
            head_dim,
            scale: f64::from(head_dim).powf(-0.5),
            causal: true,
            window: None,
            soft_cap: None,
            positions: AttentionPositions::Rotary(rope.rotary),
            bias,
            qk_norm: None,
        },
        self_attention_norms: Norms::pre(norm),
        cross_attention: None,
        cross_attention_norms: Norms::default(),
        feed_forward: FeedForward {
            width: config.size("intermediate_size", 11_008)?,
            activation: config.activation("hidden_act", Activation::Silu)?,
            form: FeedForwardForm::Gated,
            bias: config.flag("mlp_bias", false)?,
        },
        feed_forward_norms: Norms::pre(norm),
        residual: Residual::Sequential,
    };
    let n_layers = config.layers("num_hidden_layers", 32)?;
    Ok(Architecture {
        family: FAMILY.model_type,
        kind: Kind::Decoder,
        vocab,
        dim,
        encoder: None,
        decoder: Some(Stack {
            name: "decoder",
            embedding: Embedding {
                width: dim,
                scale: 1.0,
                positions: EmbeddedPositions::None,
                n_token_types: 0,
                norm: None,
                projection: false,
            },
            layers: vec![layer; n_layers as usize],
            final_norm: Some(norm),
            max_positions: rope.max_positions,
            keys: StackKeys {
                layers: "num_hidden_layers",
                heads: "num_attention_heads",
                kv_heads: "num_key_value_heads",
                feed_forward: "intermediate_size",
            },
        }),
        head: Some(LmHead {
            tied: config.flag("tie_word_embeddings", false)?,
            required: config.has_lm_class(),
            bias: HeadBias::None,
            scale: None,
            soft_cap: None,
        }),
        pooler: None,
        default_decoder_input: DefaultDecoderInput::None,
        keys: ConfigKeys {
            vocab: "vocab_size",
            dim: "hidden_size",
            positions: "max_position_embeddings",
        },
    })
}
