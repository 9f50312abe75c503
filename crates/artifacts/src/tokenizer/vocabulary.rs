//! A vocabulary in the form that a class takes it, from whatever file holds it.
//!
//! Source: transformers 5.24.0, `convert_slow_tokenizer.py` (`convert_from_spm` of each class) and
//! `tokenization_utils_tokenizers.py` (`convert_to_native_format`).

use serde_json::Value;
use tokenizers::NormalizerWrapper;
use tokenizers::models::bpe::Merges;

use super::build::{self, PieceKind};
use super::class::Class;
use super::guard::Cause;
use super::language_codes;
use super::limits;
use super::sentencepiece::SentencePieceModel;
use super::settings::Settings;
use super::special::SpecialSettings;

/// A vocabulary; tokens have the ids that stand with them, or those of their places.
pub(super) enum Vocabulary {
    /// Pieces with scores.
    Scored(Vec<(String, f64)>),
    /// Tokens, and merges in the order in which they are tried.
    Ranked(Vec<(String, u32)>, Merges),
    /// Tokens alone.
    Tokens(Vec<(String, u32)>),
}

/// A vocabulary with the replacements of characters that belong to it.
pub(super) struct Words {
    pub(super) vocabulary: Vocabulary,
    pub(super) charsmap: Option<NormalizerWrapper>,
}

impl Class {
    /// Whether the class takes pieces with scores.
    pub(super) fn is_scored(self) -> bool {
        matches!(
            self,
            Self::T5
                | Self::Pegasus
                | Self::Mbart
                | Self::Mbart50
                | Self::XlmRoberta
                | Self::Camembert
        )
    }

    /// Whether the class takes its vocabulary from a sentencepiece model.
    pub(super) fn is_of_pieces(self) -> bool {
        self.is_scored() || matches!(self, Self::Llama | Self::Gemma | Self::Nllb)
    }

    /// Whether the class takes tokens and merges.
    pub(super) fn is_ranked(self) -> bool {
        self.is_byte_level() || matches!(self, Self::Llama | Self::Gemma | Self::Nllb)
    }

    /// Whether the class takes them from `vocab.json` and `merges.txt`.
    pub(super) fn is_byte_level(self) -> bool {
        matches!(self, Self::Gpt2 | Self::Roberta | Self::Qwen2 | Self::Clip)
    }

    /// Whether the class takes tokens alone.
    pub(super) fn is_word_piece(self) -> bool {
        matches!(self, Self::Bert | Self::Mpnet)
    }

    /// Whether the class can take its vocabulary from this `tokenizer.json`.
    pub(super) fn suits(self, stored: &Value) -> bool {
        let Some(model) = stored.get("model") else { return false };
        let (kind, vocab) = (model["type"].as_str(), &model["vocab"]);
        if self.is_word_piece() {
            kind == Some("WordPiece") && vocab.is_object()
        } else if self.is_ranked() {
            kind == Some("BPE") && vocab.is_object() && model["merges"].is_array()
        } else {
            self.is_scored() && kind.is_none_or(|kind| kind == "Unigram") && vocab.is_array()
        }
    }
}

impl Words {
    /// The vocabulary of a `tokenizer.json` that suits the class.
    pub(super) fn of_stored(class: Class, stored: &mut Value) -> Result<Self, Cause> {
        let charsmap = find_charsmap(&stored["normalizer"]);
        let charsmap = charsmap.cloned().map(build::part).transpose()?;
        let vocab = stored["model"]["vocab"].take();
        let vocabulary = if class.is_scored() {
            Vocabulary::Scored(serde_json::from_value(vocab)?)
        } else if class.is_word_piece() {
            Vocabulary::Tokens(read_ids(vocab)?)
        } else {
            Vocabulary::Ranked(read_ids(vocab)?, read_merges(stored["model"]["merges"].take())?)
        };
        Ok(Self { vocabulary, charsmap })
    }

    /// The vocabulary of a sentencepiece model, with the ids that the class gives its pieces.
    pub(super) fn of_pieces(
        class: Class,
        model: &SentencePieceModel,
        special: &SpecialSettings,
        settings: &Settings,
    ) -> Result<Self, Cause> {
        let bytes = &model.pieces.normalizer.charsmap;
        let charsmap = match bytes.is_empty() {
            true => None,
            false => Some(build::precompiled(bytes)?),
        };
        let vocabulary = if class.is_scored() {
            Vocabulary::Scored(scored(class, model, special, settings))
        } else {
            let merges = build::merges_by_rank(model.pieces.texts())?;
            let vocab = match class {
                Class::Nllb => nllb(model, special),
                _ => build::ids(model.pieces.texts()).collect(),
            };
            Vocabulary::Ranked(vocab, merges)
        };
        Ok(Self { vocabulary, charsmap })
    }
}

