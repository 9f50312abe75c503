//! The description of a model: what an engine has to compute, as data.

use drivetrain_artifacts::ModelConfig;

use crate::attention::Attention;
#[cfg(doc)]
use crate::attention::AttentionPositions;
use crate::embedding::Embedding;
use crate::error::TransformerError;
use crate::families;
use crate::feed_forward::FeedForward;
use crate::norm::{Norm, Norms};
use crate::task_head::TaskHead;

/// The shape of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// One causal stack: GPT-2, LLaMA.
    Decoder,
    /// A bidirectional stack and a causal one that attends to it: BART.
    EncoderDecoder,
    /// One bidirectional stack: BERT.
    Encoder,
}

/// A model, described.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// `model_type` of the config.
    pub family: &'static str,
    /// Which stacks there are.
    pub kind: Kind,
    /// Rows of the token table whose tokens the model says: the decoder's, where the stacks have
    /// one each.
    pub vocab: u32,
    /// Hidden size.
    pub dim: u32,
    /// The bidirectional stack, unless the model is a [`Kind::Decoder`].
    pub encoder: Option<Stack>,
    /// The causal stack, unless the model is a [`Kind::Encoder`].
    pub decoder: Option<Stack>,
    /// What makes logits of the decoder's hidden states.
    pub head: Option<LmHead>,
    /// What makes labels of hidden states, or the tokens that a mask stands for. A model has this or
    /// [`Self::head`].
    pub task_head: Option<TaskHead>,
    /// What makes a sentence vector of the encoder's first hidden state.
    pub pooler: Option<Pooler>,
    /// The decoder input of feature extraction.
    pub default_decoder_input: DefaultDecoderInput,
    /// The config's names for sizes, for messages.
    pub keys: ConfigKeys,
}

impl Architecture {
    /// The description of the model that `config` belongs to.
    ///
    /// # Errors
    /// [`TransformerError::UnknownFamily`] for a `model_type` without a description,
    /// [`TransformerError::ConfigUnsupported`] with the key that can't be expressed, and
    /// [`TransformerError::Artifact`] with the key whose value is missing or impossible.
    pub fn from_config(config: &ModelConfig) -> Result<Self, TransformerError> {
        families::describe(config)
    }

    /// The stacks in the order they run.
    pub fn stacks(&self) -> impl Iterator<Item = &Stack> {
        self.encoder.iter().chain(&self.decoder)
    }

    /// The layers of the stacks in order, to be changed.
    pub(crate) fn layers_mut(&mut self) -> impl Iterator<Item = &mut Layer> {
        self.encoder.iter_mut().chain(&mut self.decoder).flat_map(|stack| &mut stack.layers)
    }

    /// Size of the hidden states that the model gives: [`Self::dim`], unless a projection follows.
    pub fn output_dim(&self) -> u32 {
        let last = self.decoder.as_ref().or(self.encoder.as_ref());
        last.and_then(|stack| stack.output_projection).unwrap_or(self.dim)
    }

    /// Every tensor of the model under its canonical name, in the order of the modules.
    pub fn tensors(&self) -> Vec<crate::TensorSpec> {
        crate::spec::tensors(self)
    }
}

/// An encoder or a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Stack {
    /// First part of its canonical names: `encoder` or `decoder`.
    pub name: &'static str,
    /// Token ids to hidden states.
    pub embedding: Embedding,
    /// The layers in order.
    pub layers: Vec<Layer>,
    /// Norm of the last layer's output.
    pub final_norm: Option<Norm>,
    /// Rows of a matrix `[n, dim]` that follows the final norm (OPT-350m): the size of the hidden
    /// states that the model gives.
    pub output_projection: Option<u32>,
    /// The table that the attentions with [`AttentionPositions::Disentangled`] share.
    pub relative_table: Option<RelativeTable>,
    /// The longest sequence it takes.
    pub max_positions: u32,
    /// The config's names for its sizes, for messages.
    pub keys: StackKeys,
}

/// Embeddings of distances between tokens: DeBERTa.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RelativeTable {
    /// Rows: one for each bucket of distances, the farthest key after the query first.
    pub n_rows: u32,
    /// Norm of the rows.
    pub norm: Option<Norm>,
}

/// A layer of a stack.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Attention to its own sequence.
    pub self_attention: Attention,
    /// Norms around it.
    pub self_attention_norms: Norms,
    /// Attention to the encoder's output.
    pub cross_attention: Option<Attention>,
    /// Norms around it.
    pub cross_attention_norms: Norms,
    /// The feed-forward branch.
    pub feed_forward: FeedForward,
    /// Norms around it.
    pub feed_forward_norms: Norms,
    /// How the branches are added up.
    pub residual: Residual,
}

