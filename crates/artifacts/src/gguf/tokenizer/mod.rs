//! The tokenizer that a GGUF file describes, in the form of `tokenizer.json`.
//!
//! Which pipeline a vocabulary needs is told by `tokenizer.ggml.model`; how a byte-level one splits
//! words, by `tokenizer.ggml.pre`. Source: transformers 5.24, `integrations/gguf`, and the families'
//! own `tokenizer.json`.

mod byte_level;
mod sentencepiece;
mod unigram;
mod wordpiece;

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::{Map, Value as Json, json};

use super::header::Header;
use super::{find, open};
use crate::error::ArtifactError;
use crate::model_dir::ModelDir;

/// What kind of token one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// The tokens of a file.
pub(super) struct Tokens<'a> {
    texts: Vec<Cow<'a, str>>,
    /// Empty where the file does not say.
    kinds: Vec<Kind>,
}

impl<'a> Tokens<'a> {
    /// Reads `tokenizer.ggml.tokens` and their types; `None` where there are no tokens.
    pub(super) fn read(header: &Header<'a>) -> Result<Option<Self>, ArtifactError> {
        const TOKENS: &str = "tokenizer.ggml.tokens";
        const TYPES: &str = "tokenizer.ggml.token_type";
        let Some(array) = header.array(TOKENS)? else { return Ok(None) };
        let texts = array.iter().map(|value| value.as_lossy_text());
        let texts: Option<Vec<Cow<'a, str>>> = texts.collect();
        let texts = texts.ok_or_else(|| header.invalid(TOKENS, "an array of texts"))?;
        let mut kinds = Vec::new();
        if let Some(types) = header.array(TYPES)? {
            if types.len() != texts.len() {
                let wanted = format!("as many items as there are tokens, {}", texts.len());
                return Err(header.invalid(TYPES, &wanted));
            }
            kinds.extend(types.iter().map(|kind| match kind.as_u64() {
                Some(2) => Kind::Unknown,
                Some(3) => Kind::Control,
                Some(4) => Kind::UserDefined,
                Some(5) => Kind::Unused,
                Some(6) => Kind::Byte,
                _ => Kind::Normal,
            }));
        }
        Ok(Some(Self { texts, kinds }))
    }

    /// The text of a token.
    pub(super) fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(id as usize).map(AsRef::as_ref)
    }

    /// The id of a control token.
    pub(super) fn control(&self, text: &str) -> Option<u32> {
        let mut controls = self.iter().filter(|(_, kind)| *kind == Kind::Control);
        controls.find(|((_, other), _)| *other == text).map(|((id, _), _)| id)
    }

    fn len(&self) -> usize {
        self.texts.len()
    }

    /// Ids, texts and kinds.
    fn iter(&self) -> impl Iterator<Item = ((u32, &str), Kind)> {
        self.texts.iter().enumerate().map(|(id, text)| {
            let kind = self.kinds.get(id).copied().unwrap_or(Kind::Normal);
            ((id as u32, text.as_ref()), kind)
        })
    }

    /// Texts to ids; a text that is there twice has its first id.
    fn vocabulary(&self) -> HashMap<&str, u32> {
        let mut vocabulary = HashMap::with_capacity(self.len());
        for ((id, text), _) in self.iter() {
            vocabulary.entry(text).or_insert(id);
        }
        vocabulary
    }
}

/// The same as an object of JSON.
fn as_json(vocabulary: &HashMap<&str, u32>) -> Json {
    let object: Map<String, Json> =
        vocabulary.iter().map(|(text, id)| ((*text).to_owned(), (*id).into())).collect();
    object.into()
}

/// What the pipelines are made from.
struct Source<'h, 'a> {
    header: &'h Header<'a>,
    tokens: Tokens<'a>,
}

impl Source<'_, '_> {
    /// A named token, such as `bos`, with its text.
    fn named(&self, name: &str) -> Result<Option<(&str, u32)>, ArtifactError> {
        let id = self.header.u32(&format!("tokenizer.ggml.{name}_token_id"))?;
        Ok(id.and_then(|id| Some((self.tokens.text(id)?, id))))
    }

