//! Rotary positions: their base, the share of a head that is turned, and how they are stretched.

use serde_json::{Value as Json, json};

use super::architectures::Config;
use super::config::Meta;
use crate::error::ArtifactError;

/// Longest list of factors: half the size of a head.
const MAX_FACTORS: usize = 1 << 14;

/// Writes `rope_theta`, `partial_rotary_factor` and `rope_scaling` for heads of `head_dim` numbers.
pub(super) fn write(
    meta: &Meta<'_, '_>,
    head_dim: u32,
    config: &mut Config,
) -> Result<(), ArtifactError> {
    write_with_base(meta, head_dim, 10_000.0, config)
}

/// The same, where a file that names no base means `default_base`.
pub(super) fn write_with_base(
    meta: &Meta<'_, '_>,
    head_dim: u32,
    default_base: f64,
    config: &mut Config,
) -> Result<(), ArtifactError> {
    let base = meta.opt_f64("rope.freq_base")?.unwrap_or(default_base);
    config.insert("rope_theta".to_owned(), base.into());
    if let Some(turned) = meta.opt_u32("rope.dimension_count")?.filter(|n| *n != head_dim) {
        if turned == 0 || turned > head_dim {
            let wanted = format!("a number from 1 to {head_dim}, the size of a head");
            return Err(meta.invalid("rope.dimension_count", &wanted));
        }
        let share = f64::from(turned) / f64::from(head_dim);
        config.insert("partial_rotary_factor".to_owned(), share.into());
    }
    if let Some(scaling) = scaling(meta)? {
        config.insert("rope_scaling".to_owned(), scaling);
    }
    Ok(())
}

fn scaling(meta: &Meta<'_, '_>) -> Result<Option<Json>, ArtifactError> {
    const KEY: &str = "rope.scaling.type";
    let kind = meta.opt_str(KEY)?.filter(|kind| *kind != "none" && !kind.is_empty());
    let original = meta.opt_u32("rope.scaling.original_context_length")?;
    // LLaMA 3.1's stretching comes as the factor of each pair, which longrope's form can say.
    if let Some(factors) = factors(meta, "rope_freqs.weight")? {
        if kind.is_some() {
            return Err(meta.invalid(KEY, "none, because the file has rope_freqs.weight, too"));
        }
        return Ok(Some(json!({
            "rope_type": "longrope", "short_factor": factors, "long_factor": factors,
            "factor": 1.0, "attention_factor": 1.0,
            "original_max_position_embeddings": meta.u32("context_length")?,
        })));
    }
    let long = factors(meta, "rope_factors_long.weight")?;
    let short = factors(meta, "rope_factors_short.weight")?;
    if let (Some(long), Some(short)) = (long, short) {
        let mut scaling = json!({
            "rope_type": "longrope", "short_factor": short, "long_factor": long,
            "original_max_position_embeddings": match original {
                Some(original) => original,
                None => meta.u32("context_length")?,
            },
        });
        if let Some(factor) = meta.opt_f64("rope.scaling.attn_factor")? {
            scaling["attention_factor"] = factor.into();
        }
        return Ok(Some(scaling));
    }
    let factor = match meta.opt_f64("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => meta.opt_f64("rope.scale_linear")?,
    };
    match kind {
        None => match factor.filter(|factor| *factor != 1.0 && *factor != 0.0) {
            None => Ok(None),
            Some(factor) => Ok(Some(json!({"rope_type": "linear", "factor": factor}))),
        },
        Some("linear") => {
            let factor = factor.ok_or_else(|| meta.missing("rope.scaling.factor", "a number"))?;
            Ok((factor != 1.0).then(|| json!({"rope_type": "linear", "factor": factor})))
        }
        Some("yarn") => {
            let factor = factor.ok_or_else(|| meta.missing("rope.scaling.factor", "a number"))?;
            let mut scaling = json!({"rope_type": "yarn", "factor": factor});
            let mut copy = |to: &str, value: Option<Json>| {
                if let Some(value) = value {
                    scaling[to] = value;
                }
            };
            if meta.opt_f64("rope.scaling.attn_factor")?.is_some_and(|factor| factor != 1.0) {
                return Err(meta.invalid("rope.scaling.attn_factor", "none, or 1, with yarn"));
            }
            copy("original_max_position_embeddings", original.map(Json::from));
            for (from, to) in [
                ("rope.scaling.yarn_beta_fast", "beta_fast"),
                ("rope.scaling.yarn_beta_slow", "beta_slow"),
            ] {
                copy(to, meta.opt_f64(from)?.map(Json::from));
            }
            Ok(Some(scaling))
        }
        Some("longrope") => {
            Err(meta.invalid(KEY, "a file with rope_factors_long.weight and _short.weight"))
        }
        Some(_) => Err(meta.invalid(KEY, "none, linear, yarn or longrope")),
    }
}

/// The numbers of a small tensor.
fn factors(meta: &Meta<'_, '_>, name: &str) -> Result<Option<Vec<f64>>, ArtifactError> {
    let Some(tensor) = meta.header.tensor(name) else { return Ok(None) };
    let wrong = || ArtifactError::Tensor {
        path: meta.header.path().to_owned(),
        tensor: name.to_owned(),
        reason: format!("expected at most {MAX_FACTORS} numbers of F32 above 0"),
    };
    let bytes = meta.header.bytes_of(tensor);
    let is_list = tensor.dtype == crate::weights::DType::F32 && tensor.n_elements <= MAX_FACTORS;
    let numbers = bytes.filter(|_| is_list).ok_or_else(wrong)?.as_chunks::<4>().0;
    let numbers = numbers.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes)));
    let positive = |number: f64| (number.is_finite() && number > 0.0).then_some(number);
    numbers.map(positive).collect::<Option<_>>().map(Some).ok_or_else(wrong)
}
