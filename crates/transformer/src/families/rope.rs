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

/// What a family's configs say when they say nothing.
pub(super) struct Defaults {
    pub(super) head_dim: u32,
    pub(super) theta: f64,
    /// The old spelling of the base, at the top level.
    pub(super) theta_key: &'static str,
    /// The share of a head that is rotated; `None` in families that rotate whole heads only.
    pub(super) partial: Option<f64>,
    /// The old spelling of the share, at the top level.
    pub(super) partial_key: &'static str,
    pub(super) max_positions: u32,
}

impl Defaults {
    /// Whole heads are rotated, with a base of 10,000.
    pub(super) fn new(head_dim: u32, max_positions: u32) -> Self {
        Self {
            head_dim,
            theta: 10_000.0,
            theta_key: "rope_theta",
            partial: None,
            partial_key: "partial_rotary_factor",
            max_positions,
        }
    }
}

const TYPES: &str = "default, linear, dynamic, llama3, yarn, longrope";
const NEW: &str = "rope_parameters";
const OLD: &str = "rope_scaling";

/// Reads the rotation that all layers share.
pub(super) fn read(config: &Reader<'_>, defaults: &Defaults) -> Result<Rope, TransformerError> {
    let section = if is_object(config, OLD)? { OLD } else { NEW };
    if is_object(config, section)? && has_layer_types(config, section) {
        return Err(config.unsupported(section, "one set of rotary parameters for all layers"));
    }
    read_section(config, defaults, section)
}

/// The rotation of whole heads without scaling, its base under `theta_key`, else 10,000.
pub(super) fn plain(
    config: &Reader<'_>,
    head_dim: u32,
    theta_key: &str,
) -> Result<Rotary, TransformerError> {
    let theta = config.json.opt_f64(theta_key)?.unwrap_or(10_000.0);
    if theta <= 1.0 {
        return Err(config.json.invalid(theta_key, "a number above 1").into());
    }
    if !head_dim.is_multiple_of(2) {
        return Err(config.json.invalid("head_dim", "an even number").into());
    }
    let (pairs, scaling) = (RotaryPairs::Halves, RotaryScaling::None);
    Ok(Rotary { dim: head_dim, theta, pairs, scaling })
}

/// Whether there are parameters for each type of layer.
pub(super) fn has_layer_types(config: &Reader<'_>, section: &str) -> bool {
    ["full_attention", "sliding_attention"]
        .iter()
        .any(|layer_type| config.json.contains(&format!("{section}.{layer_type}")))
}

/// Reads the rotation of layers of one type: of `rope_parameters` where it tells types apart, else
/// as [`read`].
pub(super) fn read_for(
    config: &Reader<'_>,
    defaults: &Defaults,
    layer_type: &str,
) -> Result<Rope, TransformerError> {
    if is_object(config, NEW)? && has_layer_types(config, NEW) {
        return read_section(config, defaults, &format!("{NEW}.{layer_type}"));
    }
    read(config, defaults)
}

fn is_object(config: &Reader<'_>, key: &str) -> Result<bool, TransformerError> {
    if !config.json.contains(key) {
        return Ok(false);
    }
    match config.json.get(key)? {
        Some(Value::Object(map)) => Ok(!map.is_empty()),
        _ => Err(config.json.invalid(key, "an object").into()),
    }
}

