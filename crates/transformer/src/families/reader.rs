//! Values of a config, bounded, with errors that name the family.

use drivetrain_artifacts::{JsonFile, ModelConfig};

use crate::activation::Activation;
use crate::error::TransformerError;

/// Most layers of a stack. Descriptions hold each layer, so this is checked ahead of the weights.
const MAX_LAYERS: u32 = 4096;
/// Largest hidden size, head count, width. Products of two stay far inside `usize`.
const MAX_SIZE: u32 = 1 << 24;
/// Largest vocabulary and number of positions.
const MAX_ROWS: u32 = 1 << 30;

/// The config of a model of a known family.
pub(super) struct Reader<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) json: &'a JsonFile,
    family: &'static str,
}

impl<'a> Reader<'a> {
    pub(super) fn new(config: &'a ModelConfig, family: &'static str) -> Self {
        Self { config, json: &config.json, family }
    }

    /// A hidden size, head count or width of at least 1.
    pub(super) fn size(&self, key: &str, default: u32) -> Result<u32, TransformerError> {
        self.bounded(key, Some(default), MAX_SIZE)
    }

    /// The same where the config may leave it out.
    pub(super) fn opt_size(&self, key: &str) -> Result<Option<u32>, TransformerError> {
        self.json.opt_u32(key)?.map(|_| self.bounded(key, None, MAX_SIZE)).transpose()
    }

    /// A number of layers.
    pub(super) fn layers(&self, key: &str, default: u32) -> Result<u32, TransformerError> {
        self.bounded(key, Some(default), MAX_LAYERS)
    }

    /// Rows of a table.
    pub(super) fn rows(&self, key: &str, default: u32) -> Result<u32, TransformerError> {
        self.bounded(key, Some(default), MAX_ROWS)
    }

    fn bounded(&self, key: &str, default: Option<u32>, max: u32) -> Result<u32, TransformerError> {
        match self.json.opt_u32(key)?.or(default) {
            Some(value) if (1..=max).contains(&value) => Ok(value),
            _ => Err(self.json.invalid(key, format!("a whole number from 1 to {max}")).into()),
        }
    }

    /// The epsilon of a norm.
    pub(super) fn eps(&self, key: &str, default: f64) -> Result<f64, TransformerError> {
        let eps = self.json.opt_f64(key)?.unwrap_or(default);
        if (0.0..1.0).contains(&eps) {
            Ok(eps)
        } else {
            Err(self.json.invalid(key, "a number from 0 to 1").into())
        }
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool, TransformerError> {
        Ok(self.json.opt_bool(key)?.unwrap_or(default))
    }

    pub(super) fn activation(
        &self,
        key: &str,
        default: Activation,
    ) -> Result<Activation, TransformerError> {
        let Some(name) = self.json.opt_str(key)? else { return Ok(default) };
        Activation::from_name(name).ok_or_else(|| {
            let known: Vec<_> = Activation::names().collect();
            self.unsupported(key, known.join(", "))
        })
    }

    /// The size of a head, where the hidden size is `n_heads` of them.
    pub(super) fn head_dim(
        &self,
        (dim_key, dim): (&str, u32),
        (heads_key, n_heads): (&str, u32),
    ) -> Result<u32, TransformerError> {
        if dim.is_multiple_of(n_heads) {
            return Ok(dim / n_heads);
        }
        let wanted = format!("a divisor of {dim_key} = {dim}");
        Err(self.json.invalid(heads_key, wanted).into())
    }

    /// Refuses a flag that is set.
    pub(super) fn refuse_set(&self, key: &str) -> Result<(), TransformerError> {
        if self.flag(key, false)? { Err(self.unsupported(key, "false")) } else { Ok(()) }
    }

    /// Refuses a key that is there at all.
    pub(super) fn refuse_present(&self, key: &str, wanted: &str) -> Result<(), TransformerError> {
        if self.json.contains(key) { Err(self.unsupported(key, wanted)) } else { Ok(()) }
    }

    /// The error for a value that means something, but nothing that can be described.
    pub(super) fn unsupported(&self, key: &str, wanted: impl Into<String>) -> TransformerError {
        let found = match self.json.get(key) {
            Ok(Some(value)) => value.to_string().chars().take(80).collect(),
            _ => "null".to_owned(),
        };
        TransformerError::ConfigUnsupported {
            file: self.json.path().to_owned(),
            family: self.family,
            key: key.to_owned(),
            found,
            wanted: wanted.into(),
        }
    }

    /// Whether the class that saved the checkpoint has a language-model head.
    pub(super) fn has_lm_class(&self) -> bool {
        self.config
            .architectures
            .iter()
            .any(|class| class.ends_with("ForConditionalGeneration") || class.contains("LM"))
    }
}
