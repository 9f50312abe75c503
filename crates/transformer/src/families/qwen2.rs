//! Qwen 2 and 2.5 (Yang et al. 2024, arXiv:2407.10671); transformers 5.24, `models/qwen2`.

use super::Family;
use super::llama::{self, Kin, LLAMA};
use super::reader::Reader;
use crate::architecture::Architecture;
use crate::attention::AttentionBias;
use crate::error::TransformerError;

pub(super) static FAMILY: Family = Family { model_type: "qwen2", describe, ..llama::FAMILY };

/// What Qwen 2 and 3 start from.
pub(super) const QWEN: Kin =
    Kin { vocab: 151_936, width: 22_016, kv_heads: Some(32), max_positions: 32_768, ..LLAMA };

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let bias = AttentionBias { q: true, k: true, v: true, o: false };
    let mut architecture = llama::describe_kin(config, &Kin { bias, ..QWEN })?;
    slide(config, &mut architecture)?;
    Ok(architecture)
}

/// Windows, where they are switched on: in the layers from `max_window_layers` on.
pub(super) fn slide(
    config: &Reader<'_>,
    architecture: &mut Architecture,
) -> Result<(), TransformerError> {
    let on = config.flag("use_sliding_window", false)?;
    let window = if on { config.window(Some(4096))? } else { None };
    let first = config.json.opt_u32("max_window_layers")?.unwrap_or(28);
    config.slide(architecture, window, |idx| idx >= first)
}
