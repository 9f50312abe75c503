//! Special and added tokens, from the four files that may say something about them.
//!
//! Source: transformers 5.24.0, `tokenization_utils_base.py` (`_from_pretrained`),
//! `tokenization_utils_tokenizers.py` (`TokenizersBackend.__init__`) and the `__init__` of the
//! classes in `models/*/tokenization_*.py`.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;
use tokenizers::AddedToken;

use super::class::Class;
use super::definition::Definition;
use super::settings::Settings;
use super::vocabulary::own_tokens;
use super::{guard, language_codes, optional_json};
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
    named: Vec<(String, AddedToken)>,
    /// The names that the files give a token.
    given: HashSet<String>,
    /// Further special tokens.
    extra: Vec<AddedToken>,
    /// Whether these are the class's own, as the files name none.
    pub(super) is_extra_usual: bool,
    /// Tokens with the id they had when they were saved.
    added: BTreeMap<u32, AddedToken>,
}

impl SpecialSettings {
    pub(super) fn read(
        dir: &ModelDir,
        config: &JsonFile,
        definition: &Definition,
        settings: &Settings,
    ) -> Result<Self, ArtifactError> {
        let class = definition.class;
        let mut gathered = Gathered::new(class);
        for (name, text) in definition.usual_names() {
            gathered.set(name, Some(class_token(class, name, text)));
        }
        if let Some(pad) = definition.stored_pad_token() {
            gathered.set("pad_token", Some(AddedToken::from(pad, true)));
        }
        gathered.given.clear();
        gathered.merge(config)?;
        let keys = ["extra_special_tokens", "additional_special_tokens"];
        let mut is_given = keys.iter().any(|key| config.value().get(key).is_some());
        let mut added = BTreeMap::new();
        if config.contains("added_tokens_decoder") {
            read_decoder(config, &mut added)?;
        } else {
            if let Some(map) = optional_json(dir, "special_tokens_map.json")? {
                gathered.merge(&map)?;
                // A sentencepiece model's own tokens stand in for the file's.
                is_given |= definition.pieces().is_none()
                    && keys.iter().any(|key| map.value().get(key).is_some());
            }
            if let Some(map) = optional_json(dir, "added_tokens.json")? {
                read_added(&map, &gathered.named, &gathered.extra, &mut added)?;
            }
            added.extend(definition.stored_added_tokens());
        }
        if !is_given {
            gathered.extra = usual_extra(definition, settings);
        }
        if class == Class::AsStored && definition.prefixes_text() {
            for token in added.values_mut() {
                token.normalized = false;
            }
        }
        let by_content: HashMap<&str, &AddedToken> =
            added.values().map(|token| (token.content.as_str(), token)).collect();
        let mut known: Vec<(String, AddedToken)> = gathered
            .named
            .into_iter()
            .filter_map(|(name, token)| Some((name, token?)))
            .map(|(name, token)| {
                let saved = by_content.get(token.content.as_str()).map(|saved| (*saved).clone());
                (name, saved.unwrap_or(token))
            })
            .collect();
        known.sort_by_key(|(name, _)| NAMES.iter().position(|usual| usual == name).unwrap_or(7));
        Ok(Self {
            named: known,
            given: gathered.given,
            extra: gathered.extra,
            is_extra_usual: !is_given,
            added,
        })
    }

    /// The text of a named token, if the files give one.
    pub(super) fn given(&self, name: &str) -> Option<&str> {
        self.text(name).filter(|_| self.given.contains(name))
    }

    /// The texts of tokens with the ids they had when they were saved.
    pub(super) fn saved(&self) -> impl Iterator<Item = (u32, &str)> {
        self.added.iter().map(|(id, token)| (*id, token.content.as_str()))
    }

