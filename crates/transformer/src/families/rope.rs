//! Rotary parameters of a config, in the old spelling and the new.
//!
//! Old: `rope_theta` and `rope_scaling: {type | rope_type, ...}` at the top level. New (transformers
//! 5): `rope_parameters: {rope_type, rope_theta, ...}`. Where both are there, `rope_scaling` counts,
//! as in transformers 5.23, `convert_rope_params_to_dict`.

use serde_json::Value;

use super::reader::Reader;
use crate::error::TransformerError;
use crate::rotary::{Rotary, RotaryPairs, RotaryScaling};

/// A model's rotation, and how far it reaches.
pub(super) struct Rope {
    pub(super) rotary: Rotary,
    /// The longest sequence: `max_position_embeddings`, times the factor of a scaling that extends
    /// it (`linear` and `dynamic` always, `yarn` where the original length says so).
    pub(super) max_positions: u32,
}

const TYPES: &str = "default, linear, dynamic, llama3, yarn, longrope";

/// Reads the rotation of all `head_dim` values of a head.
pub(super) fn read(config: &Reader<'_>, head_dim: u32) -> Result<Rope, TransformerError> {
    let is_object = |key: &str| -> Result<bool, TransformerError> {
        match config.json.get(key)? {
            None => Ok(false),
            Some(Value::Object(map)) => Ok(!map.is_empty()),
            Some(_) => Err(config.json.invalid(key, "an object").into()),
        }
    };
    let section = if is_object("rope_scaling")? { "rope_scaling" } else { "rope_parameters" };
    let within = is_object(section)?;
    let keys = Keys { config, section };
    if within && (keys.has("full_attention") || keys.has("sliding_attention")) {
        return Err(config.unsupported(section, "one set of rotary parameters for all layers"));
    }
    if !head_dim.is_multiple_of(2) {
        let key = if config.json.contains("head_dim") { "head_dim" } else { "hidden_size" };
        let wanted = format!("heads of an even size for rotary positions, not of {head_dim}");
        return Err(config.json.invalid(key, wanted).into());
    }
    let partial = keys.number("partial_rotary_factor")?;
    let partial = partial.or(config.json.opt_f64("partial_rotary_factor")?);
    if partial.is_some_and(|factor| factor != 1.0) {
        return Err(config.unsupported("partial_rotary_factor", "1"));
    }
    let theta = match keys.number("rope_theta")? {
        Some(theta) => theta,
        None => config.json.opt_f64("rope_theta")?.unwrap_or(10_000.0),
    };
    if theta <= 1.0 {
        return Err(config.json.invalid("rope_theta", "a number above 1").into());
    }
    let max_positions = config.rows("max_position_embeddings", 2048)?;
    let (rope_type, type_key) = match config.json.opt_str(&keys.path("rope_type"))? {
        Some(name) => (name, keys.path("rope_type")),
        None => (config.json.opt_str(&keys.path("type"))?.unwrap_or("default"), keys.path("type")),
    };
    let scaling = match rope_type {
        "default" => RotaryScaling::None,
        "linear" => RotaryScaling::Linear { factor: keys.factor()? },
        "dynamic" if head_dim > 2 => {
            RotaryScaling::Dynamic { factor: keys.factor()?, max_positions }
        }
        "llama3" => llama3(&keys, max_positions)?,
        "yarn" => yarn(&keys, max_positions)?,
        "longrope" => longrope(&keys, max_positions, head_dim)?,
        _ => return Err(config.unsupported(&type_key, TYPES)),
    };
    let reach = match &scaling {
        RotaryScaling::Linear { factor } | RotaryScaling::Dynamic { factor, .. } => {
            f64::from(max_positions) * factor
        }
        RotaryScaling::Yarn { factor, original_max_positions, .. } => {
            f64::from(*original_max_positions) * factor
        }
        _ => 0.0,
    };
    Ok(Rope {
        rotary: Rotary { dim: head_dim, theta, pairs: RotaryPairs::Halves, scaling },
        max_positions: max_positions.max(reach.min(f64::from(1u32 << 30)) as u32),
    })
}

