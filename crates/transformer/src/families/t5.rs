//! T5 (Raffel et al. 2019, arXiv:1910.10683), FLAN-T5 (Chung et al. 2022, arXiv:2210.11416), mT5
//! (Xue et al. 2020, arXiv:2010.11934) and UMT5 (Chung et al. 2023, arXiv:2304.09151); transformers
//! 5.24, `models/t5`, `mt5`, `umt5`.

use super::reader::Reader;
use super::shapes::{self, UNBOUNDED};
use super::{Family, ModuleNames, Place, names};
use crate::activation::Activation;
use crate::architecture::{
    Architecture, ConfigKeys, DefaultDecoderInput, Kind, Layer, LmHead, Stack, StackKeys,
};
use crate::attention::{Attention, AttentionPositions, Heads};
use crate::embedding::Embedding;
use crate::error::TransformerError;
use crate::feed_forward::{FeedForward, FeedForwardForm};
use crate::norm::{Norm, Norms};
use crate::positions::RelativeBuckets;

pub(super) static T5: Family = Family {
    model_type: "t5",
    aliases: &[
        ("hidden_size", "d_model"),
        ("num_attention_heads", "num_heads"),
        ("num_hidden_layers", "num_layers"),
        ("head_dim", "d_kv"),
    ],
    describe,
    prefixes: &["", "transformer."],
    probes: &["encoder.final_layer_norm.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"],
    modules: &[&EMBEDDINGS, &LAYERS, &UP, &SHARED_BIAS],
};

pub(super) static MT5: Family = Family { model_type: "mt5", ..T5 };

pub(super) static UMT5: Family =
    Family { model_type: "umt5", modules: &[&EMBEDDINGS, &LAYERS, &UP, &OWN_BIAS], ..T5 };

const SHARED: Place = Place::new("shared");
const ENCODER_TOKENS: Place = Place::new("encoder.embed_tokens");
const DECODER_TOKENS: Place = Place::new("decoder.embed_tokens");
const LM_HEAD: Place = Place::top("lm_head");

/// Any of the names may hold the one table. A head that is there is the head, whatever the config
/// says of ties: the class has always looked for one.
static EMBEDDINGS: [ModuleNames; 3] = [
    ModuleNames {
        canonical: "encoder.embedding.tokens",
        found: &[SHARED, ENCODER_TOKENS, DECODER_TOKENS, LM_HEAD.tied()],
    },
    ModuleNames {
        canonical: "decoder.embedding.tokens",
        found: &[SHARED, DECODER_TOKENS, ENCODER_TOKENS, LM_HEAD.tied()],
    },
    ModuleNames { canonical: "head", found: &[LM_HEAD, SHARED, DECODER_TOKENS, ENCODER_TOKENS] },
];

static LAYERS: [ModuleNames; 17] = names! {
    "{s}.layers.{i}.self_attention.q" => "{s}.block.{i}.layer.0.SelfAttention.q",
    "{s}.layers.{i}.self_attention.k" => "{s}.block.{i}.layer.0.SelfAttention.k",
    "{s}.layers.{i}.self_attention.v" => "{s}.block.{i}.layer.0.SelfAttention.v",
    "{s}.layers.{i}.self_attention.o" => "{s}.block.{i}.layer.0.SelfAttention.o",
    "{s}.layers.{i}.self_attention.norm_before" => "{s}.block.{i}.layer.0.layer_norm",
    "decoder.layers.{i}.cross_attention.q" => "decoder.block.{i}.layer.1.EncDecAttention.q",
    "decoder.layers.{i}.cross_attention.k" => "decoder.block.{i}.layer.1.EncDecAttention.k",
    "decoder.layers.{i}.cross_attention.v" => "decoder.block.{i}.layer.1.EncDecAttention.v",
    "decoder.layers.{i}.cross_attention.o" => "decoder.block.{i}.layer.1.EncDecAttention.o",
    "decoder.layers.{i}.cross_attention.norm_before" => "decoder.block.{i}.layer.1.layer_norm",
    "encoder.layers.{i}.feed_forward.gate" => "encoder.block.{i}.layer.1.DenseReluDense.wi_0",
    "encoder.layers.{i}.feed_forward.down" => "encoder.block.{i}.layer.1.DenseReluDense.wo",
    "encoder.layers.{i}.feed_forward.norm_before" => "encoder.block.{i}.layer.1.layer_norm",
    "decoder.layers.{i}.feed_forward.gate" => "decoder.block.{i}.layer.2.DenseReluDense.wi_0",
    "decoder.layers.{i}.feed_forward.down" => "decoder.block.{i}.layer.2.DenseReluDense.wo",
    "decoder.layers.{i}.feed_forward.norm_before" => "decoder.block.{i}.layer.2.layer_norm",
    "{s}.final_norm" => "{s}.final_layer_norm",
};

/// The matrix beside the gate has another name than one without a gate.
static UP: [ModuleNames; 2] = [
    ModuleNames {
        canonical: "encoder.layers.{i}.feed_forward.up",
        found: &[
            Place::new("encoder.block.{i}.layer.1.DenseReluDense.wi"),
            Place::new("encoder.block.{i}.layer.1.DenseReluDense.wi_1"),
        ],
    },
    ModuleNames {
        canonical: "decoder.layers.{i}.feed_forward.up",
        found: &[
            Place::new("decoder.block.{i}.layer.2.DenseReluDense.wi"),
            Place::new("decoder.block.{i}.layer.2.DenseReluDense.wi_1"),
        ],
    },
];

