//! Tokenizers whose pieces are cut by a sentencepiece model, but numbered by a `vocab.json`: Marian's,
//! which has a model for each side of a translation, and M2M100's.
//!
//! Source: transformers 5.24.0, `models/{marian,m2m_100}/tokenization_*.py`, and sentencepiece's
//! `sentencepiece_processor.cc` for how pieces become text again.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use serde_json::{Value, json};
use tokenizers::NormalizerWrapper;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::normalizers::Sequence;

use super::build::{self, PieceKind, Prefix};
use super::class::Class;
use super::guard::Cause;
use super::languages;
use super::sentencepiece::{self, SentencePieceModel};
use super::settings::Settings;
use super::special::SpecialSettings;
use super::vocabulary::read_ids;
use super::{DecodeSpecial, Encoding, MAX_TOKENIZER_BYTES, SpecialTokens};
use crate::error::ArtifactError;
use crate::file::read_bounded;
use crate::json::JsonFile;
use crate::model_dir::ModelDir;

/// The files of such a tokenizer.
pub(super) struct PairedFiles {
    class: Class,
    source: SentencePieceModel,
    /// Marian: the model of the other side.
    target: Option<SentencePieceModel>,
    ids: Vec<(String, u32)>,
    /// Marian with vocabularies apart: that of the target.
    target_ids: Option<Vec<(String, u32)>>,
}

/// Cuts texts into pieces and puts pieces together.
pub(super) struct Paired {
    is_marian: bool,
    pieces: tokenizers::Tokenizer,
    ids: HashMap<String, u32>,
    highest: Option<u32>,
    unk: u32,
    /// What stands before and behind a text.
    before: Option<u32>,
    behind: Option<u32>,
    /// The kinds of the pieces that the model which puts them together knows.
    known: HashMap<String, PieceKind>,
    /// Whether that model takes a text's first space away.
    strips: bool,
}

impl PairedFiles {
    /// Reads the files, with the path of the vocabulary, if the class is of this kind and its
    /// sentencepiece models are there.
    pub(super) fn find(
        dir: &ModelDir,
        class: Option<Class>,
        config: &JsonFile,
    ) -> Result<Option<(Self, PathBuf)>, ArtifactError> {
        let (class, source_name) = match class {
            Some(Class::Marian) => (Class::Marian, "source.spm"),
            Some(Class::M2m100) => (Class::M2m100, "sentencepiece.bpe.model"),
            _ => return Ok(None),
        };
        let Some(source) = dir.file(source_name)? else { return Ok(None) };
        let needed = |name: &str| {
            dir.file(name)?.ok_or_else(|| ArtifactError::MissingFile {
                dir: dir.path().to_owned(),
                wanted: format!("{name}, which belongs to its {source_name}"),
            })
        };
        let vocab = needed("vocab.json")?;
        let target = match class {
            Class::Marian => Some(sentencepiece::read(&needed("target.spm")?)?),
            _ => None,
        };
        let is_apart =
            class == Class::Marian && config.opt_bool("separate_vocabs")?.unwrap_or(false);
        let target_ids = match is_apart {
            true => Some(read_vocab(needed("target_vocab.json")?)?),
            false => None,
        };
        let source = sentencepiece::read(&source)?;
        let ids = read_vocab(vocab.clone())?;
        Ok(Some((Self { class, source, target, ids, target_ids }, vocab)))
    }

