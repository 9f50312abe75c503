//! Tokenizers from bare vocabularies: pieces with scores, WordPiece tokens, byte-level BPE.
//!
//! Nothing here reads a file. The vocabularies come from a sentencepiece model, `vocab.json`,
//! `vocab.txt` or whatever else holds one; what comes out are objects of the `tokenizers` crate.
//!
//! Source: transformers 5.24.0, `convert_slow_tokenizer.py` (`SpmConverter`), and sentencepiece's
//! `sentencepiece_model.proto` for what a piece's kind and the normaliser's settings mean.

use std::collections::{HashMap, HashSet};

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::{Precompiled, Sequence};
use tokenizers::{DecoderWrapper, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper};

use super::guard::Cause;
use super::{charsmap, limits};

/// What a piece stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PieceKind {
    /// Text.
    Normal,
    /// What no other piece covers.
    Unknown,
    /// A token that no text becomes, such as `<s>`.
    Control,
    /// Text that is always one piece.
    UserDefined,
    /// Not to be used.
    Unused,
    /// One byte, `<0x0A>`.
    Byte,
}

/// One entry of a vocabulary of pieces; its place is its id.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    /// Logarithm of its probability for unigram models; the higher, the earlier merged for BPE.
    pub(crate) score: f64,
    pub(crate) kind: PieceKind,
}

/// How pieces are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PieceAlgorithm {
    Unigram,
    Bpe,
}

/// What is done to a text before it is cut into pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PieceNormalizer {
    /// Replacements of characters, compiled by sentencepiece; empty for none.
    pub(crate) charsmap: Vec<u8>,
    pub(crate) add_dummy_prefix: bool,
    pub(crate) remove_extra_whitespaces: bool,
    pub(crate) escape_whitespaces: bool,
}

/// A vocabulary of pieces with all that says how a text is cut into them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PieceModel {
    pub(crate) pieces: Vec<Piece>,
    pub(crate) algorithm: PieceAlgorithm,
    /// The place of the piece for unknown text, if there is one.
    pub(crate) unk: Option<u32>,
    pub(crate) byte_fallback: bool,
    pub(crate) normalizer: PieceNormalizer,
}

impl PieceModel {
    /// Texts and scores, in the order of the ids.
    pub(crate) fn scores(&self) -> Vec<(String, f64)> {
        self.pieces.iter().map(|piece| (piece.text.clone(), piece.score)).collect()
    }

    /// Texts, in the order of the ids.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &str> + Clone {
        self.pieces.iter().map(|piece| piece.text.as_str())
    }
}

/// Which chunks of a text get a space in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prefix {
    /// Every chunk between added tokens.
    Always,
    /// The chunk that a text starts with.
    First,
    Never,
}

impl Prefix {
    fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::First => "first",
            Self::Never => "never",
        }
    }
}

/// Settings of [`word_piece`].
#[derive(Clone, Debug)]
pub(crate) struct WordPieceOptions {
    pub(crate) unk_token: String,
    pub(crate) lowercase: bool,
    /// `None`: where letters are lowered.
    pub(crate) strip_accents: Option<bool>,
    pub(crate) handle_chinese_chars: bool,
}

/// Settings of a BPE model.
#[derive(Clone, Debug, Default)]
pub(crate) struct BpeOptions {
    pub(crate) unk_token: Option<String>,
    /// Neighbouring unknown characters are one token.
    pub(crate) fuse_unk: bool,
    pub(crate) byte_fallback: bool,
    /// A chunk that is a token is not cut.
    pub(crate) ignore_merges: bool,
    /// What stands at the end of a word, `</w>`.
    pub(crate) end_of_word_suffix: Option<String>,
}

/// A unigram model of pieces with scores. `unk` is the place of the piece for unknown text.
///
/// # Errors
/// A piece is too long, there are too many, a score is no number, `unk` is beyond the last piece.
pub(crate) fn unigram(
    pieces: Vec<(String, f64)>,
    unk: Option<u32>,
    byte_fallback: bool,
) -> Result<ModelWrapper, Cause> {
    limits::check_unigram(pieces.iter().map(|(text, score)| (text.as_str(), *score)))?;
    let unk = unk.map(|unk| unk as usize);
    Ok(Unigram::from(pieces, unk, byte_fallback)?.into())
}