fn llama3(keys: &Keys<'_>, max_positions: u32) -> Result<RotaryScaling, TransformerError> {
    let low_freq_factor = keys.positive("low_freq_factor")?;
    let high_freq_factor = keys.positive("high_freq_factor")?;
    if high_freq_factor <= low_freq_factor {
        let wanted = format!("a number above low_freq_factor = {low_freq_factor}");
        return Err(keys.config.json.invalid(&keys.path("high_freq_factor"), wanted).into());
    }
    Ok(RotaryScaling::Llama3 {
        factor: keys.factor()?,
        low_freq_factor,
        high_freq_factor,
        original_max_positions: keys.original(max_positions)?,
    })
}

fn yarn(keys: &Keys<'_>, max_positions: u32) -> Result<RotaryScaling, TransformerError> {
    let original_max_positions = keys.original(max_positions)?;
    let factor = if keys.has("factor") {
        keys.factor()?
    } else {
        f64::from(max_positions) / f64::from(original_max_positions)
    };
    let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let non_zero = |value: &f64| *value != 0.0;
    let attention_factor = match keys.number("attention_factor")? {
        Some(attention_factor) => attention_factor,
        None => {
            let mscale = keys.number("mscale")?.filter(non_zero);
            let all_dim = keys.number("mscale_all_dim")?.filter(non_zero);
            match (mscale, all_dim) {
                (Some(mscale), Some(all_dim)) => scale(mscale) / scale(all_dim),
                _ => scale(1.0),
            }
        }
    };
    let truncate = keys.config.json.opt_bool(&keys.path("truncate"))?.unwrap_or(true);
    let positive_or = |key: &str, default: f64| -> Result<f64, TransformerError> {
        match keys.number(key)?.filter(non_zero) {
            None => Ok(default),
            Some(_) => keys.positive(key),
        }
    };
    Ok(RotaryScaling::Yarn {
        factor,
        attention_factor,
        beta_fast: positive_or("beta_fast", 32.0)?,
        beta_slow: positive_or("beta_slow", 1.0)?,
        truncate,
        original_max_positions,
    })
}

fn longrope(
    keys: &Keys<'_>,
    max_positions: u32,
    head_dim: u32,
) -> Result<RotaryScaling, TransformerError> {
    let original_max_positions = keys.original(max_positions)?;
    let list = |key: &str| -> Result<Vec<f64>, TransformerError> {
        let path = keys.path(key);
        let len = head_dim as usize / 2;
        let values = keys.config.json.get(&path)?.and_then(Value::as_array);
        let values = values.filter(|values| values.len() == len).and_then(|values| {
            let positive = |value: &Value| value.as_f64().filter(|v| v.is_finite() && *v > 0.0);
            values.iter().map(positive).collect()
        });
        let wanted = format!("a list of {len} numbers above 0, half the size of a head");
        values.ok_or_else(|| keys.config.json.invalid(&path, wanted).into())
    };
    let factor = if keys.has("factor") {
        keys.factor()?
    } else {
        f64::from(max_positions) / f64::from(original_max_positions)
    };
    let default = if factor <= 1.0 || original_max_positions == 1 {
        1.0
    } else {
        (1.0 + factor.ln() / f64::from(original_max_positions).ln()).sqrt()
    };
    Ok(RotaryScaling::LongRope {
        short_factors: list("short_factor")?,
        long_factors: list("long_factor")?,
        attention_factor: keys.number("attention_factor")?.unwrap_or(default),
        original_max_positions,
    })
}

/// The keys of the object that holds the parameters.
struct Keys<'a> {
    config: &'a Reader<'a>,
    section: &'static str,
}

impl Keys<'_> {
    fn path(&self, key: &str) -> String {
        format!("{}.{key}", self.section)
    }

    fn has(&self, key: &str) -> bool {
        self.config.json.contains(&self.path(key))
    }

    fn number(&self, key: &str) -> Result<Option<f64>, TransformerError> {
        Ok(self.config.json.opt_f64(&self.path(key))?)
    }

    fn positive(&self, key: &str) -> Result<f64, TransformerError> {
        match self.number(key)? {
            Some(value) if value > 0.0 => Ok(value),
            _ => Err(self.config.json.invalid(&self.path(key), "a number above 0").into()),
        }
    }

    fn factor(&self) -> Result<f64, TransformerError> {
        self.positive("factor")
    }

    /// Positions of the first training: a top-level key wins over one in the section.
    fn original(&self, max_positions: u32) -> Result<u32, TransformerError> {
        const KEY: &str = "original_max_position_embeddings";
        if self.config.json.contains(KEY) {
            return self.config.rows(KEY, max_positions);
        }
        self.config.rows(&self.path(KEY), max_positions)
    }
}