    /// The texts of all special tokens.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.named.iter().map(|(_, token)| token).chain(&self.extra).map(|t| t.content.as_str())
    }

    /// The text of a named token.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(n, _)| n == name).map(|(_, token)| token.content.as_str())
    }

    /// Adds what the tokenizer lacks.
    pub(super) fn add_to(&self, backend: &mut tokenizers::Tokenizer) -> Result<(), guard::Cause> {
        let present: HashMap<String, AddedToken> = backend
            .get_added_tokens_decoder()
            .into_values()
            .map(|token| (token.content.clone(), token))
            .collect();
        let lacks = |token: &&AddedToken| {
            present.get(&token.content).is_none_or(|other| !is_same(token, other))
        };
        let mut missing: Vec<AddedToken> = self.added.values().filter(lacks).cloned().collect();
        let mut known: HashSet<&str> = self
            .added
            .values()
            .filter(lacks)
            .map(|token| token.content.as_str())
            .chain(present.keys().map(String::as_str))
            .collect();
        for token in self.named.iter().map(|(_, token)| token).chain(&self.extra) {
            if known.insert(&token.content) {
                missing.push(token.clone());
            }
        }
        let named: HashSet<&str> =
            self.named.iter().map(|(_, token)| token.content.as_str()).collect();
        for token in &mut missing {
            token.special |= named.contains(token.content.as_str());
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

/// The tokens that a class has where the files say nothing, by name.
pub(super) fn class_defaults(class: Class) -> &'static [(&'static str, &'static str)] {
    match class {
        Class::AsStored | Class::Other => &[],
        Class::Bert => &[
            ("unk_token", "[UNK]"),
            ("sep_token", "[SEP]"),
            ("pad_token", "[PAD]"),
            ("cls_token", "[CLS]"),
            ("mask_token", "[MASK]"),
        ],
        Class::Clip => &[
            ("bos_token", "<|startoftext|>"),
            ("eos_token", "<|endoftext|>"),
            ("unk_token", "<|endoftext|>"),
            ("pad_token", "<|endoftext|>"),
        ],
        Class::Gemma => &[
            ("bos_token", "<bos>"),
            ("eos_token", "<eos>"),
            ("unk_token", "<unk>"),
            ("pad_token", "<pad>"),
            ("mask_token", "<mask>"),
        ],
        Class::Gpt2 => &[
            ("bos_token", "<|endoftext|>"),
            ("eos_token", "<|endoftext|>"),
            ("unk_token", "<|endoftext|>"),
        ],
        Class::Llama => &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
        Class::M2m100 => &[
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
            ("unk_token", "<unk>"),
            ("sep_token", "</s>"),
            ("pad_token", "<pad>"),
        ],
        Class::Marian | Class::T5 => {
            &[("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")]
        }
        Class::Mpnet => &[
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
            ("unk_token", "[UNK]"),
            ("sep_token", "</s>"),
            ("pad_token", "<pad>"),
            ("cls_token", "<s>"),
            ("mask_token", "<mask>"),
        ],
        Class::Mbart50 => &[
            ("eos_token", "</s>"),
            ("unk_token", "<unk>"),
            ("sep_token", "</s>"),
            ("pad_token", "<pad>"),
            ("cls_token", "<s>"),
            ("mask_token", "<mask>"),
        ],
        Class::Pegasus => &[
            ("eos_token", "</s>"),
            ("unk_token", "<unk>"),
            ("pad_token", "<pad>"),
            ("mask_token", "<mask_2>"),
        ],
        Class::Qwen2 => &[
            ("eos_token", "<|endoftext|>"),
            ("unk_token", "<|endoftext|>"),
            ("pad_token", "<|endoftext|>"),
        ],
        Class::Camembert | Class::Mbart | Class::Nllb | Class::Roberta | Class::XlmRoberta => &[
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

/// A named token that only its text is known of, with the flags that the class gives it.
fn class_token(class: Class, name: &str, text: &str) -> AddedToken {
    let token = AddedToken::from(text, true);
    match (class, name) {
        (Class::Nllb, "mask_token") => token.lstrip(true).normalized(true),
        (Class::Camembert | Class::Mbart | Class::Mbart50 | Class::Mpnet, "mask_token") => {
            token.lstrip(true)
        }
        _ => token,
    }
}

/// The further special tokens that a class has where the config says nothing of any.
fn usual_extra(definition: &Definition, settings: &Settings) -> Vec<AddedToken> {
    let special = |text: &str| AddedToken::from(text, true);
    let codes = |codes: &'static str| codes.split(' ').map(special);
    let own: Vec<AddedToken> = definition
        .pieces()
        .into_iter()
        .flat_map(own_tokens)
        .map(|(text, special)| AddedToken::from(text, special).normalized(false))
        .collect();
    let mut extra = Vec::new();
    match definition.class {
        Class::AsStored => extra.extend(own.into_iter().filter(|token| token.special)),
        Class::T5 => {
            let has_sentinels = own.iter().any(|token| token.content.contains("<extra_id_"));
            extra.extend(own);
            if !has_sentinels {
                let sentinels = 0..settings.extra_ids;
                extra.extend(sentinels.map(|n| special(&format!("<extra_id_{n}>"))));
            }
        }
        Class::Pegasus => {
            let mask = settings.mask_token_sent.as_deref().unwrap_or("<mask_1>");
            if !own.iter().any(|token| token.content == mask) {
                extra.push(special(mask));
            }
            extra.extend((2..settings.offset).map(|n| special(&format!("<unk_{n}>"))));
        }
        Class::Mbart => extra.extend(codes(language_codes::MBART).chain(own)),
        Class::Mbart50 => {
            extra.extend(own);
            extra.extend(codes(language_codes::MBART).chain(codes(language_codes::MBART50)));
        }
        Class::Nllb => extra.extend(codes(language_codes::NLLB)),
        Class::Camembert if definition.pieces().is_none() => {
            extra.extend(["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"].map(special));
        }
        Class::Marian | Class::M2m100 => {}
        _ => extra.extend(own),
    }
    extra
}

/// What was read so far.
struct Gathered {
    class: Class,
    named: Vec<(String, Option<AddedToken>)>,
    /// The place of each name.
    places: HashMap<String, usize>,
    given: HashSet<String>,
    extra: Vec<AddedToken>,
    /// The texts of these.
    extra_texts: HashSet<String>,
}

impl Gathered {
    fn new(class: Class) -> Self {
        Self {
            class,
            named: Vec::new(),
            places: HashMap::new(),
            given: HashSet::new(),
            extra: Vec::new(),
            extra_texts: HashSet::new(),
        }
    }

    fn set(&mut self, name: &str, token: Option<AddedToken>) {
        self.given.insert(name.to_owned());
        match self.places.get(name).and_then(|place| self.named.get_mut(*place)) {
            Some(slot) => slot.1 = token,
            None => {
                self.places.insert(name.to_owned(), self.named.len());
                self.named.push((name.to_owned(), token));
            }
        }
    }

    /// A named special token, as a string or as an object.
    fn read(&self, name: &str, value: &Value) -> Option<AddedToken> {
        match value {
            Value::String(text) => Some(class_token(self.class, name, text)),
            _ => read_token(value),
        }
    }

    /// Takes over the tokens of a file; what it says wins over what was there.
    fn merge(&mut self, json: &JsonFile) -> Result<(), ArtifactError> {
        for (key, value) in json.value().as_object().into_iter().flatten() {
            let usual = NAMES.contains(&key.as_str());
            match value {
                Value::Null if usual => self.set(key, None),
                _ if usual => {
                    let token = self.read(key, value).ok_or_else(|| json.invalid(key, WANTED))?;
                    self.set(key, Some(token));
                }
                Value::String(_) if key.ends_with("_token") => self.set(key, read_token(value)),
                _ => {}
            }
        }
        for key in ["extra_special_tokens", "additional_special_tokens"] {
            match json.get(key)? {
                None => continue,
                Some(Value::Array(tokens)) => {
                    for value in tokens {
                        let token = read_token(value)
                            .ok_or_else(|| json.invalid(key, "a list of tokens"))?;
                        if self.extra_texts.insert(token.content.clone()) {
                            self.extra.push(token);
                        }
                    }
                }
                Some(Value::Object(tokens)) => {
                    for (name, value) in tokens {
                        let token = read_token(value).ok_or_else(|| json.invalid(key, WANTED))?;
                        self.set(name, Some(token));
                    }
                }
                Some(_) => return Err(json.invalid(key, "a list of tokens")),
            }
        }
        Ok(())
    }
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
    let named = named.iter().filter_map(|(_, token)| token.as_ref());
    let special: HashSet<&str> = named.chain(extra).map(|t| t.content.as_str()).collect();
    for (text, id) in json.value().as_object().into_iter().flatten() {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| json.invalid(text, "a token id from 0 to 4294967295"))?;
        added.insert(id, AddedToken::from(text.as_str(), special.contains(text.as_str())));
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
