//! `config.json` and `tokenizer_config.json` from the metadata of a GGUF file.

use serde_json::{Value as Json, json};

use super::architectures::{self, Config};
use super::header::Header;
use super::tokenizer::Tokens;
use super::{find, open};
use crate::error::ArtifactError;
use crate::json::JsonFile;
use crate::model_dir::ModelDir;

/// Control tokens that end a turn of a conversation. One that the chat template writes ends an
/// answer, whether or not the file says so.
const TURN_ENDS: [&str; 6] =
    ["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|end_of_role|>"];

/// The names of special tokens and the keys that have their ids.
const SPECIAL: [(&str, &str); 7] = [
    ("bos_token", "tokenizer.ggml.bos_token_id"),
    ("eos_token", "tokenizer.ggml.eos_token_id"),
    ("unk_token", "tokenizer.ggml.unknown_token_id"),
    // Spelled like this in the format.
    ("sep_token", "tokenizer.ggml.seperator_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
    ("cls_token", "tokenizer.ggml.cls_token_id"),
    ("mask_token", "tokenizer.ggml.mask_token_id"),
];

const TEMPLATE: &str = "tokenizer.chat_template";

/// What `config.json` would say, if the model comes as GGUF. The path is the file's.
pub(crate) fn config_json(dir: &ModelDir) -> Result<Option<JsonFile>, ArtifactError> {
    let Some(paths) = find(dir)? else { return Ok(None) };
    let files = open(&paths)?;
    let header = Header::read(&files)?;
    let architecture = architectures::of(&header)?;
    let config = (architecture.config)(&Meta { header: &header })?;
    Ok(Some(JsonFile::from_value(header.path(), config.into())))
}

/// The keys of the family in the metadata of a GGUF file that [`config_json`] makes nothing of.
pub(crate) fn unread_metadata(dir: &ModelDir) -> Result<Option<Vec<String>>, ArtifactError> {
    let Some(paths) = find(dir)? else { return Ok(None) };
    let files = open(&paths)?;
    let header = Header::read(&files)?;
    let architecture = architectures::of(&header)?;
    (architecture.config)(&Meta { header: &header })?;
    Ok(Some(header.unread()))
}

/// What `tokenizer_config.json` would say, if the model comes as GGUF.
pub(crate) fn tokenizer_config(dir: &ModelDir) -> Result<Option<JsonFile>, ArtifactError> {
    let Some(paths) = find(dir)? else { return Ok(None) };
    let files = open(&paths)?;
    let header = Header::read(&files)?;
    let mut config = Config::new();
    let tokens = Tokens::read(&header)?;
    for (name, key) in SPECIAL {
        let Some(id) = header.u32(key)? else { continue };
        // Some files name a token that is not there, as -1 does; transformers passes over these.
        if let Some(text) = tokens.as_ref().and_then(|tokens| tokens.text(id)) {
            config.insert(name.to_owned(), text.into());
        }
    }
    let length = header.u32(&format!("{}.context_length", header.architecture))?;
    if let Some(length) = length {
        config.insert("model_max_length".to_owned(), length.into());
    }
    let named = header.with_prefix("tokenizer.chat_template.").map(|(name, value)| {
        let text = value
            .as_str()
            .ok_or_else(|| header.invalid(&format!("{TEMPLATE}.{name}"), "a text in UTF-8"))?;
        Ok(json!({"name": name, "template": text}))
    });
    let mut templates: Vec<Json> = named.collect::<Result<_, ArtifactError>>()?;
    if let Some(text) = header.str(TEMPLATE)? {
        templates.push(json!({"name": "default", "template": text}));
    }
    if !templates.is_empty() {
        config.insert("chat_template".to_owned(), templates.into());
    }
    Ok(Some(JsonFile::from_value(header.path(), config.into())))
}

/// The metadata of one family: keys are those behind its name.
pub(super) struct Meta<'h, 'a> {
    pub(super) header: &'h Header<'a>,
}

/// Attention's sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heads {
    pub(super) n_heads: u32,
    pub(super) n_kv_heads: u32,
    pub(super) head_dim: u32,
}

