//! RoBERTa (Liu et al. 2019, arXiv:1907.11692), XLM-RoBERTa and CamemBERT; transformers 5.24,
//! `models/roberta`.

use super::reader::Reader;
use super::shapes::{self, Bidirectional, KEYS};
use super::{Family, bert};
use crate::architecture::{Architecture, Pooler};
use crate::embedding::EmbeddedPositions;
use crate::error::TransformerError;

pub(super) static FAMILY: Family =
    Family { model_type: "roberta", describe, prefixes: &["roberta.", ""], ..bert::FAMILY };
pub(super) static XLM: Family = Family { model_type: "xlm-roberta", ..FAMILY };
pub(super) static CAMEMBERT: Family = Family { model_type: "camembert", ..FAMILY };

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    bert::refuse_variants(config)?;
    let dim = config.size("hidden_size", 768)?;
    let vocab = if config.family == FAMILY.model_type { 50_265 } else { 30_522 };
    let (positions, max_positions) = after_padding(config, 512)?;
    let sizes = Bidirectional {
        vocab: config.rows("vocab_size", vocab)?,
        layers: 12,
        heads: 12,
        dim,
        width: 3072,
        positions,
        max_positions,
        n_token_types: config.rows("type_vocab_size", 2)?,
        eps: config.eps("layer_norm_eps", 1e-12)?,
    };
    let stack = shapes::bert_stack(config, &sizes)?;
    Ok(shapes::encoder_model(config.family, dim, stack, Some(Pooler { width: dim }), KEYS))
}

/// Positions that begin behind the row of the padding token, and how many there are.
pub(super) fn after_padding(
    config: &Reader<'_>,
    default_rows: u32,
) -> Result<(EmbeddedPositions, u32), TransformerError> {
    let n_rows = config.rows("max_position_embeddings", default_rows)?;
    let padding = config.json.opt_u32("pad_token_id")?.unwrap_or(1);
    let Some(max_positions) = n_rows.checked_sub(padding + 1).filter(|n| *n > 0) else {
        let wanted = format!("more than pad_token_id + 1 = {}", u64::from(padding) + 1);
        return Err(config.json.invalid("max_position_embeddings", wanted).into());
    };
    let offset = padding + 1;
    Ok((EmbeddedPositions::Learned { n_rows, offset, skipped: Some(padding) }, max_positions))
}