    /// The scores of the tokens, one each.
    fn scores(&self) -> Result<Vec<f64>, ArtifactError> {
        const KEY: &str = "tokenizer.ggml.scores";
        let wanted = format!("as many numbers as there are tokens, {}", self.tokens.len());
        let array = self.header.array(KEY)?.filter(|array| array.len() == self.tokens.len());
        let array = array.ok_or_else(|| self.header.invalid(KEY, &wanted))?;
        let scores: Option<Vec<f64>> = array.iter().map(|value| value.as_f64()).collect();
        scores.ok_or_else(|| self.header.invalid(KEY, &wanted))
    }

    /// Control tokens and the makers' own, which are found in a text as they are.
    fn added(&self) -> Json {
        let added = self.tokens.iter().filter_map(|((id, text), kind)| {
            let special = match kind {
                Kind::Control => true,
                Kind::UserDefined => false,
                _ => return None,
            };
            // The spaces of a sentencepiece vocabulary are found by its merges.
            if text.is_empty() || (!special && text.trim_matches(['▁', ' ']).is_empty()) {
                return None;
            }
            Some(json!({
                "id": id, "content": text, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": special,
            }))
        });
        added.collect()
    }

    /// What is put around a text: the start and the end token, as the file says or, where it does
    /// not, as the kind of vocabulary does.
    fn around(&self, start: bool, end: bool) -> Result<Json, ArtifactError> {
        let flag = |key: &str, default| Ok(self.header.bool(key)?.unwrap_or(default));
        let start = flag("tokenizer.ggml.add_bos_token", start)?;
        let end = flag("tokenizer.ggml.add_eos_token", end)?;
        let bos = self.named("bos")?.filter(|_| start);
        let eos = self.named("eos")?.filter(|_| end);
        Ok(template(bos, eos))
    }
}

/// A post-processor that puts tokens around each of one or two texts.
fn template(start: Option<(&str, u32)>, end: Option<(&str, u32)>) -> Json {
    let token = |(text, _): (&str, u32), type_id: u32| json!({"SpecialToken": {"id": text, "type_id": type_id}});
    let around = |name: &str, type_id: u32| -> Vec<Json> {
        let text = json!({"Sequence": {"id": name, "type_id": type_id}});
        let before = start.map(|start| token(start, type_id));
        let after = end.map(|end| token(end, type_id));
        before.into_iter().chain([text]).chain(after).collect()
    };
    let (single, second) = (around("A", 0), around("B", 1));
    let pair = [&single[..], &second[..]].concat();
    let tokens: Map<String, Json> = start
        .into_iter()
        .chain(end)
        .map(|(text, id)| (text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens})
}

/// The tokenizer of a model that comes as GGUF: its file, and what `tokenizer.json` would say.
pub(crate) fn definition(dir: &ModelDir) -> Result<Option<(PathBuf, Json)>, ArtifactError> {
    const MODEL: &str = "tokenizer.ggml.model";
    let Some(paths) = find(dir)? else { return Ok(None) };
    let files = open(&paths)?;
    let header = Header::read(&files)?;
    let tokens = Tokens::read(&header)?
        .ok_or_else(|| header.missing("tokenizer.ggml.tokens", "the tokens of the vocabulary"))?;
    let source = Source { header: &header, tokens };
    let mut definition = match header.str(MODEL)? {
        Some("gpt2") => byte_level::definition(&source)?,
        Some("llama") => sentencepiece::definition(&source)?,
        Some("bert") => wordpiece::definition(&source)?,
        Some("t5") => unigram::definition(&source)?,
        _ => {
            let wanted = "gpt2, llama, bert or t5; put the model's tokenizer.json beside the file";
            return Err(header.invalid(MODEL, wanted));
        }
    };
    definition["version"] = "1.0".into();
    if definition.get("added_tokens").is_none() {
        definition["added_tokens"] = source.added();
    }
    Ok(Some((header.path().to_owned(), definition)))
}
