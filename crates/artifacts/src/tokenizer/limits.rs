//! What a vocabulary may not exceed, so that a file cannot take far more memory or time than its own
//! size: checked before the library is given it.

use base64::Engine;
use serde_json::Value;

use super::charsmap;
use super::guard::Cause;
use crate::error::shorten;

/// Longest piece of a unigram vocabulary, in bytes. The library's tree of pieces is as deep as the
/// longest, and is freed by recursion.
const MAX_PIECE_BYTES: usize = 4096;

/// Most nodes of the tree of pieces; each takes some 250 bytes.
const MAX_TREE_NODES: usize = 12_000_000;

/// Most bytes that are hashed to find the merges of a vocabulary.
const MAX_MERGE_WORK: usize = 1 << 31;

/// Checks a unigram vocabulary of texts and scores.
pub(super) fn check_unigram<'a>(pieces: impl Iterator<Item = (&'a str, f64)>) -> Result<(), Cause> {
    let mut texts = Vec::new();
    for (text, score) in pieces {
        if text.len() > MAX_PIECE_BYTES {
            let found = text.len();
            return Err(format!(
                "a piece of its vocabulary has {found} bytes, at most {MAX_PIECE_BYTES} are allowed"
            )
            .into());
        }
        if !score.is_finite() {
            return Err(format!("the score of piece {} is no number", texts.len()).into());
        }
        texts.push(text.as_bytes());
    }
    texts.sort_unstable();
    let mut n_nodes = 0usize;
    let mut before: &[u8] = &[];
    for text in texts {
        let n_shared = text.iter().zip(before).take_while(|(a, b)| a == b).count();
        n_nodes += text.len() - n_shared;
        before = text;
    }
    if n_nodes > MAX_TREE_NODES {
        return Err(format!(
            "its vocabulary makes a tree of {n_nodes} nodes, at most {MAX_TREE_NODES} are allowed"
        )
        .into());
    }
    Ok(())
}

/// Checks that the merges of these tokens are found in good time.
pub(super) fn check_merges<'a>(tokens: impl Iterator<Item = &'a str>) -> Result<(), Cause> {
    let work = tokens
        .map(|token| token.len().saturating_mul(token.len()))
        .fold(0usize, usize::saturating_add);
    match work > MAX_MERGE_WORK {
        true => Err("the pieces of its vocabulary are too long to derive merges from them".into()),
        false => Ok(()),
    }
}

/// Checks what a `tokenizer.json` gives the library to build: charsmaps and unigram vocabularies.
pub(super) fn check_stored(stored: &Value) -> Result<(), Cause> {
    if let Some(vocab) = stored["model"]["vocab"].as_array() {
        check_unigram(
            vocab
                .iter()
                .filter_map(|piece| Some((piece.get(0)?.as_str()?, piece.get(1)?.as_f64()?))),
        )?;
    }
    check_charsmaps(&stored["normalizer"])
}

/// Checks the charsmaps of a normaliser and of those in it. JSON is at most 128 levels deep.
fn check_charsmaps(normalizer: &Value) -> Result<(), Cause> {
    if let Some(map) = normalizer["precompiled_charsmap"].as_str() {
        charsmap::check(&base64::engine::general_purpose::STANDARD.decode(map)?)?;
    }
    for nested in normalizer["normalizers"].as_array().into_iter().flatten() {
        check_charsmaps(nested)?;
    }
    Ok(())
}

/// What is wrong with a token's id in a JSON vocabulary.
pub(super) fn bad_id(token: &str, id: &Value) -> String {
    let (token, id) = (shorten(token), shorten(&id.to_string()));
    format!("its token {token:?} has the id {id}, expected a number from 0 to 4294967295")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vocabularies_are_bounded() {
        let check = |pieces: &[(String, f64)], expect: &str| {
            let result = check_unigram(pieces.iter().map(|(text, score)| (text.as_str(), *score)));
            let message = result.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(
                message.contains(expect) && message.is_empty() == expect.is_empty(),
                "{message}"
            );
        };
        check(&[("a".to_owned(), -1.0), ("ab".to_owned(), 0.0)], "");
        check(&[("a".repeat(4097), 0.0)], "has 4097 bytes");
        check(&[("a".to_owned(), f64::NAN)], "score of piece 0");
        let many: Vec<_> =
            (0..3000).map(|n| (format!("{n:04}{}", "x".repeat(4090)), 0.0)).collect();
        check(&many, "nodes");
        assert!(check_merges(["a", "b", "ab"].into_iter()).is_ok());
        assert!(check_merges(["x".repeat(50_000).as_str()].into_iter()).is_err());
    }
}