/// Pieces with scores, as the class numbers them.
fn scored(
    class: Class,
    model: &SentencePieceModel,
    special: &SpecialSettings,
    settings: &Settings,
) -> Vec<(String, f64)> {
    let zero = |text: &str| (text.to_owned(), 0.0);
    let named = |name: &str, usual: &str| zero(special.given(name).unwrap_or(usual));
    let pieces = model.pieces.scores();
    let from = |first: usize| pieces.iter().skip(first).cloned();
    let fairseq = |first| {
        vec![
            named(first, "<s>"),
            named("pad_token", "<pad>"),
            named("eos_token", "</s>"),
            named("unk_token", "<unk>"),
        ]
    };
    let mut all = Vec::with_capacity(pieces.len() + 256);
    match class {
        Class::T5 => {
            all.extend(from(0));
            all.extend((0..settings.extra_ids).rev().map(|n| zero(&format!("<extra_id_{n}>"))));
        }
        Class::Pegasus => {
            let mask = special.given("mask_token").unwrap_or("<mask_1>");
            let sentence = settings.mask_token_sent.as_deref().unwrap_or("<mask_2>");
            all.extend([named("pad_token", "<pad>"), named("eos_token", "</s>"), zero(mask)]);
            all.extend((sentence != mask).then(|| zero(sentence)));
            all.extend((2..settings.offset).map(|n| (format!("<unk_{n}>"), -100.0)));
            all.extend(from(2));
        }
        Class::Camembert => {
            all.extend([zero("<s>NOTUSED"), named("pad_token", "<pad>"), zero("</s>NOTUSED")]);
            all.extend([named("unk_token", "<unk>"), ("<unk>NOTUSED".to_owned(), -100.0)]);
            all.extend(from(1));
            all.push(named("mask_token", "<mask>"));
        }
        Class::Mbart | Class::Mbart50 => {
            let is_50 = class == Class::Mbart50;
            all.extend(fairseq(if is_50 { "cls_token" } else { "bos_token" }));
            all.extend(from(3));
            all.extend(language_codes::MBART.split(' ').map(zero));
            if is_50 {
                all.extend(language_codes::MBART50.split(' ').map(zero));
            }
            all.push(named("mask_token", "<mask>"));
        }
        _ => {
            all.extend(fairseq("bos_token"));
            all.extend(from(3));
            all.push(named("mask_token", "<mask>"));
        }
    }
    all
}

/// The tokens of NLLB: four of its own first, then the pieces, then the languages where no file says
/// which there are.
fn nllb(model: &SentencePieceModel, special: &SpecialSettings) -> Vec<(String, u32)> {
    let own = [
        special.given("bos_token").unwrap_or("<s>"),
        special.given("pad_token").unwrap_or("<pad>"),
        special.given("eos_token").unwrap_or("</s>"),
        special.given("unk_token").unwrap_or("<unk>"),
    ];
    let rest = model.pieces.texts().filter(|text| !own.contains(text));
    let mut seen = std::collections::HashSet::new();
    // Checkpoints have the languages before the mask, which transformers 5 would number first.
    let codes = language_codes::NLLB.split(' ').take(match special.is_extra_usual {
        true => usize::MAX,
        false => 0,
    });
    let all = own.into_iter().chain(rest).chain(codes);
    build::ids(all.filter(|text| seen.insert(*text))).collect()
}

/// The pieces that are tokens of their own: control ones, which are special, and those that the
/// model's user defined, which are not.
pub(super) fn own_tokens(model: &SentencePieceModel) -> impl Iterator<Item = (&str, bool)> {
    model.pieces.pieces.iter().filter_map(|piece| match piece.kind {
        PieceKind::Control => Some((piece.text.as_str(), true)),
        PieceKind::UserDefined => Some((piece.text.as_str(), false)),
        _ => None,
    })
}

/// The charsmap in a normaliser.
fn find_charsmap(normalizer: &Value) -> Option<&Value> {
    let is_charsmap = |part: &&Value| part["type"] == "Precompiled";
    let nested = normalizer["normalizers"].as_array().into_iter().flatten();
    std::iter::once(normalizer).chain(nested).find(is_charsmap)
}

/// Tokens and ids of an object.
pub(super) fn read_ids(vocab: Value) -> Result<Vec<(String, u32)>, Cause> {
    let Value::Object(vocab) = vocab else {
        return Err("its vocabulary is no object of tokens and ids".into());
    };
    let read = |(token, id): (String, Value)| match id.as_u64().map(u32::try_from) {
        Some(Ok(id)) => Ok((token, id)),
        _ => Err(Cause::from(limits::bad_id(&token, &id))),
    };
    vocab.into_iter().map(read).collect()
}

/// Merges, each as a string or as a list of two.
fn read_merges(merges: Value) -> Result<Merges, Cause> {
    let Value::Array(merges) = merges else { return Err("its merges are no list".into()) };
    let read = |merge: Value| match merge {
        Value::String(text) => {
            let (left, right) = text.split_once(' ')?;
            (!right.contains(' ')).then(|| (left.to_owned(), right.to_owned()))
        }
        Value::Array(_) => serde_json::from_value::<(String, String)>(merge).ok(),
        _ => None,
    };
    let read = |(idx, merge)| read(merge).ok_or_else(|| format!("merge {idx} is no two tokens"));
    Ok(merges.into_iter().enumerate().map(read).collect::<Result<_, _>>()?)
}
