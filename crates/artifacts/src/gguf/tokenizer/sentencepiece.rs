//! Sentencepiece's BPE, which GGUF calls `llama`: merges by the tokens' scores, spaces as `▁`, bytes
//! as tokens of their own.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::{Value as Json, json};

use super::{Kind, Source, as_json};
use crate::error::ArtifactError;
use crate::gguf::header::Header;
use crate::tokenizer::merges_by_rank;

/// The pipeline around the merges, which no key names: each family's own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pipeline {
    /// Spaces are replaced where a text is normalised; nothing is put before it. Merges follow the
    /// order of the tokens.
    Gemma,
    /// The same, but each piece of text starts with a space.
    Phi3,
    /// A space is put before a text, but not after a special token in it.
    Llama,
}

pub(super) fn definition(source: &Source<'_, '_>) -> Result<Json, ArtifactError> {
    const MERGES: &str = "tokenizer.ggml.merges";
    let header = source.header;
    let pipeline = match header.architecture {
        "gemma" | "gemma2" | "gemma3" => Pipeline::Gemma,
        "phi3" => Pipeline::Phi3,
        _ => Pipeline::Llama,
    };
    let tokens: Vec<(Cow<'_, str>, Kind)> =
        source.tokens.iter().map(|((_, text), kind)| (spelled(text, kind), kind)).collect();
    let mut vocabulary: HashMap<&str, u32> = HashMap::with_capacity(tokens.len());
    for (id, (text, _)) in tokens.iter().enumerate() {
        vocabulary.entry(text).or_insert(id as u32);
    }
    let merges: Json = match header.array(MERGES)? {
        Some(array) => {
            let pair = |text: &str| text.split_once(' ').map(|(a, b)| json!([a, b]));
            let pairs: Option<Json> = array.iter().map(|value| pair(value.as_str()?)).collect();
            let wanted = "an array of two tokens each with a space between";
            pairs.ok_or_else(|| header.invalid(MERGES, wanted))?
        }
        None => {
            let scores = match pipeline {
                // Gemma's scores do not follow its merges; the order of its tokens does.
                Pipeline::Gemma => (0..tokens.len()).map(|id| -(id as f64)).collect(),
                _ => source.scores()?,
            };
            merges(header, &tokens, &scores)?
        }
    };
    let prefix = header.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let unknown = source.named("unknown")?.map(|(text, _)| text);
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let (normalizer, pre_tokenizer) = match pipeline {
        Pipeline::Gemma => (replace, Json::Null),
        Pipeline::Phi3 if prefix => {
            let prepend = json!({"type": "Prepend", "prepend": "▁"});
            (json!({"type": "Sequence", "normalizers": [prepend, replace]}), Json::Null)
        }
        Pipeline::Phi3 => (replace, Json::Null),
        Pipeline::Llama => {
            let scheme = if prefix { "first" } else { "never" };
            let metaspace = json!({
                "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false,
            });
            (Json::Null, metaspace)
        }
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix && pipeline != Pipeline::Gemma {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(json!({
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": source.around(true, false)?,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": true, "vocab": as_json(&vocabulary), "merges": merges,
        },
    }))
}

/// A token as merges spell it: files have the makers' own runs of spaces as spaces.
fn spelled(text: &str, kind: Kind) -> Cow<'_, str> {
    let is_spaces = !text.is_empty() && text.bytes().all(|b| b == b' ');
    match kind == Kind::UserDefined && is_spaces {
        true => "▁".repeat(text.len()).into(),
        false => text.into(),
    }
}

/// All pairs of tokens that make a token, the best token first.
fn merges(
    header: &Header<'_>,
    tokens: &[(Cow<'_, str>, Kind)],
    scores: &[f64],
) -> Result<Json, ArtifactError> {
    let mut ranked: Vec<(&str, f64)> = tokens
        .iter()
        .zip(scores)
        .filter(|((_, kind), _)| matches!(kind, Kind::Normal | Kind::UserDefined))
        .map(|((text, _), score)| (text.as_ref(), *score))
        .collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    let merges = merges_by_rank(ranked.iter().map(|(text, _)| *text))
        .map_err(|source| ArtifactError::Tokenizer { path: header.path().to_owned(), source })?;
    Ok(merges.into_iter().map(|(left, right)| json!([left, right])).collect())
}
