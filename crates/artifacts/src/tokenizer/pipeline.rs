//! The pipeline that a class makes around its vocabulary.
//!
//! Source: transformers 5.24.0, `models/*/tokenization_*.py`.

use serde_json::{Value, json};
use tokenizers::normalizers::Sequence;
use tokenizers::{DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper};

use super::build::{self, BpeOptions, Prefix, WordPieceOptions};
use super::class::Class;
use super::guard::Cause;
use super::settings::Settings;
use super::special::SpecialSettings;
use super::vocabulary::{Vocabulary, Words};

/// How Qwen2 cuts a text into words: a fact of its models.
const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How CLIP does.
const CLIP_WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Makes the tokenizer of a class, without its added tokens and its post-processor.
pub(super) fn make(
    class: Class,
    words: Words,
    special: &SpecialSettings,
    settings: &Settings,
) -> Result<tokenizers::Tokenizer, Cause> {
    match words.vocabulary {
        Vocabulary::Scored(pieces) => unigram(class, pieces, words.charsmap, special, settings),
        Vocabulary::Tokens(vocab) => build::word_piece(
            vocab,
            &WordPieceOptions {
                unk_token: special.text("unk_token").unwrap_or("[UNK]").to_owned(),
                lowercase: settings.do_lower_case.unwrap_or(true),
                strip_accents: settings.strip_accents,
                handle_chinese_chars: settings.tokenize_chinese_chars.unwrap_or(true),
            },
        ),
        Vocabulary::Ranked(vocab, merges) => {
            let prefix = settings.add_prefix_space.unwrap_or(false);
            match class {
                Class::Llama | Class::Gemma | Class::Nllb => {
                    let options = BpeOptions {
                        unk_token: match class {
                            Class::Llama => None,
                            _ => special.text("unk_token").map(str::to_owned),
                        },
                        fuse_unk: true,
                        byte_fallback: class != Class::Nllb,
                        ..BpeOptions::default()
                    };
                    let model = build::bpe(vocab, merges, options)?;
                    let tokenizer = tokenizers::Tokenizer::new(model);
                    piece_bpe(class, tokenizer, words.charsmap, settings)
                }
                Class::Clip => {
                    let options = BpeOptions {
                        unk_token: special.text("unk_token").map(str::to_owned),
                        end_of_word_suffix: Some("</w>".to_owned()),
                        ..BpeOptions::default()
                    };
                    clip(tokenizers::Tokenizer::new(build::bpe(vocab, merges, options)?))
                }
                Class::Qwen2 => {
                    let mut made = build::byte_level(vocab, merges, prefix, Some(QWEN2_WORDS))?;
                    let normalizer: NormalizerWrapper = build::part(json!({"type": "NFC"}))?;
                    made.with_normalizer(Some(normalizer))?;
                    Ok(made)
                }
                _ => build::byte_level(vocab, merges, prefix, None),
            }
        }
    }
}

/// T5, Pegasus, mBART, XLM-RoBERTa, CamemBERT.
fn unigram(
    class: Class,
    pieces: Vec<(String, f64)>,
    charsmap: Option<NormalizerWrapper>,
    special: &SpecialSettings,
    settings: &Settings,
) -> Result<tokenizers::Tokenizer, Cause> {
    let unk = match class {
        Class::T5 => 2,
        // Where pieces are numbered by the pieces before them.
        Class::Pegasus | Class::Camembert => {
            let unk = special.text("unk_token").unwrap_or("<unk>");
            let place = pieces.iter().position(|(text, _)| text == unk);
            let place = place.and_then(|place| u32::try_from(place).ok());
            match (place, class) {
                (Some(place), _) => place,
                (None, Class::Camembert) => 0,
                (None, _) => return Err(format!("its vocabulary lacks {unk:?}").into()),
            }
        }
        _ => 3,
    };
    let mut tokenizer = tokenizers::Tokenizer::new(build::unigram(pieces, Some(unk), false)?);
    let single_spaces = || -> Result<NormalizerWrapper, Cause> {
        build::part(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}))
    };
    let normalizer = match class {
        Class::Mbart => None,
        Class::Pegasus => {
            let first = match charsmap {
                Some(charsmap) => charsmap,
                None => build::part(
                    json!({"type": "Replace", "pattern": {"Regex": r"\n"}, "content": " "}),
                )?,
            };
            Some(Sequence::new(vec![first, single_spaces()?]).into())
        }
        Class::Mbart50 => {
            let all = charsmap.into_iter().chain([single_spaces()?]).collect();
            Some(Sequence::new(all).into())
        }
        _ => charsmap,
    };
    tokenizer.with_normalizer(normalizer)?;
    let prefix = match class {
        Class::XlmRoberta | Class::Camembert if settings.add_prefix_space == Some(false) => {
            Prefix::Never
        }
        _ => Prefix::Always,
    };
    let mut pre = build::metaspace(prefix, true);
    if !matches!(class, Class::Pegasus | Class::Mbart50) {
        pre = json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, pre]});
    }
    set_parts(&mut tokenizer, pre, build::metaspace(prefix, true))?;
    Ok(tokenizer)
}