    /// Makes the tokenizer that knows ids and tokens, and what cuts and joins pieces.
    pub(super) fn build(
        self,
        special: &SpecialSettings,
        settings: &Settings,
    ) -> Result<(tokenizers::Tokenizer, Paired), Cause> {
        let is_marian = self.class == Class::Marian;
        let mut ids = self.ids;
        if !is_marian {
            let first = u32::try_from(ids.len())?;
            let codes = languages::of_m2m100(settings)?;
            ids.extend(codes.iter().map(|code| format!("__{code}__")).zip(first..));
        }
        let unk_text = special.text("unk_token").unwrap_or("<unk>").to_owned();
        let (known_by, spoken) = match (self.target, self.target_ids) {
            (Some(target), Some(target_ids)) => (target, target_ids),
            _ => (self.source.clone(), ids.clone()),
        };
        let highest = ids.iter().chain(&spoken).map(|(_, id)| *id).max();
        // Special tokens have the ids of the source's side, where the two sides differ.
        let of_source: HashMap<&str, u32> =
            ids.iter().map(|(text, id)| (text.as_str(), *id)).collect();
        let own: HashMap<&str, u32> =
            special.texts().filter_map(|text| Some((text, *of_source.get(text)?))).collect();
        let taken: HashSet<u32> = own.values().copied().collect();
        let spoken = spoken
            .into_iter()
            .filter(|(text, id)| !taken.contains(id) && !own.contains_key(text.as_str()));
        let spoken = spoken.chain(own.iter().map(|(text, id)| ((*text).to_owned(), *id)));
        let word_level =
            WordLevel::builder().vocab(spoken.collect()).unk_token(unk_text.clone()).build()?;
        let mut backend = tokenizers::Tokenizer::new(word_level);
        let decoder: tokenizers::DecoderWrapper = build::part(build::piece_decoder(false, true))?;
        backend.with_decoder(Some(decoder));
        special.add_to(&mut backend)?;
        let mut pieces = sentencepiece_itself(&self.source)?;
        special.add_to(&mut pieces)?;
        pieces.set_encode_special_tokens(settings.split_special_tokens);
        let mut ids: HashMap<String, u32> = ids.into_iter().collect();
        for (id, token) in backend.get_added_tokens_decoder() {
            ids.entry(token.content).or_insert(id);
        }
        let Some(&unk) = ids.get(&unk_text) else {
            return Err(format!("its vocabulary lacks {unk_text:?}").into());
        };
        let behind = special.text("eos_token").and_then(|eos| ids.get(eos).copied());
        let normalizer = &known_by.pieces.normalizer;
        let paired = Paired {
            is_marian,
            pieces,
            highest,
            unk,
            before: None,
            behind,
            ids,
            strips: normalizer.add_dummy_prefix || normalizer.remove_extra_whitespaces,
            known: known_by.pieces.pieces.into_iter().map(|p| (p.text, p.kind)).collect(),
        };
        Ok((backend, paired))
    }
}

/// `vocab.json`: tokens with ids.
fn read_vocab(path: PathBuf) -> Result<Vec<(String, u32)>, ArtifactError> {
    let content = read_bounded(&path, MAX_TOKENIZER_BYTES)?;
    let vocab: Value = serde_json::from_slice(&content)
        .map_err(|source| ArtifactError::Json { path: path.clone(), source })?;
    read_ids(vocab).map_err(|source| ArtifactError::Tokenizer { path, source })
}

impl Paired {
    /// Sets the token of the language that texts are in.
    pub(super) fn set_language(&mut self, id: u32) {
        self.before = Some(id);
    }

    /// The highest id of either side.
    pub(super) fn highest_id(&self) -> Option<u32> {
        self.highest
    }

    /// The tokens of one text, or of two without anything between them.
    pub(super) fn encode(
        &self,
        first: &str,
        second: Option<&str>,
        special: SpecialTokens,
    ) -> Result<Encoding, Cause> {
        let mut encoding = self.cut(first)?;
        let mut n_first = encoding.ids.len();
        if let Some(second) = second {
            let more = self.cut(second)?;
            encoding.ids.extend(more.ids);
            encoding.offsets.extend(more.offsets);
            encoding.words.extend(more.words);
        }
        encoding.special = vec![false; encoding.ids.len()];
        encoding.type_ids = vec![0; encoding.ids.len()];
        if special == SpecialTokens::Add {
            encoding.surround(self.before.into_iter(), self.behind.into_iter());
            // The first text counts as long as it would be alone.
            n_first += usize::from(self.before.is_some()) + usize::from(self.behind.is_some());
        }
        if second.is_some() {
            encoding.type_ids.iter_mut().skip(n_first).for_each(|type_id| *type_id = 1);
        }
        Ok(encoding)
    }