fn read_section(
    config: &Reader<'_>,
    defaults: &Defaults,
    section: &str,
) -> Result<Rope, TransformerError> {
    let keys = Keys { config, section };
    let dim = rotated_dim(&keys, defaults)?;
    let theta = config.json.opt_f64_any(&[&keys.path("rope_theta"), defaults.theta_key])?;
    let theta = theta.unwrap_or(defaults.theta);
    if theta <= 1.0 {
        return Err(config.json.invalid(defaults.theta_key, "a number above 1").into());
    }
    let max_positions = config.rows("max_position_embeddings", defaults.max_positions)?;
    let type_keys = ["rope_type", "type"].map(|key| keys.path(key));
    let rope_type = config.json.opt_str_any(&type_keys.each_ref().map(String::as_str))?;
    let scaling = match rope_type.unwrap_or("default") {
        "default" => RotaryScaling::None,
        "linear" => RotaryScaling::Linear { factor: keys.factor()? },
        "dynamic" if dim > 2 => RotaryScaling::Dynamic { factor: keys.factor()?, max_positions },
        "llama3" => llama3(&keys, max_positions)?,
        // The name in early Phi-3 files, and what Phi-3 means by "yarn".
        "su" => longrope(&keys, max_positions, dim)?,
        "yarn" if config.family == "phi3" => longrope(&keys, max_positions, dim)?,
        "yarn" => yarn(&keys, max_positions)?,
        "longrope" => longrope(&keys, max_positions, dim)?,
        _ => {
            let key = type_keys.iter().find(|key| config.json.contains(key));
            return Err(config.unsupported(key.map_or(section, String::as_str), TYPES));
        }
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
        rotary: Rotary { dim, theta, pairs: RotaryPairs::Halves, scaling },
        max_positions: max_positions.max(reach.min(f64::from(1u32 << 30)) as u32),
    })
}

/// How many values of a head are rotated.
fn rotated_dim(keys: &Keys<'_>, defaults: &Defaults) -> Result<u32, TransformerError> {
    let (config, head_dim) = (keys.config, defaults.head_dim);
    let (inner_key, partial_key) = (keys.path("partial_rotary_factor"), defaults.partial_key);
    let stated = config.json.opt_f64_any(&[&inner_key, partial_key])?;
    if defaults.partial.is_none() && stated.is_some_and(|partial| partial != 1.0) {
        return Err(config.unsupported(partial_key, "1"));
    }
    let partial = stated.or(defaults.partial).unwrap_or(1.0);
    if partial == 1.0 && !head_dim.is_multiple_of(2) {
        let key = if config.json.contains("head_dim") { "head_dim" } else { "hidden_size" };
        let wanted = format!("heads of an even size for rotary positions, not of {head_dim}");
        return Err(config.json.invalid(key, wanted).into());
    }
    let dim = (f64::from(head_dim) * partial) as u32;
    if !(0.0..=1.0).contains(&partial) || dim == 0 || !dim.is_multiple_of(2) {
        let key = if config.json.contains(&inner_key) { &inner_key } else { partial_key };
        let wanted = format!("a share of {head_dim} that is an even number, at least 2");
        return Err(config.json.invalid(key, wanted).into());
    }
    Ok(dim)
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
    let factor = match keys.number("factor")? {
        Some(_) => keys.factor()?,
        None => f64::from(max_positions) / f64::from(original_max_positions),
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
    dim: u32,
) -> Result<RotaryScaling, TransformerError> {
    let original_max_positions = keys.original(max_positions)?;
    let list = |key: &str| -> Result<Vec<f64>, TransformerError> {
        let path = keys.path(key);
        let len = dim as usize / 2;
        let values = keys.config.json.get(&path)?.and_then(Value::as_array);
        let values = values.filter(|values| values.len() == len).and_then(|values| {
            let positive = |value: &Value| value.as_f64().filter(|v| v.is_finite() && *v > 0.0);
            values.iter().map(positive).collect()
        });
        let wanted = format!("a list of {len} numbers above 0, half of what is rotated of a head");
        values.ok_or_else(|| keys.config.json.invalid(&path, wanted).into())
    };
    let factor = match keys.number("factor")? {
        Some(_) => keys.factor()?,
        None => f64::from(max_positions) / f64::from(original_max_positions),
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
    section: &'a str,
}

impl Keys<'_> {
    fn path(&self, key: &str) -> String {
        format!("{}.{key}", self.section)
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