/// A BPE model; `merges` in the order in which they are tried.
///
/// # Errors
/// A merge uses or makes a token that the vocabulary lacks.
pub(crate) fn bpe(
    vocab: impl IntoIterator<Item = (String, u32)>,
    merges: Merges,
    options: BpeOptions,
) -> Result<ModelWrapper, Cause> {
    let vocab: Vocab = vocab.into_iter().collect();
    let mut builder = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .fuse_unk(options.fuse_unk)
        .byte_fallback(options.byte_fallback)
        .ignore_merges(options.ignore_merges);
    if let Some(unk) = options.unk_token {
        builder = builder.unk_token(unk);
    }
    if let Some(suffix) = options.end_of_word_suffix {
        builder = builder.end_of_word_suffix(suffix);
    }
    Ok(builder.build()?.into())
}

/// The merges of a BPE whose tokens are ranked, first of all those of the token that ranks first.
/// Each token may come of every two that it consists of.
///
/// # Errors
/// The tokens are so long that this would take too much time.
pub(crate) fn merges_by_rank<'a>(
    ranked: impl Iterator<Item = &'a str> + Clone,
) -> Result<Merges, Cause> {
    limits::check_merges(ranked.clone())?;
    let known: HashSet<&str> = ranked.clone().collect();
    let mut merges = Vec::new();
    for token in ranked {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if known.contains(left) && known.contains(right) {
                merges.push((left.to_owned(), right.to_owned()));
            }
        }
    }
    Ok(merges)
}

/// The merges of a BPE whose pieces have scores: the highest first, among equals the lowest id.
/// Only normal pieces are merged.
///
/// # Errors
/// The pieces are so long that this would take too much time.
pub(crate) fn merges_by_score(pieces: &[Piece]) -> Result<Merges, Cause> {
    let mut normal: Vec<&Piece> =
        pieces.iter().filter(|piece| piece.kind == PieceKind::Normal).collect();
    normal.sort_by(|a, b| b.score.total_cmp(&a.score));
    merges_by_rank(normal.iter().map(|piece| piece.text.as_str()))
}

/// A tokenizer that cuts texts as sentencepiece does with the same model.
///
/// # Errors
/// The model breaks a limit, its piece for unknown text is missing or its charsmap is broken.
pub(crate) fn sentencepiece(
    model: &PieceModel,
    prefix: Prefix,
) -> Result<tokenizers::Tokenizer, Cause> {
    let user_defined = user_defined(&model.pieces);
    let unk = model.unk.and_then(|unk| model.pieces.get(unk as usize));
    let core = match model.algorithm {
        PieceAlgorithm::Unigram => unigram(model.scores(), model.unk, model.byte_fallback)?,
        PieceAlgorithm::Bpe => bpe(
            ids(model.texts()),
            merges_by_score(&model.pieces)?,
            BpeOptions {
                unk_token: unk.map(|piece| piece.text.clone()),
                fuse_unk: true,
                byte_fallback: model.byte_fallback,
                ignore_merges: !user_defined.is_empty(),
                ..BpeOptions::default()
            },
        )?,
    };
    let mut tokenizer = tokenizers::Tokenizer::new(core);
    tokenizer.with_normalizer(Some(piece_normalizer(&model.normalizer, prefix)?))?;
    let has_prefix = model.normalizer.add_dummy_prefix && prefix != Prefix::Never;
    let mut splits = Vec::new();
    if has_prefix {
        splits.push(metaspace(prefix, false));
    }
    if !user_defined.is_empty() {
        let pattern = user_defined.iter().map(|text| escape(text)).collect::<Vec<_>>().join("|");
        splits.push(
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}),
        );
    }
    if !splits.is_empty() {
        let pre: PreTokenizerWrapper = part(json!({"type": "Sequence", "pretokenizers": splits}))?;
        tokenizer.with_pre_tokenizer(Some(pre));
    }
    let decoder: DecoderWrapper = part(piece_decoder(model.byte_fallback, has_prefix))?;
    tokenizer.with_decoder(Some(decoder));
    Ok(tokenizer)
}