impl Stack {
    /// Without a final norm, projection and table of distances.
    pub(crate) fn new(
        name: &'static str,
        embedding: Embedding,
        layers: Vec<Layer>,
        max_positions: u32,
        keys: StackKeys,
    ) -> Self {
        Self {
            name,
            embedding,
            layers,
            final_norm: None,
            output_projection: None,
            relative_table: None,
            max_positions,
            keys,
        }
    }
}

impl Layer {
    /// Sequential branches without cross-attention, with the same norms around both.
    pub(crate) fn new(attention: Attention, feed_forward: FeedForward, norms: Norms) -> Self {
        Self {
            self_attention: attention,
            self_attention_norms: norms,
            cross_attention: None,
            cross_attention_norms: Norms::default(),
            feed_forward,
            feed_forward_norms: norms,
            residual: Residual::Sequential,
        }
    }
}

impl LmHead {
    /// A matrix and nothing else.
    pub(crate) fn new(tied: bool, required: bool) -> Self {
        Self { tied, required, bias: HeadBias::None, scale: None, soft_cap: None }
    }
}

/// How the branches of a layer are added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// One after the other: `x = x + attention(x); x = x + feed_forward(x)`.
    Sequential,
    /// One after the other, each added to its own normed input: `n = before(x); x = n + branch(n)`
    /// (BLOOM with `apply_residual_connection_post_layernorm`).
    SequentialFromNorm,
    /// Both read the layer's input: `x + attention(x) + feed_forward(x)`.
    Parallel {
        /// Whether the feed-forward reads the attention's normed input (GPT-J, Phi) in place of
        /// having a norm of its own (GPT-NeoX).
        shared_norm: bool,
    },
}

/// `logits = cap * tanh((head(x * scale) + bias) / cap)`, each part where it exists.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LmHead {
    /// Whether the config says that the token table is the head's weight. The checkpoint has the
    /// last word: see [`CanonicalWeights`](crate::CanonicalWeights).
    pub tied: bool,
    /// Whether the class that saved the checkpoint has a head. Without it and untied there may be
    /// none in the files, and the model then makes hidden states only.
    pub required: bool,
    /// Whether there may be a bias on the logits.
    pub bias: HeadBias,
    /// Factor on the hidden states ahead of the head: `dim^-0.5` in T5 1.0.
    pub scale: Option<f32>,
    /// Cap of the logits: Gemma 2.
    pub soft_cap: Option<f32>,
}

/// Whether there is a bias on the logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadBias {
    /// Never.
    None,
    /// If the checkpoint has one: BART's `final_logits_bias`.
    Optional,
    /// Always: Phi, GPT-J.
    Required,
}

/// `tanh(W x_0 + b)`, if the checkpoint has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pooler {
    /// Rows of `W`.
    pub width: u32,
}

/// The decoder input that feature extraction makes of an encoder-decoder model's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultDecoderInput {
    /// There is no rule.
    None,
    /// `[decoder_start] + ids[..n - 1]`: BART.
    ShiftRight,
    /// The ids rotated so that the last one comes first: mBART.
    RotateLast,
}

impl DefaultDecoderInput {
    /// The decoder input for encoder input `ids`, where there is a rule and `ids` is not empty.
    pub fn apply(self, ids: &[u32], decoder_start: u32) -> Option<Vec<u32>> {
        let (last, init) = ids.split_last()?;
        let first = match self {
            Self::None => return None,
            Self::ShiftRight => decoder_start,
            Self::RotateLast => *last,
        };
        Some(std::iter::once(first).chain(init.iter().copied()).collect())
    }
}

/// The config's names for a model's sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigKeys {
    /// Of [`Architecture::vocab`].
    pub vocab: &'static str,
    /// Of [`Architecture::dim`].
    pub dim: &'static str,
    /// Of the rows of a learned position table.
    pub positions: &'static str,
}

/// The config's names for a stack's sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackKeys {
    /// Of the number of layers.
    pub layers: &'static str,
    /// Of the number of query heads.
    pub heads: &'static str,
    /// Of the number of key and value heads.
    pub kv_heads: &'static str,
    /// Of the feed-forward width.
    pub feed_forward: &'static str,
}

#[cfg(test)]
mod tests {
    use super::DefaultDecoderInput::{None as NoRule, RotateLast, ShiftRight};

    #[test]
    fn decoder_inputs_follow_their_rule() {
        assert_eq!(ShiftRight.apply(&[0, 7, 8, 2], 2), Some(vec![2, 0, 7, 8]));
        assert_eq!(RotateLast.apply(&[7, 8, 2, 250_004], 2), Some(vec![250_004, 7, 8, 2]));
        assert_eq!(NoRule.apply(&[7, 8], 2), None);
        assert_eq!(ShiftRight.apply(&[], 2), None);
    }
}
