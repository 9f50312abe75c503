//! Every transformer architecture as data.
//!
//! [`Architecture`] describes a model from its `config.json`: what an engine has to compute, and
//! nothing of how. [`CanonicalWeights`] gives the model's tensors one set of names and one layout,
//! whatever the checkpoint called them, checked against the description before anything is read.
//! What follows from the description alone and must be the same in every engine stands here too:
//! rotary frequencies, activations, and the decoder input that feature extraction uses.
//!
//! A new family is one file in `families`: a function from its config to the description, and a
//! table of its checkpoint names.
#![forbid(unsafe_code)]

mod activation;
mod adapter;
mod architecture;
mod attention;
mod embedding;
mod error;
mod families;
mod feed_forward;
mod held_rows;
mod module_tree;
mod norm;
mod positions;
mod rotary;
mod spec;
mod task_head;
mod tensor;
mod weights;

pub use activation::Activation;
pub use adapter::{Adapter, AdapterFiles, LowRank};
pub use architecture::{
    Architecture, ConfigKeys, DefaultDecoderInput, HeadBias, Kind, Layer, LmHead, Pooler,
    RelativeTable, Residual, Stack, StackKeys,
};
pub use attention::{Attention, AttentionBias, AttentionPositions};
pub use embedding::{EmbeddedPositions, Embedding};
pub use error::{TensorProblem, TransformerError};
pub use families::model_types;
pub use feed_forward::{FeedForward, FeedForwardForm};
pub use held_rows::HeldRows;
pub use module_tree::Module;
pub use norm::{Norm, NormKind, Norms};
pub use positions::{Alibi, Disentangled, RelativeBuckets, sinusoidal};
pub use rotary::{Rotary, RotaryPairs, RotaryScaling};
pub use spec::{Parameter, Presence, TensorSpec};
pub use task_head::{HeadReads, HeadTask, TaskHead};
pub use tensor::{CanonicalTensor, Rows, Scratch};
pub use weights::CanonicalWeights;
