//! Special and added tokens, from the four files that may say something about them.
//!
//! Source: transformers 5.23.0, `tokenization_utils_base.py` (`_from_pretrained`) and
//! `tokenization_utils_tokenizers.py` (`TokenizersBackend.__init__`).

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;
use tokenizers::AddedToken;

use super::class::Class;
use super::definition::Definition;
use super::{guard, optional_json};
use crate::error::ArtifactError;
use crate::json::JsonFile;
use crate::model_dir::ModelDir;

/// The text of each named special token, such as `bos_token`.
pub(super) type SpecialNames = HashMap<String, String>;

/// The usual names, in transformers' order, which decides the ids of new tokens.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

const WANTED: &str = "a token, as a string or an object with a content";

/// What the files say.
pub(super) struct SpecialSettings {
    /// Named tokens; those with the usual names first.
    pub(super) named: Vec<(String, AddedToken)>,
    /// Further special tokens.
    extra: Vec<AddedToken>,
    /// Tokens with the id they had when they were saved.
    added: BTreeMap<u32, AddedToken>,
}

impl SpecialSettings {
    pub(super) fn read(
        dir: &ModelDir,
        config: &JsonFile,
        definition: &Definition,
    ) -> Result<Self, ArtifactError> {
        let mut named: Vec<(String, Option<AddedToken>)> = class_defaults(definition.class)
            .iter()
            .map(|(name, text)| ((*name).to_owned(), Some(AddedToken::from(*text, true))))
            .collect();
        if let Some(pad) = definition.stored_pad_token() {
            named.retain(|(name, _)| name != "pad_token");
            named.push(("pad_token".to_owned(), Some(AddedToken::from(pad, true))));
        }
        let mut extra = Vec::new();
        merge(config, &mut named, &mut extra)?;
        let mut added = BTreeMap::new();
        if config.contains("added_tokens_decoder") {
            read_decoder(config, &mut added)?;
        } else {
            if let Some(map) = optional_json(dir, "special_tokens_map.json")? {
                merge(&map, &mut named, &mut extra)?;
            }
            if let Some(map) = optional_json(dir, "added_tokens.json")? {
                read_added(&map, &named, &extra, &mut added)?;
            }
            added.extend(definition.stored_added_tokens());
        }
        let by_content: HashMap<&str, &AddedToken> =
            added.values().map(|token| (token.content.as_str(), token)).collect();
        let mut known: Vec<(String, AddedToken)> = named
            .into_iter()
            .filter_map(|(name, token)| Some((name, token?)))
            .map(|(name, token)| {
                let saved = by_content.get(token.content.as_str()).map(|saved| (*saved).clone());
                (name, saved.unwrap_or(token))
            })
            .collect();
        known.sort_by_key(|(name, _)| NAMES.iter().position(|usual| usual == name).unwrap_or(7));
        Ok(Self { named: known, extra, added })
    }

    /// The text of a named token.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(n, _)| n == name).map(|(_, token)| token.content.as_str())
    }

    /// Adds what the tokenizer lacks.
    pub(super) fn add_to(&self, backend: &mut tokenizers::Tokenizer) -> Result<(), guard::Cause> {
        let present: Vec<AddedToken> = backend.get_added_tokens_decoder().into_values().collect();
        let mut missing: Vec<AddedToken> = self
            .added
            .values()
            .filter(|token| !present.iter().any(|other| is_same(token, other)))
            .cloned()
            .collect();
        for token in self.named.iter().map(|(_, token)| token).chain(&self.extra) {
            let is_known = |other: &AddedToken| other.content == token.content;
            if !present.iter().any(is_known) && !missing.iter().any(is_known) {
                missing.push(token.clone());
            }
        }
        for token in &mut missing {
            token.special |= self.named.iter().any(|(_, named)| named.content == token.content);
        }
        if !missing.is_empty() {
            backend.add_tokens(missing)?;
        }
        Ok(())
    }

    pub(super) fn names(&self) -> SpecialNames {
        self.named.iter().map(|(name, token)| (name.clone(), token.content.clone())).collect()
    }
}

/// Whether two tokens agree in everything; `==` of the library compares the text only.
fn is_same(a: &AddedToken, b: &AddedToken) -> bool {
    let flags = |t: &AddedToken| (t.single_word, t.lstrip, t.rstrip, t.normalized, t.special);
    a.content == b.content && flags(a) == flags(b)
}

