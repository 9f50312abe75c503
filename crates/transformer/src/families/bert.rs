//! BERT (Devlin et al. 2018, arXiv:1810.04805); transformers 5.23, `models/bert`.

use super::reader::Reader;
use super::{Family, ModuleNames, names};
use crate::activation::Activation;
use crate::architecture::{
    Architecture, ConfigKeys, DefaultDecoderInput, Kind, Layer, Pooler, Residual, Stack, StackKeys,
};
use crate::attention::{Attention, AttentionBias, AttentionPositions};
use crate::embedding::{EmbeddedPositions, Embedding};
use crate::error::TransformerError;
use crate::feed_forward::{FeedForward, FeedForwardForm};
use crate::norm::{Norm, Norms};

pub(super) static FAMILY: Family = Family {
    model_type: "bert",
    describe,
    prefixes: &["bert.", ""],
    probes: &["embeddings.word_embeddings.weight", "encoder.layer.0.intermediate.dense.weight"],
    modules: &[&MODULES],
};

static MODULES: [ModuleNames; 13] = names! {
    "encoder.embedding.tokens" => "embeddings.word_embeddings",
    "encoder.embedding.positions" => "embeddings.position_embeddings",
    "encoder.embedding.token_types" => "embeddings.token_type_embeddings",
    "encoder.embedding.norm" => "embeddings.LayerNorm",
    "encoder.layers.{i}.self_attention.q" => "encoder.layer.{i}.attention.self.query",
    "encoder.layers.{i}.self_attention.k" => "encoder.layer.{i}.attention.self.key",
    "encoder.layers.{i}.self_attention.v" => "encoder.layer.{i}.attention.self.value",
    "encoder.layers.{i}.self_attention.o" => "encoder.layer.{i}.attention.output.dense",
    "encoder.layers.{i}.self_attention.norm_after" => "encoder.layer.{i}.attention.output.LayerNorm",
    "encoder.layers.{i}.feed_forward.up" => "encoder.layer.{i}.intermediate.dense",
    "encoder.layers.{i}.feed_forward.down" => "encoder.layer.{i}.output.dense",
    "encoder.layers.{i}.feed_forward.norm_after" => "encoder.layer.{i}.output.LayerNorm",
    "pooler" => "pooler.dense",
};

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    config.refuse_set("is_decoder")?;
    config.refuse_set("add_cross_attention")?;
    if config.json.opt_str("position_embedding_type")?.is_some_and(|kind| kind != "absolute") {
        return Err(config.unsupported("position_embedding_type", "\"absolute\""));
    }
    let vocab = config.rows("vocab_size", 30_522)?;
    let dim = config.size("hidden_size", 768)?;
    let n_heads = config.size("num_attention_heads", 12)?;
    let head_dim = config.head_dim(("hidden_size", dim), ("num_attention_heads", n_heads))?;
    let max_positions = config.rows("max_position_embeddings", 512)?;
    let norm = Norm::layer(config.eps("layer_norm_eps", 1e-12)?);
    let layer = Layer {
        self_attention: Attention {
            n_heads,
            n_kv_heads: n_heads,
            head_dim,
            scale: f64::from(head_dim).powf(-0.5),
            causal: false,
            window: None,
            soft_cap: None,
            positions: AttentionPositions::None,
            bias: AttentionBias::all(true),
            qk_norm: None,
        },
        self_attention_norms: Norms::post(norm),
        cross_attention: None,
        cross_attention_norms: Norms::default(),
        feed_forward: FeedForward {
            width: config.size("intermediate_size", 3072)?,
            activation: config.activation("hidden_act", Activation::Gelu)?,
            form: FeedForwardForm::Plain,
            bias: true,
        },
        feed_forward_norms: Norms::post(norm),
        residual: Residual::Sequential,
    };
    Ok(Architecture {
        family: FAMILY.model_type,
        kind: Kind::Encoder,
        vocab,
        dim,
        encoder: Some(Stack {
            name: "encoder",
            embedding: Embedding {
                width: dim,
                scale: 1.0,
                positions: EmbeddedPositions::Learned { n_rows: max_positions, offset: 0 },
                n_token_types: config.rows("type_vocab_size", 2)?,
                norm: Some(norm),
                projection: false,
            },
            layers: vec![layer; config.layers("num_hidden_layers", 12)? as usize],
            final_norm: None,
            max_positions,
            keys: StackKeys {
                layers: "num_hidden_layers",
                heads: "num_attention_heads",
                kv_heads: "num_attention_heads",
                feed_forward: "intermediate_size",
            },
        }),
        decoder: None,
        head: None,
        pooler: Some(Pooler { width: dim }),
        default_decoder_input: DefaultDecoderInput::None,
        keys: ConfigKeys {
            vocab: "vocab_size",
            dim: "hidden_size",
            positions: "max_position_embeddings",
        },
    })
}