/// LLaMA, Gemma, NLLB.
fn piece_bpe(
    class: Class,
    mut tokenizer: tokenizers::Tokenizer,
    charsmap: Option<NormalizerWrapper>,
    settings: &Settings,
) -> Result<tokenizers::Tokenizer, Cause> {
    match class {
        Class::Gemma => {
            let normalizer: NormalizerWrapper = build::part(
                json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
            )?;
            tokenizer.with_normalizer(Some(normalizer))?;
            let pre = json!({
                "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                "invert": false,
            });
            set_parts(&mut tokenizer, pre, build::piece_decoder(true, false))?;
        }
        Class::Nllb => {
            if let Some(charsmap) = charsmap {
                let spaces = json!({
                    "type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " ",
                });
                let normalizer = Sequence::new(vec![charsmap, build::part(spaces)?]);
                tokenizer.with_normalizer(Some(normalizer))?;
            }
            let space = build::metaspace(Prefix::Always, true);
            set_parts(&mut tokenizer, space.clone(), space)?;
        }
        _ => {
            let prefixes = settings.add_prefix_space.unwrap_or(true);
            let prefix = match (prefixes, settings.legacy.unwrap_or(false)) {
                (false, _) => Prefix::Never,
                (true, true) => Prefix::Always,
                (true, false) => Prefix::First,
            };
            let pre = build::metaspace(prefix, false);
            set_parts(&mut tokenizer, pre, build::piece_decoder(true, prefixes))?;
        }
    }
    Ok(tokenizer)
}

fn clip(mut tokenizer: tokenizers::Tokenizer) -> Result<tokenizers::Tokenizer, Cause> {
    let normalizer: NormalizerWrapper = build::part(json!({"type": "Sequence", "normalizers": [
        {"type": "NFC"},
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
        {"type": "Lowercase"},
    ]}))?;
    tokenizer.with_normalizer(Some(normalizer))?;
    let bytes = |use_regex| {
        json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": use_regex,
        })
    };
    let pre = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": CLIP_WORDS}, "behavior": "Removed", "invert": true},
        bytes(true),
    ]});
    let decoder = json!({"type": "Sequence", "decoders": [
        bytes(true),
        {"type": "Replace", "pattern": {"String": "</w>"}, "content": " "},
        {"type": "Replace", "pattern": {"Regex": OUTER_SPACE}, "content": ""},
    ]});
    set_parts(&mut tokenizer, pre, decoder)?;
    Ok(tokenizer)
}

/// White space at the ends of a text, as Python's `strip` knows it.
pub(super) const OUTER_SPACE: &str = r"\A[\s\x1c-\x1f]+|[\s\x1c-\x1f]+\z";

/// Sets pre-tokenizer and decoder, in their forms in `tokenizer.json`.
pub(super) fn set_parts(
    tokenizer: &mut tokenizers::Tokenizer,
    pre_tokenizer: Value,
    decoder: Value,
) -> Result<(), Cause> {
    let pre: PreTokenizerWrapper = build::part(pre_tokenizer)?;
    tokenizer.with_pre_tokenizer(Some(pre));
    let decoder: DecoderWrapper = build::part(decoder)?;
    tokenizer.with_decoder(Some(decoder));
    Ok(())
}