    /// The tokens of a text.
    fn cut(&self, text: &str) -> Result<Encoding, Cause> {
        let mut encoding = Encoding::default();
        let code = self.is_marian.then(|| language_code(text)).flatten().unwrap_or("");
        if !code.is_empty() {
            encoding.ids.push(self.id(code));
            encoding.offsets.push((0, code.len()));
            encoding.words.push(None);
        }
        let cut = self.pieces.encode(&text[code.len()..], false)?;
        encoding.ids.extend(cut.get_tokens().iter().map(|piece| self.id(piece)));
        let shift = |&(from, to): &(usize, usize)| (from + code.len(), to + code.len());
        encoding.offsets.extend(cut.get_offsets().iter().map(shift));
        encoding.words.extend(cut.get_word_ids());
        Ok(encoding)
    }

    fn id(&self, piece: &str) -> u32 {
        self.ids.get(piece).copied().unwrap_or(self.unk)
    }

    /// The text of tokens. Special ones stand beside what is between them.
    pub(super) fn decode(
        &self,
        backend: &tokenizers::Tokenizer,
        ids: &[u32],
        special: DecodeSpecial,
    ) -> String {
        let mut text = String::new();
        let mut run: Vec<String> = Vec::new();
        for token in ids.iter().filter_map(|id| backend.id_to_token(*id)) {
            if !backend.get_added_vocabulary().is_special_token(&token) {
                run.push(token);
                continue;
            }
            if special == DecodeSpecial::Skip {
                continue;
            }
            self.join(&run, &mut text);
            run.clear();
            text.push_str(&token);
            if self.is_marian {
                text.push(' ');
            }
        }
        self.join(&run, &mut text);
        if self.is_marian {
            text = text.replace('▁', " ");
        }
        let is_space =
            |letter: char| letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter);
        text.trim_matches(is_space).to_owned()
    }

    /// Puts pieces together as sentencepiece does. What its model does not know stays as it is.
    fn join(&self, run: &[String], text: &mut String) {
        let start = text.len();
        for piece in run {
            match self.known.get(piece.as_str()) {
                None | Some(PieceKind::Unknown) => text.push_str(piece),
                Some(PieceKind::Control) => {}
                Some(_) => {
                    let is_first = text.len() == start && self.strips;
                    let rest = if is_first { piece.strip_prefix('▁') } else { None };
                    text.push_str(&rest.unwrap_or(piece).replace('▁', " "));
                }
            }
        }
    }
}

/// A tokenizer that cuts texts as sentencepiece itself does. It takes marks for spaces from a text's
/// end, too, which transformers' own tokenizers leave there.
fn sentencepiece_itself(model: &SentencePieceModel) -> Result<tokenizers::Tokenizer, Cause> {
    let mut tokenizer = build::sentencepiece(&model.pieces, Prefix::Always)?;
    let settings = &model.pieces.normalizer;
    if settings.remove_extra_whitespaces && settings.escape_whitespaces {
        let marks: NormalizerWrapper =
            build::part(json!({"type": "Replace", "pattern": {"Regex": r"▁+\z"}, "content": ""}))?;
        let all = tokenizer.get_normalizer().cloned().into_iter().chain([marks]).collect();
        tokenizer.with_normalizer(Some(Sequence::new(all)))?;
    }
    Ok(tokenizer)
}

/// A code like `>>fr<<` that a text starts with, which says what language it is to become.
fn language_code(text: &str) -> Option<&str> {
    let end = text.strip_prefix(">>")?.find("<<")?;
    text.get(..end + 4)
}
