//! Mistral (Jiang et al. 2023, arXiv:2310.06825); transformers 5.24, `models/mistral`.

use super::Family;
use super::llama::{self, Kin, LLAMA};
use super::reader::Reader;
use crate::architecture::Architecture;
use crate::error::TransformerError;

pub(super) static FAMILY: Family = Family { model_type: "mistral", describe, ..llama::FAMILY };

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let kin = Kin { width: 14_336, kv_heads: Some(8), max_positions: 4096 * 32, ..LLAMA };
    let mut architecture = llama::describe_kin(config, &kin)?;
    let window = config.window(Some(4096))?;
    config.slide(&mut architecture, window, |_| true)?;
    Ok(architecture)
}
