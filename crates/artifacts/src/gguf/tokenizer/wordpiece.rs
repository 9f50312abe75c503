//! WordPiece, which GGUF calls `bert`: pieces that start a word have a `▁` before them, those that
//! go on have nothing.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use super::{Kind, Source};
use crate::error::ArtifactError;

pub(super) fn definition(source: &Source<'_, '_>) -> Result<Json, ArtifactError> {
    let is_special = |text: &str, kind: Kind| {
        matches!(kind, Kind::Control | Kind::Unknown)
            || text.starts_with('[') && text.ends_with(']') && text.len() > 2
    };
    let mut vocabulary = Map::new();
    let mut is_cased = false;
    let mut ids = HashMap::new();
    for ((id, text), kind) in source.tokens.iter() {
        let piece = match text.strip_prefix('▁') {
            Some(start) => start.to_owned(),
            None if is_special(text, kind) => text.to_owned(),
            None => format!("##{text}"),
        };
        if !is_special(&piece, kind) {
            is_cased |= piece.bytes().any(|b| b.is_ascii_uppercase());
        }
        if matches!(piece.as_str(), "[CLS]" | "[SEP]" | "[UNK]") {
            ids.entry(piece.clone()).or_insert(id);
        }
        vocabulary.entry(piece).or_insert_with(|| id.into());
    }
    let named = |key: &str, text: &'static str| -> Result<_, ArtifactError> {
        Ok(match source.named(key)? {
            Some((text, id)) => Some((text.to_owned(), id)),
            None => ids.get(text).map(|id| (text.to_owned(), *id)),
        })
    };
    let around = (named("cls", "[CLS]")?.or(named("bos", "[CLS]")?), named("seperator", "[SEP]")?);
    let post_processor = match &around {
        (Some(cls), Some(sep)) => json!({"type": "BertProcessing", "cls": cls, "sep": sep}),
        _ => Json::Null,
    };
    let unknown = named("unknown", "[UNK]")?.map_or_else(|| "[UNK]".to_owned(), |(text, _)| text);
    Ok(json!({
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            // Files do not say whether a model tells capitals apart; its tokens do.
            "strip_accents": null, "lowercase": !is_cased,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": post_processor,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {
            "type": "WordPiece", "unk_token": unknown, "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary,
        },
    }))
}
