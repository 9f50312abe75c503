//! Sentencepiece's Unigram, which GGUF calls `t5`.

use std::collections::HashSet;

use base64::Engine;
use serde_json::{Value as Json, json};

use super::{Kind, Source, template};
use crate::error::ArtifactError;

/// How many blanks a T5 has; files name them as padding, the last first.
const N_BLANKS: usize = 100;

pub(super) fn definition(source: &Source<'_, '_>) -> Result<Json, ArtifactError> {
    let header = source.header;
    let texts = spelled(source);
    let scores = source.scores()?;
    let vocabulary: Vec<Json> =
        texts.iter().zip(&scores).map(|(text, score)| json!([text, score])).collect();
    let unknown = source.tokens.iter().find(|(_, kind)| *kind == Kind::Unknown);
    let unknown = source.named("unknown")?.map(|(_, id)| id).or(unknown.map(|((id, _), _)| id));
    let prefix = header.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let trims = header.bool("tokenizer.ggml.remove_extra_whitespaces")?.unwrap_or(true);
    let scheme = if prefix { "always" } else { "never" };
    let metaspace = json!({
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true,
    });
    let mut steps = vec![metaspace.clone()];
    if trims {
        steps.insert(0, json!({"type": "WhitespaceSplit"}));
    }
    let added: Vec<Json> = source
        .tokens
        .iter()
        .zip(&texts)
        .filter_map(|(((id, _), kind), text)| {
            let special = match kind {
                Kind::Control | Kind::Unknown => true,
                _ if text.starts_with("<extra_id_") => true,
                Kind::UserDefined => false,
                _ => return None,
            };
            Some(json!({
                "id": id, "content": text, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": special,
            }))
        })
        .collect();
    // RoBERTa's kind of encoder has both; T5 ends its texts.
    let post_processor = match header.architecture {
        "bert" => template(source.named("bos")?, source.named("eos")?),
        _ => source.around(false, true)?,
    };
    Ok(json!({
        "normalizer": normalizer(source)?,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": post_processor,
        "decoder": metaspace,
        "added_tokens": added,
        "model": {"type": "Unigram", "unk_id": unknown, "vocab": vocabulary, "byte_fallback": false},
    }))
}

/// The tokens, the blanks among them under their names.
fn spelled(source: &Source<'_, '_>) -> Vec<String> {
    let mut texts: Vec<String> =
        source.tokens.iter().map(|((_, text), _)| text.to_owned()).collect();
    let known: HashSet<&str> = texts.iter().map(String::as_str).collect();
    if source.header.architecture != "t5" || known.contains("<extra_id_0>") {
        return texts;
    }
    let is_padding = |text: &String| {
        let number = text.strip_prefix("[PAD").and_then(|rest| rest.strip_suffix(']'));
        number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let blanks = texts.iter_mut().filter(|text| is_padding(text)).take(N_BLANKS);
    for (idx, text) in blanks.enumerate() {
        *text = format!("<extra_id_{}>", N_BLANKS - 1 - idx);
    }
    texts
}

/// The table of characters and what stands for them.
fn normalizer(source: &Source<'_, '_>) -> Result<Json, ArtifactError> {
    const KEY: &str = "tokenizer.ggml.precompiled_charsmap";
    let Some(array) = source.header.array(KEY)? else { return Ok(Json::Null) };
    let bytes = array.as_bytes().ok_or_else(|| source.header.invalid(KEY, "an array of bytes"))?;
    let map = base64::engine::general_purpose::STANDARD.encode(bytes);
    Ok(json!({"type": "Precompiled", "precompiled_charsmap": map}))
}
