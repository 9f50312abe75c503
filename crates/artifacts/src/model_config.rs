//! `config.json`: what it says that is the same for every model family.

use crate::error::ArtifactError;
use crate::gguf;
use crate::json::JsonFile;
use crate::model_dir::ModelDir;

/// Largest `config.json`, `generation_config.json` and the like, in bytes.
pub(crate) const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Families that transformers' configuration classes declare encoder-decoder, for files that leave
/// `is_encoder_decoder` out (transformers 5.23.0, `models/*/configuration_*.py`).
const ENCODER_DECODERS: [&str; 24] = [
    "bart",
    "bigbird_pegasus",
    "blenderbot",
    "blenderbot-small",
    "encoder-decoder",
    "fsmt",
    "led",
    "longt5",
    "m2m_100",
    "marian",
    "mbart",
    "mt5",
    "mvp",
    "nllb-moe",
    "pegasus",
    "pegasus_x",
    "plbart",
    "prophetnet",
    "speech_to_text",
    "switch_transformers",
    "t5",
    "t5gemma",
    "umt5",
    "whisper",
];

/// `config.json`, or what a GGUF model says in its place.
pub(crate) fn config_json(dir: &ModelDir) -> Result<Option<JsonFile>, ArtifactError> {
    if let Some(json) = gguf::config_json(dir)? {
        return Ok(Some(json));
    }
    let path = dir.file("config.json")?;
    path.map(|path| JsonFile::read(&path, MAX_CONFIG_BYTES)).transpose()
}

/// A model's `config.json`.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// Everything the file says.
    pub json: JsonFile,
    /// The family, such as `bart` or `llama`.
    pub model_type: String,
    /// The classes the weights were saved from, such as `BartForConditionalGeneration`.
    pub architectures: Vec<String>,
    /// Whether the model has an encoder and a decoder.
    pub is_encoder_decoder: bool,
}

impl ModelConfig {
    /// Reads `config.json`, or what a GGUF model says in its place.
    ///
    /// # Errors
    /// The file is absent, no JSON object of at most 16 MiB, or a common key is missing or
    /// impossible.
    pub fn read(dir: &ModelDir) -> Result<Self, ArtifactError> {
        Self::find(dir)?.ok_or_else(|| ArtifactError::MissingFile {
            dir: dir.path().to_owned(),
            wanted: "config.json, which says what model this is".to_owned(),
        })
    }

    /// The same, where a model may do without.
    ///
    /// # Errors
    /// As [`Self::read`], save that there may be no such file.
    pub fn find(dir: &ModelDir) -> Result<Option<Self>, ArtifactError> {
        config_json(dir)?.map(Self::from_json).transpose()
    }

    /// The keys that a GGUF file has for its family and that no key of the config is made of, sorted;
    /// `None` for models that do not come as GGUF.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn unread_metadata(dir: &ModelDir) -> Result<Option<Vec<String>>, ArtifactError> {
        gguf::unread_metadata(dir)
    }

    /// The same for a file that was read already.
    ///
    /// # Errors
    /// A common key is missing or impossible.
    pub fn from_json(json: JsonFile) -> Result<Self, ArtifactError> {
        let model_type = json.opt_str("model_type")?.map(str::to_owned).ok_or_else(|| {
            json.invalid("model_type", "the model's family, such as \"bart\" or \"llama\"")
        })?;
        let architectures = json.opt_strings("architectures")?.unwrap_or_default();
        let is_encoder_decoder = json
            .opt_bool("is_encoder_decoder")?
            .unwrap_or_else(|| ENCODER_DECODERS.contains(&model_type.as_str()));
        Ok(Self { model_type, architectures, is_encoder_decoder, json })
    }
}