/// The first layer's table serves all layers of its stack.
static SHARED_BIAS: [ModuleNames; 1] = names! {
    "{s}.layers.{i}.self_attention.relative_bias"
        => "{s}.block.0.layer.0.SelfAttention.relative_attention_bias",
};

static OWN_BIAS: [ModuleNames; 1] = names! {
    "{s}.layers.{i}.self_attention.relative_bias"
        => "{s}.block.{i}.layer.0.SelfAttention.relative_attention_bias",
};

const KEYS: ConfigKeys =
    ConfigKeys { vocab: "vocab_size", dim: "d_model", positions: "n_positions" };

/// What classes of this family say when configs say nothing.
struct Defaults {
    vocab: u32,
    width: u32,
    layers: u32,
    heads: u32,
    feed_forward: &'static str,
}

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let defaults = if config.family == T5.model_type {
        Defaults { vocab: 32_128, width: 2048, layers: 6, heads: 8, feed_forward: "relu" }
    } else {
        Defaults { vocab: 250_112, width: 1024, layers: 8, heads: 6, feed_forward: "gated-gelu" }
    };
    let dim = config.size("d_model", 512)?;
    let encoder = stack(config, &defaults, dim, "encoder")?;
    if config.config.architectures.iter().any(|class| class.ends_with("EncoderModel")) {
        return Ok(shapes::encoder_model(config.family, dim, encoder, None, KEYS));
    }
    let untied = config.json.opt_bool("tie_word_embeddings")? == Some(false);
    // Transformers 5 writes down what it once concluded from untied embeddings.
    let scaled = config.flag("scale_decoder_outputs", !untied)? && config.family != MT5.model_type;
    let scale = scaled.then(|| f64::from(dim).powf(-0.5) as f32);
    Ok(Architecture {
        family: config.family,
        kind: Kind::EncoderDecoder,
        vocab: encoder.embedding.n_tokens,
        dim,
        encoder: Some(encoder),
        decoder: Some(stack(config, &defaults, dim, "decoder")?),
        head: Some(LmHead { scale, ..LmHead::new(!untied, config.has_lm_class()) }),
        task_head: None,
        pooler: None,
        default_decoder_input: DefaultDecoderInput::None,
        keys: KEYS,
    })
}

fn stack(
    config: &Reader<'_>,
    defaults: &Defaults,
    dim: u32,
    name: &'static str,
) -> Result<Stack, TransformerError> {
    let decoder = name == "decoder";
    let n = config.size("num_heads", defaults.heads)?;
    let heads = Heads { n, n_kv: n, dim: config.size("d_kv", 64)? };
    let attention = |causal| Attention { scale: 1.0, ..Attention::new(heads, causal) };
    let mut self_attention = attention(decoder);
    self_attention.positions = AttentionPositions::RelativeBuckets(buckets(config, decoder)?);
    let norm = Norm::rms(config.eps("layer_norm_epsilon", 1e-6)?);
    let feed_forward = feed_forward(config, defaults)?;
    let mut layer = Layer::new(self_attention, feed_forward, Norms::pre(norm));
    let mut n_layers = config.layers("num_layers", defaults.layers)?;
    if decoder {
        layer.cross_attention = Some(attention(false));
        layer.cross_attention_norms = Norms::pre(norm);
        n_layers = config.layers("num_decoder_layers", n_layers)?;
    }
    let keys = StackKeys {
        layers: if decoder { "num_decoder_layers" } else { "num_layers" },
        heads: "num_heads",
        kv_heads: "num_heads",
        feed_forward: "d_ff",
    };
    let embedding = Embedding::tokens(config.rows("vocab_size", defaults.vocab)?, dim);
    let mut stack = Stack::new(name, embedding, vec![layer; n_layers as usize], UNBOUNDED, keys);
    stack.final_norm = Some(norm);
    Ok(stack)
}

fn buckets(config: &Reader<'_>, decoder: bool) -> Result<RelativeBuckets, TransformerError> {
    const BUCKETS: &str = "relative_attention_num_buckets";
    const DISTANCE: &str = "relative_attention_max_distance";
    let n_buckets = config.size(BUCKETS, 32)?;
    if n_buckets < 4 {
        return Err(config.json.invalid(BUCKETS, "a whole number from 4 on").into());
    }
    let max_distance = config.size(DISTANCE, 128)?;
    if max_distance <= n_buckets / 2 {
        let wanted = format!("more than half of {BUCKETS} = {n_buckets}");
        return Err(config.json.invalid(DISTANCE, wanted).into());
    }
    Ok(RelativeBuckets { n_buckets, max_distance, bidirectional: !decoder })
}

/// `relu`, `gated-gelu` and the like: an activation, and whether a gate is activated by it.
fn feed_forward(config: &Reader<'_>, defaults: &Defaults) -> Result<FeedForward, TransformerError> {
    const KEY: &str = "feed_forward_proj";
    let text = config.json.opt_str(KEY)?.unwrap_or(defaults.feed_forward);
    let (form, name) = match text.strip_prefix("gated-") {
        Some("gelu") => (FeedForwardForm::Gated, "gelu_new"),
        Some(name) => (FeedForwardForm::Gated, name),
        None => (FeedForwardForm::Plain, text),
    };
    let Some(activation) = Activation::from_name(name) else {
        let known: Vec<_> = Activation::names().collect();
        let wanted = format!("an activation, alone or after \"gated-\": {}", known.join(", "));
        return Err(config.unsupported(KEY, wanted));
    };
    Ok(FeedForward { width: config.size("d_ff", defaults.width)?, activation, form, bias: false })
}
