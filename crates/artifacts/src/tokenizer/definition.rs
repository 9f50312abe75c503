//! A tokenizer's definition, in the form of `tokenizer.json`, from whatever files a model has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tokenizers::{AddedToken, PostProcessorWrapper};

use super::class::{self, Class};
use super::special::{self, SpecialNames, SpecialSettings};
use super::{MAX_TOKENIZER_BYTES, Settings, guard};
use crate::error::ArtifactError;
use crate::file::read_bounded;
use crate::json::JsonFile;
use crate::model_dir::ModelDir;

/// Files that only other programs can read.
const SENTENCEPIECE: [&str; 5] =
    ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm", "tekken.json"];

/// What a tokenizer is made from.
pub(super) struct Definition {
    /// The file that holds the vocabulary.
    pub(super) path: PathBuf,
    pub(super) class: Class,
    source: Source,
}

enum Source {
    /// `tokenizer.json`, parsed.
    Stored(Value),
    /// The vocabulary, and for BPE the merges.
    Vocabulary { vocab: Value, merges: Option<Value> },
}

impl Definition {
    /// Finds and reads the files.
    pub(super) fn find(
        dir: &ModelDir,
        config: &JsonFile,
        model_config: Option<&JsonFile>,
    ) -> Result<Self, ArtifactError> {
        if let Some(path) = dir.file("tokenizer.json")? {
            let content = read_bounded(&path, MAX_TOKENIZER_BYTES)?;
            let stored: Value = serde_json::from_slice(&content)
                .map_err(|source| ArtifactError::Json { path: path.clone(), source })?;
            let class = class::of_model(config, model_config, || is_byte_level(&stored))?;
            let class = if class.suits(&stored) { class } else { Class::AsStored };
            return Ok(Self { path, class, source: Source::Stored(stored) });
        }
        let class = class::of_model(config, model_config, || false)?;
        if let Some(path) = dir.file("vocab.json")? {
            let merges_path =
                dir.file("merges.txt")?.ok_or_else(|| ArtifactError::MissingFile {
                    dir: dir.path().to_owned(),
                    wanted: "merges.txt, which belongs to its vocab.json".to_owned(),
                })?;
            let content = read_bounded(&path, MAX_TOKENIZER_BYTES)?;
            let vocab: Map<String, Value> = serde_json::from_slice(&content)
                .map_err(|source| ArtifactError::Json { path: path.clone(), source })?;
            let merges = read_merges(&merges_path)?;
            let class = class::of_byte_level_files(class, model_config);
            let source = Source::Vocabulary { vocab: vocab.into(), merges: Some(merges) };
            return Ok(Self { path, class, source });
        }
        if let Some(path) = dir.file("vocab.txt")? {
            let vocab = read_lines(&path)?;
            let source = Source::Vocabulary { vocab, merges: None };
            return Ok(Self { path, class: Class::Bert, source });
        }
        Err(missing(dir))
    }

    /// The added tokens that `tokenizer.json` holds.
    pub(super) fn stored_added_tokens(&self) -> BTreeMap<u32, AddedToken> {
        match &self.source {
            Source::Stored(stored) => special::stored(stored),
            Source::Vocabulary { .. } => BTreeMap::new(),
        }
    }

    /// The token that the padding of `tokenizer.json` uses.
    pub(super) fn stored_pad_token(&self) -> Option<&str> {
        match &self.source {
            Source::Stored(stored) => stored.get("padding")?.get("pad_token")?.as_str(),
            Source::Vocabulary { .. } => None,
        }
    }

