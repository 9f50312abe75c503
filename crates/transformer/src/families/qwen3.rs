//! Qwen 3 (Yang et al. 2025, arXiv:2505.09388); transformers 5.24, `models/qwen3`.

use super::Family;
use super::llama::{self, Kin};
use super::qwen2::{self, QWEN};
use super::reader::Reader;
use crate::architecture::Architecture;
use crate::attention::AttentionBias;
use crate::error::TransformerError;
use crate::norm::Norm;

pub(super) static FAMILY: Family = Family { model_type: "qwen3", describe, ..llama::FAMILY };

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let bias = AttentionBias::all(config.flag("attention_bias", false)?);
    let mut architecture = llama::describe_kin(config, &Kin { head_dim: Some(128), bias, ..QWEN })?;
    let norm = Norm::rms(config.eps("rms_norm_eps", 1e-6)?);
    architecture.layers_mut().for_each(|layer| layer.self_attention.qk_norm = Some(norm));
    qwen2::slide(config, &mut architecture)?;
    Ok(architecture)
}
