//! Languages of a text, for models that translate between many.

use std::collections::HashSet;

use super::class::Class;
use super::guard::Cause;
use super::language_codes;
use super::settings::Settings;
use super::{Encoding, SpecialTokens, Tokenizer};
use crate::error::{ArtifactError, shorten};

/// The languages that a tokenizer has tokens for, and where a text's stands.
#[derive(Clone, Debug)]
pub(super) struct Languages {
    /// Codes with their tokens and ids.
    known: Vec<(String, (String, u32))>,
    /// Which of them a text is in where nothing else is said.
    source: usize,
    target: Option<String>,
    /// Whether the token stands behind the text and its end, or before the text.
    behind: bool,
}

impl Languages {
    /// The languages of a class, if it has any: those that it is known for and those that its added
    /// tokens look like.
    pub(super) fn of_class(
        class: Class,
        settings: &Settings,
        backend: &tokenizers::Tokenizer,
    ) -> Result<Option<Self>, Cause> {
        let (usual, codes): (&str, Vec<&str>) = match class {
            Class::Mbart => ("en_XX", language_codes::MBART.split(' ').collect()),
            Class::Mbart50 => (
                "en_XX",
                language_codes::MBART
                    .split(' ')
                    .chain(language_codes::MBART50.split(' '))
                    .collect(),
            ),
            Class::Nllb => ("eng_Latn", language_codes::NLLB.split(' ').collect()),
            Class::M2m100 => ("en", of_m2m100(settings)?),
            _ => return Ok(None),
        };
        let token = |code: &str| match class {
            Class::M2m100 => format!("__{code}__"),
            _ => code.to_owned(),
        };
        let mut known = Vec::new();
        let mut seen = HashSet::new();
        for code in codes {
            let token = token(code);
            if let Some(id) = backend.token_to_id(&token) {
                seen.insert(code.to_owned());
                known.push((code.to_owned(), (token, id)));
            }
        }
        let mut added: Vec<_> = backend.get_added_tokens_decoder().into_iter().collect();
        added.sort_by_key(|(id, _)| *id);
        for (id, token) in added {
            let text = token.content.as_str();
            if let Some(code) = code_of(class, text)
                && seen.insert(code.to_owned())
            {
                known.push((code.to_owned(), (text.to_owned(), id)));
            }
        }
        let source = settings.src_lang.as_deref().unwrap_or(usual);
        let source = match known.iter().position(|(code, _)| code == source) {
            Some(source) => source,
            // Only a language that a file asks for has to be there.
            None if settings.src_lang.is_none() && known.is_empty() => return Ok(None),
            None if settings.src_lang.is_none() => 0,
            None => {
                return Err(format!(
                    "tokenizer_config.json: src_lang = {:?}: the vocabulary has no token for it",
                    shorten(source)
                )
                .into());
            }
        };
        let behind = class == Class::Mbart || (class == Class::Nllb && settings.legacy_behaviour);
        Ok(Some(Self { known, source, target: settings.tgt_lang.clone(), behind }))
    }

    /// Whether a text's token stands behind it.
    pub(super) fn stands_behind(&self) -> bool {
        self.behind
    }

    /// The token of the language that a text is in where nothing else is said.
    pub(super) fn source_token(&self) -> (String, u32) {
        self.known[self.source].1.clone()
    }

    fn id(&self, code: &str) -> Option<u32> {
        self.known.iter().find(|(known, _)| known == code).map(|(_, (_, id))| *id)
    }
}

/// M2M100's languages by the name of their list.
pub(super) fn of_m2m100(settings: &Settings) -> Result<Vec<&'static str>, Cause> {
    match settings.language_codes.as_deref().unwrap_or("m2m100") {
        "m2m100" => Ok(language_codes::M2M100.split(' ').collect()),
        "wmt21" => Ok(language_codes::WMT21.split(' ').collect()),
        other => Err(format!(
            "tokenizer_config.json: language_codes = {:?}: expected m2m100 or wmt21",
            shorten(other)
        )
        .into()),
    }
}

