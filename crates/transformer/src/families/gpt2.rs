//! GPT-2 (Radford et al. 2019); transformers 5.23, `models/gpt2`.

use super::reader::Reader;
use super::{Family, Form, FusedPart, ModuleNames, Place, names};
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
    model_type: "gpt2",
    describe,
    prefixes: &["transformer.", ""],
    probes: &["h.0.attn.c_attn.weight", "wpe.weight"],
    modules: &[&PLAIN, &SPECIAL],
};

static PLAIN: [ModuleNames; 4] = names! {
    "decoder.embedding.positions" => "wpe",
    "decoder.layers.{i}.self_attention.norm_before" => "h.{i}.ln_1",
    "decoder.layers.{i}.feed_forward.norm_before" => "h.{i}.ln_2",
    "decoder.final_norm" => "ln_f",
};

const TOKENS: Place = Place::new("wte");
const LM_HEAD: Place = Place::top("lm_head");
const FUSED: Place = Place::new("h.{i}.attn.c_attn");

static SPECIAL: [ModuleNames; 8] = [
    ModuleNames { canonical: "decoder.embedding.tokens", found: &[TOKENS, LM_HEAD.tied()] },
    ModuleNames { canonical: "head", found: &[LM_HEAD, TOKENS.tied()] },
    ModuleNames {
        canonical: "decoder.layers.{i}.self_attention.q",
        found: &[FUSED.form(Form::TransposedFused(FusedPart::Q))],
    },
    ModuleNames {
        canonical: "decoder.layers.{i}.self_attention.k",
        found: &[FUSED.form(Form::TransposedFused(FusedPart::K))],
    },
    ModuleNames {
        canonical: "decoder.layers.{i}.self_attention.v",
        found: &[FUSED.form(Form::TransposedFused(FusedPart::V))],
    },
    ModuleNames {
        canonical: "decoder.layers.{i}.self_attention.o",
        found: &[Place::new("h.{i}.attn.c_proj").form(Form::Transposed)],
    },
    ModuleNames {
        canonical: "decoder.layers.{i}.feed_forward.up",
        found: &[Place::new("h.{i}.mlp.c_fc").form(Form::Transposed)],
    },
    ModuleNames {
        canonical: "decoder.layers.{i}.feed_forward.down",
        found: &[Place::new("h.{i}.mlp.c_proj").form(Form::Transposed)],
    },
];

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    config.refuse_set("add_cross_attention")?;
    let vocab = config.rows("vocab_size", 50_257)?;
    let dim = config.size("n_embd", 768)?;
    let n_heads = config.size("n_head", 12)?;
    let head_dim = config.head_dim(("n_embd", dim), ("n_head", n_heads))?;
    let max_positions = config.rows("n_positions", 1024)?;
    let norm = Norm::layer(config.eps("layer_norm_epsilon", 1e-5)?);
    let scaled = config.flag("scale_attn_weights", true)?;
    let by_layer = config.flag("scale_attn_by_inverse_layer_idx", false)?;
    let feed_forward = FeedForward {
        width: config.opt_size("n_inner")?.unwrap_or(4 * dim),
        activation: config.activation("activation_function", Activation::GeluTanh)?,
        form: FeedForwardForm::Plain,
        bias: true,
    };
    let layer = |idx: u32| {
        let scale = if scaled { f64::from(head_dim).powf(-0.5) } else { 1.0 };
        Layer {
            self_attention: Attention {
                n_heads,
                n_kv_heads: n_heads,
                head_dim,
                scale: if by_layer { scale / f64::from(idx + 1) } else { scale },
                causal: true,
                window: None,
                soft_cap: None,
                positions: AttentionPositions::None,
                bias: AttentionBias::all(true),
                qk_norm: None,
            },
            self_attention_norms: Norms::pre(norm),
            cross_attention: None,
            cross_attention_norms: Norms::default(),
            feed_forward,
            feed_forward_norms: Norms::pre(norm),
            residual: Residual::Sequential,
        }
    };
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
                positions: EmbeddedPositions::Learned { n_rows: max_positions, offset: 0 },
                n_token_types: 0,
                norm: None,
                projection: false,
            },
            layers: (0..config.layers("n_layer", 12)?).map(layer).collect(),
            final_norm: Some(norm),
            max_positions,
            keys: StackKeys {
                layers: "n_layer",
                heads: "n_head",
                kv_heads: "n_head",
                feed_forward: "n_inner",
            },
        }),
        head: Some(LmHead {
            tied: config.flag("tie_word_embeddings", true)?,
            required: config.has_lm_class(),
            bias: HeadBias::None,
            scale: None,
            soft_cap: None,
        }),
        pooler: None,
        default_decoder_input: DefaultDecoderInput::None,
        keys: ConfigKeys { vocab: "vocab_size", dim: "n_embd", positions: "n_positions" },
    })
}