impl<'a> Meta<'_, 'a> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.header.architecture)
    }

    pub(super) fn opt_u32(&self, key: &str) -> Result<Option<u32>, ArtifactError> {
        self.header.u32(&self.key(key))
    }

    pub(super) fn u32(&self, key: &str) -> Result<u32, ArtifactError> {
        self.opt_u32(key)?.ok_or_else(|| self.missing(key, "a whole number from 0 to 4294967295"))
    }

    pub(super) fn opt_f64(&self, key: &str) -> Result<Option<f64>, ArtifactError> {
        self.header.f64(&self.key(key))
    }

    pub(super) fn f64(&self, key: &str) -> Result<f64, ArtifactError> {
        self.opt_f64(key)?.ok_or_else(|| self.missing(key, "a finite number"))
    }

    pub(super) fn opt_bool(&self, key: &str) -> Result<Option<bool>, ArtifactError> {
        self.header.bool(&self.key(key))
    }

    pub(super) fn opt_str(&self, key: &str) -> Result<Option<&'a str>, ArtifactError> {
        self.header.str(&self.key(key))
    }

    /// The number of layers: what follows has an entry for each, so it is checked first.
    pub(super) fn n_layers(&self) -> Result<u32, ArtifactError> {
        const KEY: &str = "block_count";
        const MOST: u32 = 4096;
        let wanted = format!("a whole number from 1 to {MOST}");
        match self.opt_u32(KEY)? {
            Some(n) if (1..=MOST).contains(&n) => Ok(n),
            Some(_) => Err(self.invalid(KEY, &wanted)),
            None => Err(self.missing(KEY, &wanted)),
        }
    }

    pub(super) fn missing(&self, key: &str, wanted: &str) -> ArtifactError {
        self.header.missing(&self.key(key), wanted)
    }

    pub(super) fn invalid(&self, key: &str, wanted: &str) -> ArtifactError {
        self.header.invalid(&self.key(key), wanted)
    }

    /// A number that is the same for all layers; files may have one for each.
    fn per_layer(&self, key: &str) -> Result<Option<u32>, ArtifactError> {
        let Some(array) = self.header.get(&self.key(key)).and_then(|value| value.as_array()) else {
            return self.opt_u32(key);
        };
        let mut numbers = array.iter().map(|value| value.as_u64());
        let first = numbers.next().flatten().and_then(|n| u32::try_from(n).ok());
        match first {
            Some(first) if numbers.all(|n| n == Some(u64::from(first))) => Ok(Some(first)),
            _ => Err(self.invalid(key, "the same number for all layers")),
        }
    }

    /// Attention's sizes, which have to fit each other.
    pub(super) fn heads(&self) -> Result<Heads, ArtifactError> {
        const COUNT: &str = "attention.head_count";
        const KV_COUNT: &str = "attention.head_count_kv";
        const KEY_LENGTH: &str = "attention.key_length";
        let n_heads = self.per_layer(COUNT)?.filter(|n| *n > 0);
        let n_heads = n_heads.ok_or_else(|| self.invalid(COUNT, "a whole number, 1 or more"))?;
        let n_kv_heads = self.per_layer(KV_COUNT)?.unwrap_or(n_heads);
        if n_kv_heads == 0 || !n_heads.is_multiple_of(n_kv_heads) {
            let wanted = format!("a divisor of {} = {n_heads}", self.key(COUNT));
            return Err(self.invalid(KV_COUNT, &wanted));
        }
        let dim = self.u32("embedding_length")?;
        let rows = self.header.tensor("blk.0.attn_q.weight").and_then(|t| t.shape.first().copied());
        let rows = rows.and_then(|rows| u32::try_from(rows).ok()).unwrap_or(dim);
        let head_dim = match self.opt_u32(KEY_LENGTH)? {
            Some(length) => length,
            None if rows.is_multiple_of(n_heads) => rows / n_heads,
            None => {
                let wanted = format!("a divisor of the {rows} rows of the queries");
                return Err(self.invalid(COUNT, &wanted));
            }
        };
        if head_dim == 0 {
            return Err(self.invalid(KEY_LENGTH, "a whole number, 1 or more"));
        }
        const VALUE_LENGTH: &str = "attention.value_length";
        if self.opt_u32(VALUE_LENGTH)?.is_some_and(|length| length != head_dim) {
            return Err(self.invalid(VALUE_LENGTH, &format!("{head_dim}, the length of a key")));
        }
        Ok(Heads { n_heads, n_kv_heads, head_dim })
    }

    /// The keys that all families have.
    pub(super) fn start(&self, model_type: &str, class: &str) -> Result<Config, ArtifactError> {
        let table = self.header.tensor("token_embd.weight").ok_or_else(|| {
            let wanted = "token_embd.weight, the embedding of the tokens";
            ArtifactError::WeightFile {
                path: self.header.path().to_owned(),
                reason: format!("has no tensor {wanted}"),
            }
        })?;
        let mut config = Config::new();
        config.extend([
            ("model_type".to_owned(), model_type.into()),
            ("architectures".to_owned(), json!([class])),
            ("vocab_size".to_owned(), table.shape.first().copied().unwrap_or_default().into()),
            ("tie_word_embeddings".to_owned(), (!self.header.has("output.weight")).into()),
        ]);
        for (key, name) in [
            ("tokenizer.ggml.bos_token_id", "bos_token_id"),
            ("tokenizer.ggml.padding_token_id", "pad_token_id"),
        ] {
            if let Some(id) = self.token(key)? {
                config.insert(name.to_owned(), id.into());
            }
        }
        let ends = self.end_tokens()?;
        match ends.as_slice() {
            [] => {}
            [id] => drop(config.insert("eos_token_id".to_owned(), (*id).into())),
            ids => drop(config.insert("eos_token_id".to_owned(), json!(ids))),
        }
        Ok(config)
    }

    /// The keys of the decoders that spell them as LLaMA does.
    pub(super) fn decoder(&self, model_type: &str, class: &str) -> Result<Config, ArtifactError> {
        const WIDTH: &str = "feed_forward_length";
        let mut config = self.start(model_type, class)?;
        let width = self.per_layer(WIDTH)?;
        let width = width.ok_or_else(|| self.missing(WIDTH, "a whole number"))?;
        config.extend([
            ("hidden_size".to_owned(), self.u32("embedding_length")?.into()),
            ("intermediate_size".to_owned(), width.into()),
            ("num_hidden_layers".to_owned(), self.n_layers()?.into()),
            ("num_attention_heads".to_owned(), self.heads()?.n_heads.into()),
            ("max_position_embeddings".to_owned(), self.u32("context_length")?.into()),
        ]);
        Ok(config)
    }

    /// A token's id, if the vocabulary has it.
    fn token(&self, key: &str) -> Result<Option<u32>, ArtifactError> {
        let n = self.header.array("tokenizer.ggml.tokens")?.map_or(0, |tokens| tokens.len());
        Ok(self.header.u32(key)?.filter(|id| (*id as usize) < n))
    }

    /// The tokens that end a text.
    fn end_tokens(&self) -> Result<Vec<u32>, ArtifactError> {
        let mut ends = Vec::new();
        for key in ["eos", "eot", "eom"] {
            ends.extend(self.token(&format!("tokenizer.ggml.{key}_token_id"))?);
        }
        if let Some(template) = self.header.str(TEMPLATE)?
            && let Some(tokens) = Tokens::read(self.header)?
        {
            let written = TURN_ENDS.iter().filter(|end| template.contains(**end));
            ends.extend(written.filter_map(|end| tokens.control(end)));
        }
        let mut seen = std::collections::BTreeSet::new();
        ends.retain(|id| seen.insert(*id));
        Ok(ends)
    }
}
