//! ELECTRA (Clark et al. 2020, arXiv:2003.10555): BERT without a pooler; transformers 5.24,
//! `models/electra`.
//!
//! Sizes whose embeddings are narrower than the layers (`electra-small`, and all generators) add up
//! and norm positions and token types in the narrow size, and project the sum, bias included. A
//! description has no word for that.

use super::reader::Reader;
use super::shapes::{self, Bidirectional, KEYS};
use super::{Family, bert};
use crate::architecture::Architecture;
use crate::embedding::EmbeddedPositions;
use crate::error::TransformerError;

pub(super) static FAMILY: Family =
    Family { model_type: "electra", describe, prefixes: &["electra.", ""], ..bert::FAMILY };

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    bert::refuse_variants(config)?;
    let dim = config.size("hidden_size", 256)?;
    let width = config.size("embedding_size", 128)?;
    if width != dim {
        let wanted = format!("{dim}, the hidden size");
        return Err(config.unsupported("embedding_size", wanted));
    }
    let max_positions = config.rows("max_position_embeddings", 512)?;
    let sizes = Bidirectional {
        vocab: config.rows("vocab_size", 30_522)?,
        layers: 12,
        heads: 4,
        dim,
        width: 1024,
        positions: EmbeddedPositions::Learned { n_rows: max_positions, offset: 0, skipped: None },
        max_positions,
        n_token_types: config.rows("type_vocab_size", 2)?,
        eps: config.eps("layer_norm_eps", 1e-12)?,
    };
    let stack = shapes::bert_stack(config, &sizes)?;
    Ok(shapes::encoder_model(config.family, dim, stack, None, KEYS))
}