/// The code of a token that looks like a language's: `en_XX`, `eng_Latn`, `__en__`.
fn code_of(class: Class, token: &str) -> Option<&str> {
    let lower = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase());
    match class {
        Class::M2m100 => {
            let code = token.strip_prefix("__")?.strip_suffix("__")?;
            ((2..=3).contains(&code.len()) && lower(code)).then_some(code)
        }
        _ => {
            let (language, region) = token.split_once('_')?;
            let is_region = match class {
                Class::Nllb => {
                    region.len() == 4
                        && region.starts_with(|letter: char| letter.is_ascii_uppercase())
                        && lower(&region[1..])
                }
                _ => region.len() == 2 && region.bytes().all(|byte| byte.is_ascii_uppercase()),
            };
            ((2..=3).contains(&language.len()) && lower(language) && is_region).then_some(token)
        }
    }
}

impl Tokenizer {
    /// The codes of the languages that this tokenizer has tokens for (`en_XX`, `eng_Latn`, `en`),
    /// in the order of the ids. None for tokenizers that know nothing of languages.
    pub fn languages(&self) -> impl Iterator<Item = &str> {
        let known = self.0.languages.iter().flat_map(|languages| &languages.known);
        known.map(|(code, _)| code.as_str())
    }

    /// The id of a language's token: what a translation into it starts with.
    pub fn language_token_id(&self, code: &str) -> Option<u32> {
        self.0.languages.as_ref()?.id(code)
    }

    /// The language that texts are in where nothing else is said: `src_lang` of
    /// `tokenizer_config.json`, else the class's own default.
    pub fn source_language(&self) -> Option<&str> {
        let languages = self.0.languages.as_ref()?;
        languages.known.get(languages.source).map(|(code, _)| code.as_str())
    }

    /// The language that texts are translated to where nothing else is said: `tgt_lang` of
    /// `tokenizer_config.json`.
    pub fn target_language(&self) -> Option<&str> {
        self.0.languages.as_ref()?.target.as_deref()
    }

    /// The tokens of a text in a language, with the language's token and the text's end, as
    /// transformers' tokenizer gives them once its `src_lang` is set.
    ///
    /// # Errors
    /// The tokenizer has no token for the language, or can't encode the text.
    pub fn encode_in(&self, text: &str, language: &str) -> Result<Encoding, ArtifactError> {
        let unknown = || ArtifactError::UnknownLanguage {
            path: self.0.path.clone(),
            language: shorten(language),
            known: known_codes(self.languages()),
        };
        let languages = self.0.languages.as_ref().ok_or_else(unknown)?;
        let code = languages.id(language).ok_or_else(unknown)?;
        let mut encoding = self.encode(text, SpecialTokens::None)?;
        let end = self.eos_token_id();
        let (before, behind) = match languages.behind {
            true => (None, [end, Some(code)]),
            false => (Some(code), [end, None]),
        };
        encoding.surround(before.into_iter(), behind.into_iter().flatten());
        Ok(encoding)
    }
}

/// Some codes, for a message.
fn known_codes<'a>(mut codes: impl Iterator<Item = &'a str>) -> String {
    const MOST: usize = 60;
    let shown: Vec<&str> = codes.by_ref().take(MOST).collect();
    let more = codes.count();
    match (shown.is_empty(), more) {
        (true, _) => "none".to_owned(),
        (false, 0) => shown.join(", "),
        (false, more) => format!("{} and {more} more", shown.join(", ")),
    }
}

impl Encoding {
    /// Puts tokens that are no part of the text around it.
    pub(super) fn surround(
        &mut self,
        before: impl Iterator<Item = u32>,
        behind: impl Iterator<Item = u32>,
    ) {
        let before: Vec<u32> = before.collect();
        let (n_before, n_text) = (before.len(), self.ids.len());
        self.ids.splice(0..0, before);
        self.ids.extend(behind);
        let n_behind = self.ids.len() - n_before - n_text;
        fn pad<T: Clone>(list: &mut Vec<T>, value: T, n_before: usize, n_behind: usize) {
            list.splice(0..0, std::iter::repeat_n(value.clone(), n_before));
            list.extend(std::iter::repeat_n(value, n_behind));
        }
        pad(&mut self.type_ids, 0, n_before, n_behind);
        pad(&mut self.offsets, (0, 0), n_before, n_behind);
        pad(&mut self.special, true, n_before, n_behind);
        pad(&mut self.words, None, n_before, n_behind);
    }
}