    /// Makes the tokenizer, the texts of its named special tokens, and one more than its highest id.
    pub(super) fn build(
        self,
        special: &SpecialSettings,
        settings: &Settings,
        config: &JsonFile,
    ) -> Result<(tokenizers::Tokenizer, SpecialNames, u32), guard::Cause> {
        let class = self.class;
        let is_stored = matches!(self.source, Source::Stored(_));
        let definition = match (class, self.source) {
            (Class::AsStored, Source::Stored(mut stored)) => {
                remove(&mut stored, &["truncation", "padding"]);
                stored
            }
            (_, Source::Stored(mut stored)) => {
                let vocab = stored["model"]["vocab"].take();
                let merges = stored["model"]["merges"].take();
                let post_processor = stored["post_processor"].take();
                let mut definition = pipeline(class, vocab, merges, special, settings, config);
                definition["post_processor"] = post_processor;
                definition
            }
            (_, Source::Vocabulary { vocab, merges }) => {
                let merges = merges.unwrap_or_default();
                pipeline(class, vocab, merges, special, settings, config)
            }
        };
        let mut backend: tokenizers::Tokenizer = serde_json::from_value(definition)?;
        backend.with_truncation(None)?;
        backend.with_padding(None);
        special.add_to(&mut backend)?;
        backend.set_encode_special_tokens(settings.split_special_tokens);
        if let Some(template) = post_processor(class, is_stored, special, settings, &backend) {
            let wrapper: PostProcessorWrapper = serde_json::from_value(template)?;
            backend.with_post_processor(Some(wrapper));
        }
        let highest = backend.get_vocab(true).into_values().max();
        let vocab_size = highest.map_or(0, |id| id.saturating_add(1));
        Ok((backend, special.names(), vocab_size))
    }
}

impl Class {
    /// Whether the class can take its vocabulary from this `tokenizer.json`.
    fn suits(self, stored: &Value) -> bool {
        let Some(model) = stored.get("model").filter(|model| model["vocab"].is_object()) else {
            return false;
        };
        match self {
            Self::AsStored => true,
            Self::Bert => model["type"] == "WordPiece",
            Self::Gpt2 | Self::Llama | Self::Roberta => {
                model["type"] == "BPE" && model["merges"].is_array()
            }
        }
    }
}

/// The pipeline that a class makes around a vocabulary.
fn pipeline(
    class: Class,
    vocab: Value,
    merges: Value,
    special: &SpecialSettings,
    settings: &Settings,
    config: &JsonFile,
) -> Value {
    let flag = |key: &str| config.opt_bool(key).ok().flatten();
    match class {
        Class::Bert => json!({
            "model": {
                "type": "WordPiece", "unk_token": special.text("unk_token").unwrap_or("[UNK]"),
                "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab,
            },
            "normalizer": {
                "type": "BertNormalizer", "clean_text": true,
                "handle_chinese_chars": flag("tokenize_chinese_chars").unwrap_or(true),
                "strip_accents": flag("strip_accents"),
                "lowercase": flag("do_lower_case").unwrap_or(true),
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        }),
        Class::Llama => {
            let prefix = settings.add_prefix_space.unwrap_or(true);
            let scheme = match (prefix, flag("legacy").unwrap_or(false)) {
                (false, _) => "never",
                (true, true) => "always",
                (true, false) => "first",
            };
            let mut decoders = vec![
                json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
                json!({"type": "ByteFallback"}),
                json!({"type": "Fuse"}),
            ];
            if prefix {
                decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
            }
            json!({
                "model": {
                    "type": "BPE", "fuse_unk": true, "byte_fallback": true,
                    "vocab": vocab, "merges": merges,
                },
                "pre_tokenizer": {
                    "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme,
                    "split": false,
                },
                "decoder": {"type": "Sequence", "decoders": decoders},
            })
        }
        Class::AsStored | Class::Gpt2 | Class::Roberta => json!({
            "model": {
                "type": "BPE", "continuing_subword_prefix": "", "end_of_word_suffix": "",
                "fuse_unk": false, "vocab": vocab, "merges": merges,
            },
            "pre_tokenizer": {
                "type": "ByteLevel", "trim_offsets": true, "use_regex": true,
                "add_prefix_space": settings.add_prefix_space.unwrap_or(false),
            },
            "decoder": {
                "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                "use_regex": true,
            },
        }),
    }
}

/// The post-processor that a class puts in place of the stored one, if it does. Bert's and
/// RoBERTa's are their own; elsewhere `add_bos_token` and `add_eos_token` decide, but only for
/// vocabularies without a `tokenizer.json`, or where that has no post-processor.
fn post_processor(
    class: Class,
    is_stored: bool,
    special: &SpecialSettings,
    settings: &Settings,
    backend: &tokenizers::Tokenizer,
) -> Option<Value> {
    let named = |name: &str| {
        let text = special.text(name)?;
        Some((text.to_owned(), backend.token_to_id(text)?))
    };
    match class {
        Class::Bert => {
            let (cls, sep) = (named("cls_token")?, named("sep_token")?);
            let single = [token(&cls, 0), sequence("A", 0), token(&sep, 0)];
            let pair = [&single[..], &[sequence("B", 1), token(&sep, 1)]].concat();
            Some(template(&single, &pair, &[cls, sep]))
        }
        Class::Roberta => {
            let (cls, sep) = (named("cls_token")?, named("sep_token")?);
            Some(json!({
                "type": "RobertaProcessing", "cls": cls, "sep": sep, "trim_offsets": true,
                "add_prefix_space": settings.add_prefix_space.unwrap_or(false),
            }))
        }
        Class::AsStored | Class::Gpt2 | Class::Llama => {
            let (bos, eos) = match is_stored {
                true => (None, None),
                false => (
                    settings.add_bos_token.unwrap_or(false).then(|| named("bos_token")).flatten(),
                    settings.add_eos_token.unwrap_or(false).then(|| named("eos_token")).flatten(),
                ),
            };
            if backend.get_post_processor().is_some() {
                return None;
            }
            let around = |name, type_id| -> Vec<Value> {
                let before = bos.as_ref().map(|bos| token(bos, type_id));
                let after = eos.as_ref().map(|eos| token(eos, type_id));
                before.into_iter().chain([sequence(name, type_id)]).chain(after).collect()
            };
            let (single, second) = (around("A", 0), around("B", 1));
            let pair = [&single[..], &second[..]].concat();
            let tokens: Vec<_> = bos.iter().chain(&eos).cloned().collect();
            Some(template(&single, &pair, &tokens))
        }
    }
}

fn token((text, _): &(String, u32), type_id: u32) -> Value {
    json!({"SpecialToken": {"id": text, "type_id": type_id}})
}

fn sequence(name: &str, type_id: u32) -> Value {
    json!({"Sequence": {"id": name, "type_id": type_id}})
}

fn template(single: &[Value], pair: &[Value], tokens: &[(String, u32)]) -> Value {
    let tokens: Map<String, Value> = tokens
        .iter()
        .map(|(text, id)| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens})
}

