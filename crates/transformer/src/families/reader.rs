//! Values of a config, bounded, with errors that name the family.

use drivetrain_artifacts::{JsonFile, ModelConfig};

use crate::activation::Activation;
use crate::architecture::Architecture;
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
    pub(super) family: &'static str,
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

    /// Whether `key` is there and `null`, which some classes tell from an absent one.
    pub(super) fn is_null(&self, key: &str) -> bool {
        self.json.is_null(key)
    }

    /// A cap of scores or logits; `null` is none.
    pub(super) fn cap(
        &self,
        key: &str,
        default: Option<f32>,
    ) -> Result<Option<f32>, TransformerError> {
        match self.json.opt_f64(key)? {
            None if self.is_null(key) => Ok(None),
            None => Ok(default),
            Some(cap) if cap > 0.0 => Ok(Some(cap as f32)),
            Some(_) => Err(self.json.invalid(key, "a number above 0").into()),
        }
    }

    /// `sliding_window`; `null` is none.
    pub(super) fn window(&self, default: Option<u32>) -> Result<Option<u32>, TransformerError> {
        const KEY: &str = "sliding_window";
        if self.json.get(KEY)?.is_none() {
            return Ok(default.filter(|_| !self.is_null(KEY)));
        }
        self.rows(KEY, 1).map(Some)
    }

    /// Gives the decoder's layers their windows, as [`Self::windows`] says.
    pub(super) fn slide(
        &self,
        architecture: &mut Architecture,
        window: Option<u32>,
        slides: impl Fn(u32) -> bool,
    ) -> Result<(), TransformerError> {
        let n_layers = architecture.layers_mut().count() as u32;
        let windows = self.windows(n_layers, window, slides)?;
        for (layer, window) in architecture.layers_mut().zip(windows) {
            layer.self_attention.window = window;
        }
        Ok(())
    }

    /// The window of each of `n_layers` layers: `window`, or none for a layer that sees everything.
    /// `layer_types` says which, else `slides` does.
    fn windows(
        &self,
        n_layers: u32,
        window: Option<u32>,
        slides: impl Fn(u32) -> bool,
    ) -> Result<Vec<Option<u32>>, TransformerError> {
        const KEY: &str = "layer_types";
        let Some(types) = self.json.opt_strings(KEY)? else {
            return Ok((0..n_layers).map(|idx| window.filter(|_| slides(idx))).collect());
        };
        if types.len() != n_layers as usize {
            let wanted = format!("a list of {n_layers}, one for each layer");
            return Err(self.json.invalid(KEY, wanted).into());
        }
        types
            .iter()
            .map(|kind| match (kind.as_str(), window) {
                ("full_attention", _) => Ok(None),
                ("sliding_attention", Some(window)) => Ok(Some(window)),
                ("sliding_attention", None) => {
                    let wanted =
                        "the window of the layers that layer_types calls sliding_attention";
                    Err(self.json.invalid("sliding_window", wanted).into())
                }
                _ => Err(self.unsupported(KEY, "\"full_attention\" and \"sliding_attention\"")),
            })
            .collect()
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
        self.config.architectures.iter().any(|class| {
            ["ForCausalLM", "LMHead"].iter().any(|part| class.contains(part))
                || ["ForConditionalGeneration", "MTModel"].iter().any(|end| class.ends_with(end))
        })
    }
}