/// What sentencepiece does to a text, in its order. Only spaces count as white space there.
fn piece_normalizer(
    settings: &PieceNormalizer,
    prefix: Prefix,
) -> Result<NormalizerWrapper, Cause> {
    let replace = |pattern: &str, content: &str| {
        part(json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": content}))
    };
    let mut all: Vec<NormalizerWrapper> = Vec::new();
    if !settings.charsmap.is_empty() {
        all.push(precompiled(&settings.charsmap)?);
    }
    if settings.remove_extra_whitespaces {
        all.push(replace(r"\A +| +\z", "")?);
        all.push(replace(" {2,}", " ")?);
    }
    if settings.escape_whitespaces {
        all.push(replace(" ", "▁")?);
    }
    if settings.add_dummy_prefix && prefix == Prefix::Always {
        // The library adds no prefix where a text starts with the mark; sentencepiece does.
        all.push(replace(r"\A▁", "▁▁")?);
    }
    Ok(Sequence::new(all).into())
}

/// The decoder of pieces; `strips` says whether a text's first space was added.
pub(crate) fn piece_decoder(byte_fallback: bool, strips: bool) -> Value {
    let mut decoders = vec![json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "})];
    if byte_fallback {
        decoders.push(json!({"type": "ByteFallback"}));
    }
    if byte_fallback || strips {
        decoders.push(json!({"type": "Fuse"}));
    }
    if strips {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": decoders})
}

/// The pre-tokenizer or decoder that writes a space as `▁`.
pub(crate) fn metaspace(prefix: Prefix, split: bool) -> Value {
    json!({
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": prefix.name(), "split": split,
    })
}

/// The normaliser of a charsmap that sentencepiece compiled.
///
/// # Errors
/// The charsmap is broken, or a replacement in it is longer than any honest one.
pub(crate) fn precompiled(bytes: &[u8]) -> Result<NormalizerWrapper, Cause> {
    charsmap::check(bytes)?;
    let map = Precompiled::from(bytes).map_err(|error| error.to_string())?;
    Ok(map.into())
}

/// BERT's tokenizer without its post-processor; a token's place is its id.
///
/// # Errors
/// The library refuses the vocabulary.
pub(crate) fn word_piece(
    vocab: impl IntoIterator<Item = (String, u32)>,
    options: &WordPieceOptions,
) -> Result<tokenizers::Tokenizer, Cause> {
    let vocab: HashMap<String, u32> = vocab.into_iter().collect();
    let model = WordPiece::builder()
        .vocab(vocab.into_iter().collect::<Vocab>())
        .unk_token(options.unk_token.clone())
        .continuing_subword_prefix("##".to_owned())
        .max_input_chars_per_word(100)
        .build()?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    let normalizer: NormalizerWrapper = part(json!({
        "type": "BertNormalizer", "clean_text": true,
        "handle_chinese_chars": options.handle_chinese_chars,
        "strip_accents": options.strip_accents, "lowercase": options.lowercase,
    }))?;
    tokenizer.with_normalizer(Some(normalizer))?;
    let pre: PreTokenizerWrapper = part(json!({"type": "BertPreTokenizer"}))?;
    tokenizer.with_pre_tokenizer(Some(pre));
    let decoder: DecoderWrapper =
        part(json!({"type": "WordPiece", "prefix": "##", "cleanup": true}))?;
    tokenizer.with_decoder(Some(decoder));
    Ok(tokenizer)
}

/// A byte-level BPE tokenizer as GPT-2's. `pattern` cuts a text into words where it is not GPT-2's
/// own expression that does.
///
/// # Errors
/// The merges do not fit the vocabulary, or the pattern is no regular expression.
pub(crate) fn byte_level(
    vocab: impl IntoIterator<Item = (String, u32)>,
    merges: Merges,
    add_prefix_space: bool,
    pattern: Option<&str>,
) -> Result<tokenizers::Tokenizer, Cause> {
    let model = bpe(vocab, merges, BpeOptions::default())?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true,
        "use_regex": pattern.is_none(),
    });
    let pre = match pattern {
        None => bytes,
        Some(pattern) => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            bytes,
        ]}),
    };
    let pre: PreTokenizerWrapper = part(pre)?;
    tokenizer.with_pre_tokenizer(Some(pre));
    let decoder: DecoderWrapper = part(json!({
        "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
    }))?;
    tokenizer.with_decoder(Some(decoder));
    Ok(tokenizer)
}

/// The places of texts as ids; of two equal texts, the last one counts.
pub(crate) fn ids<'a>(texts: impl Iterator<Item = &'a str>) -> impl Iterator<Item = (String, u32)> {
    texts.zip(0u32..).map(|(text, id)| (text.to_owned(), id))
}

/// A part of a tokenizer from its form in `tokenizer.json`.
pub(crate) fn part<T: DeserializeOwned>(definition: Value) -> Result<T, Cause> {
    Ok(serde_json::from_value(definition)?)
}

/// The user-defined pieces, the longest first, as one that starts with another has to be tried
/// before it.
fn user_defined(pieces: &[Piece]) -> Vec<&str> {
    let is_own = |piece: &&Piece| piece.kind == PieceKind::UserDefined && !piece.text.is_empty();
    let mut texts: Vec<&str> =
        pieces.iter().filter(is_own).map(|piece| piece.text.as_str()).collect();
    texts.sort_by_key(|text| std::cmp::Reverse(text.chars().count()));
    texts
}

/// A text as a regular expression that matches it alone.
fn escape(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for letter in text.chars() {
        // Not all punctuation: `\<` would be the start of a word.
        if r"\.+*?()|[]{}^$#&-~".contains(letter) {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    pattern
}