fn class_defaults(class: Class) -> &'static [(&'static str, &'static str)] {
    match class {
        Class::AsStored => &[],
        Class::Bert => &[
            ("unk_token", "[UNK]"),
            ("sep_token", "[SEP]"),
            ("pad_token", "[PAD]"),
            ("cls_token", "[CLS]"),
            ("mask_token", "[MASK]"),
        ],
        Class::Gpt2 => &[
            ("bos_token", "<|endoftext|>"),
            ("eos_token", "<|endoftext|>"),
            ("unk_token", "<|endoftext|>"),
        ],
        Class::Llama => &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
        Class::Roberta => &[
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
            ("unk_token", "<unk>"),
            ("sep_token", "</s>"),
            ("pad_token", "<pad>"),
            ("cls_token", "<s>"),
            ("mask_token", "<mask>"),
        ],
    }
}

/// Takes over the tokens of a file; what it says wins over what was there.
fn merge(
    json: &JsonFile,
    named: &mut Vec<(String, Option<AddedToken>)>,
    extra: &mut Vec<AddedToken>,
) -> Result<(), ArtifactError> {
    let mut set =
        |name: &str, token: Option<AddedToken>| match named.iter_mut().find(|(n, _)| n == name) {
            Some(slot) => slot.1 = token,
            None => named.push((name.to_owned(), token)),
        };
    for (key, value) in json.value().as_object().into_iter().flatten() {
        let usual = NAMES.contains(&key.as_str());
        match value {
            Value::Null if usual => set(key, None),
            _ if usual => {
                let token = read_token(value).ok_or_else(|| json.invalid(key, WANTED))?;
                set(key, Some(token));
            }
            Value::String(_) if key.ends_with("_token") => set(key, read_token(value)),
            _ => {}
        }
    }
    for key in ["extra_special_tokens", "additional_special_tokens"] {
        match json.get(key)? {
            None => continue,
            Some(Value::Array(tokens)) => {
                for value in tokens {
                    let token =
                        read_token(value).ok_or_else(|| json.invalid(key, "a list of tokens"))?;
                    if !extra.iter().any(|other| other.content == token.content) {
                        extra.push(token);
                    }
                }
            }
            Some(Value::Object(tokens)) => {
                for (name, value) in tokens {
                    let token = read_token(value).ok_or_else(|| json.invalid(key, WANTED))?;
                    set(name, Some(token));
                }
            }
            Some(_) => return Err(json.invalid(key, "a list of tokens")),
        }
    }
    Ok(())
}

/// A special token, as a string or as an object.
fn read_token(value: &Value) -> Option<AddedToken> {
    match value {
        Value::String(text) => Some(AddedToken::from(text.as_str(), true)),
        Value::Object(_) => read_flags(value, true),
        _ => None,
    }
}

fn read_flags(value: &Value, default_special: bool) -> Option<AddedToken> {
    let flag = |key| value.get(key).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(default_special);
    let token = AddedToken::from(value.get("content")?.as_str()?, special)
        .single_word(flag("single_word").unwrap_or(false))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false));
    Some(match flag("normalized") {
        Some(normalized) => token.normalized(normalized),
        None => token,
    })
}

/// `added_tokens_decoder`: id to token.
fn read_decoder(
    json: &JsonFile,
    added: &mut BTreeMap<u32, AddedToken>,
) -> Result<(), ArtifactError> {
    const KEY: &str = "added_tokens_decoder";
    let invalid = || json.invalid(KEY, "an object of token ids and tokens");
    let entries = json.get(KEY)?.and_then(Value::as_object).ok_or_else(invalid)?;
    for (id, value) in entries {
        let id = id.parse().map_err(|_| invalid())?;
        added.insert(id, read_flags(value, false).ok_or_else(invalid)?);
    }
    Ok(())
}

/// `added_tokens.json`: token to id.
fn read_added(
    json: &JsonFile,
    named: &[(String, Option<AddedToken>)],
    extra: &[AddedToken],
    added: &mut BTreeMap<u32, AddedToken>,
) -> Result<(), ArtifactError> {
    for (text, id) in json.value().as_object().into_iter().flatten() {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| json.invalid(text, "a token id from 0 to 4294967295"))?;
        let named = named.iter().filter_map(|(_, token)| token.as_ref());
        let special = named.chain(extra).any(|token| token.content == *text);
        added.insert(id, AddedToken::from(text.as_str(), special));
    }
    Ok(())
}

/// The `added_tokens` of a `tokenizer.json`.
pub(super) fn stored(definition: &Value) -> BTreeMap<u32, AddedToken> {
    let entries = definition.get("added_tokens").and_then(Value::as_array);
    let read = |entry: &Value| {
        let id = u32::try_from(entry.get("id")?.as_u64()?).ok()?;
        Some((id, read_flags(entry, false)?))
    };
    entries.into_iter().flatten().filter_map(read).collect()
}