fn remove(definition: &mut Value, keys: &[&str]) {
    if let Some(definition) = definition.as_object_mut() {
        for key in keys {
            definition.remove(*key);
        }
    }
}

fn is_byte_level(stored: &Value) -> bool {
    let parts = [&stored["pre_tokenizer"], &stored["decoder"]];
    parts.into_iter().any(|part| {
        let nested =
            ["pretokenizers", "decoders"].iter().filter_map(|key| part.get(key)?.as_array());
        part["type"] == "ByteLevel" || nested.flatten().any(|inner| inner["type"] == "ByteLevel")
    })
}

/// `merges.txt`: two tokens a line.
fn read_merges(path: &Path) -> Result<Value, ArtifactError> {
    let text = read_text(path)?;
    let mut merges = Vec::new();
    for (idx, line) in text.lines().enumerate() {
        if line.starts_with("#version") || line.is_empty() {
            continue;
        }
        let Some((left, right)) = line.split_once(' ').filter(|(_, right)| !right.contains(' '))
        else {
            let reason = format!("line {} is not two tokens with a space between", idx + 1);
            return Err(ArtifactError::Tokenizer { path: path.to_owned(), source: reason.into() });
        };
        merges.push(json!([left, right]));
    }
    Ok(merges.into())
}

/// `vocab.txt`: a token a line, whose number is its id.
fn read_lines(path: &Path) -> Result<Value, ArtifactError> {
    let text = read_text(path)?;
    let lines = text.lines().enumerate();
    let vocab: Map<String, Value> =
        lines.map(|(id, line)| (line.trim_end().to_owned(), id.into())).collect();
    Ok(vocab.into())
}

fn read_text(path: &Path) -> Result<String, ArtifactError> {
    let content = read_bounded(path, MAX_TOKENIZER_BYTES)?;
    String::from_utf8(content).map_err(|error| ArtifactError::Tokenizer {
        path: path.to_owned(),
        source: Box::new(error.utf8_error()),
    })
}

fn missing(dir: &ModelDir) -> ArtifactError {
    let mut wanted =
        "tokenizer: expected tokenizer.json, vocab.json with merges.txt, or vocab.txt".to_owned();
    let other = SENTENCEPIECE.iter().find(|name| matches!(dir.file(name), Ok(Some(_))));
    if let Some(other) = other {
        wanted += &format!(
            "; {other} alone can't be read, save the tokenizer once with transformers' \
             AutoTokenizer.save_pretrained"
        );
    }
    ArtifactError::MissingFile { dir: dir.path().to_owned(), wanted }
}
