//! `adapter_config.json`: what kind of adapter it is, and how much its product counts.
//!
//! Source: PEFT, `src/peft/tuners/lora/{config,layer}.py` and `src/peft/utils/other.py`
//! (`get_pattern_key`).

use drivetrain_artifacts::{JsonFile, ModelDir};
use regex::{Regex, RegexBuilder};

use crate::error::TransformerError;

/// The file's name.
pub(crate) const CONFIG: &str = "adapter_config.json";
/// Largest file.
const MAX_BYTES: u64 = 1 << 20;
/// Largest compiled pattern.
const MAX_PATTERN_BYTES: usize = 1 << 20;
/// Settings that change what is computed in ways that are not described here.
const REFUSED: &[&str] = &[
    "layer_replication",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "target_parameters",
    "lora_bias",
];

/// What an adapter's config says.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) json: JsonFile,
    alpha: f64,
    /// Other alphas, for the modules whose names match.
    alphas: Vec<(Regex, f64)>,
    /// Whether the product is divided by the root of the rank instead of the rank (2312.03732).
    root_of_rank: bool,
}

impl Settings {
    pub(super) fn read(dir: &ModelDir) -> Result<Self, TransformerError> {
        let path = dir
            .file(CONFIG)?
            .ok_or_else(|| TransformerError::NoAdapter { dir: dir.path().to_owned() })?;
        let json = JsonFile::read(&path, MAX_BYTES)?;
        let kind = json.str("peft_type")?;
        if kind != "LORA" {
            return Err(unsupported(&json, "peft_type", "\"LORA\""));
        }
        for key in REFUSED {
            let asks = match json.get(key)? {
                None | Some(serde_json::Value::Bool(false)) => false,
                Some(serde_json::Value::Array(items)) => !items.is_empty(),
                Some(serde_json::Value::Object(items)) => !items.is_empty(),
                Some(_) => true,
            };
            if asks {
                return Err(unsupported(&json, key, "an adapter without it"));
            }
        }
        Ok(Self {
            alpha: json.f64("lora_alpha")?,
            alphas: alphas(&json)?,
            root_of_rank: json.opt_bool("use_rslora")?.unwrap_or(false),
            json,
        })
    }

    /// The factor on the product of a module's matrices.
    pub(super) fn scale(&self, module: &str, rank: usize) -> f32 {
        let own = self.alphas.iter().find(|(pattern, _)| pattern.is_match(module));
        let alpha = own.map_or(self.alpha, |(_, alpha)| *alpha);
        let rank = rank as f64;
        (alpha / if self.root_of_rank { rank.sqrt() } else { rank }) as f32
    }
}

/// `alpha_pattern`: module names, or patterns of their ends.
fn alphas(json: &JsonFile) -> Result<Vec<(Regex, f64)>, TransformerError> {
    const KEY: &str = "alpha_pattern";
    let Some(value) = json.get(KEY)? else { return Ok(Vec::new()) };
    let wanted = "an object of module names, or patterns of them, and numbers";
    let object = value.as_object().ok_or_else(|| json.invalid(KEY, wanted))?;
    let pattern = |(name, alpha): (&String, &serde_json::Value)| {
        let alpha = alpha.as_f64().filter(|alpha| alpha.is_finite())?;
        let end = name.strip_prefix('^').unwrap_or(name);
        let start = if name.starts_with('^') { "" } else { r"(?:.*\.)?" };
        let mut pattern = RegexBuilder::new(&format!("^{start}(?:{end})$"));
        Some((pattern.size_limit(MAX_PATTERN_BYTES).build().ok()?, alpha))
    };
    let all: Option<Vec<_>> = object.iter().map(pattern).collect();
    Ok(all.ok_or_else(|| json.invalid(KEY, wanted))?)
}

fn unsupported(json: &JsonFile, key: &str, wanted: &str) -> TransformerError {
    let found = match json.get(key) {
        Ok(Some(value)) => value.to_string().chars().take(80).collect(),
        _ => "null".to_owned(),
    };
    TransformerError::AdapterUnsupported {
        file: json.path().to_owned(),
        what: format!("{key} = {found}"),
        wanted: wanted.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<Settings, TransformerError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(CONFIG), text).unwrap();
        Settings::read(&ModelDir::open(dir.path(), &Default::default()).unwrap())
    }

    #[test]
    fn the_scale_follows_alpha_rank_and_patterns() {
        let plain = settings(
            r#"{"peft_type": "LORA", "lora_alpha": 16, "r": 8, "layer_replication": null,
                "alpha_pattern": {"layers.1.q_proj": 4, "^model.v_proj": 2, "k_.*": 32}}"#,
        )
        .unwrap();
        assert_eq!(plain.scale("model.layers.0.q_proj", 8), 2.0);
        assert_eq!(plain.scale("model.layers.1.q_proj", 8), 0.5);
        assert_eq!(plain.scale("model.layers.11.q_proj", 8), 2.0);
        assert_eq!(plain.scale("model.v_proj", 8), 0.25);
        assert_eq!(plain.scale("x.model.v_proj", 8), 2.0);
        assert_eq!(plain.scale("x.k_proj", 8), 4.0);
        let rooted =
            settings(r#"{"peft_type": "LORA", "lora_alpha": 16, "use_rslora": true}"#).unwrap();
        assert_eq!(rooted.scale("q", 16), 4.0);
    }

    #[test]
    fn other_kinds_are_refused_by_name() {
        for (text, expect) in [
            (r#"{"peft_type": "IA3"}"#, "peft_type = \"IA3\""),
            (
                r#"{"peft_type": "LORA", "lora_alpha": 1, "target_parameters": ["a"]}"#,
                "target_parameters = [\"a\"]",
            ),
            (r#"{"peft_type": "LORA"}"#, "lora_alpha is missing"),
            (
                r#"{"peft_type": "LORA", "lora_alpha": 1, "alpha_pattern": {"(": 1}}"#,
                "alpha_pattern",
            ),
            ("{}", "peft_type is missing"),
        ] {
            let error = settings(text).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        }
    }
}
