//! The text side of a model: its tokenizer, and what its files say of generation.

use std::ops::Range;
use std::path::{Path, PathBuf};

use drivetrain_artifacts::{
    DecodeSpecial, DecodeStream, Encoding, GenerationConfig, ModelConfig, ModelDir, SpecialTokens,
    Tokenizer,
};

use super::facts::{self, Facts};
use crate::HostError;
use crate::constraint::Grammars;
use crate::generate::ChatRenderer;

/// Text to tokens and back.
pub(crate) trait Text: Send + Sync {
    /// The tokens of `text`.
    fn encode(&self, text: &str, special: SpecialTokens) -> Result<Encoded, HostError>;

    /// The tokens of two texts, with the special tokens around them.
    fn encode_pair(&self, first: &str, second: &str) -> Result<Encoded, HostError>;

    /// The tokens of a text that is cut into words already; offsets are those in each word.
    fn encode_words(&self, words: &[String], special: SpecialTokens) -> Result<Encoded, HostError>;

    /// The text of pieces as the vocabulary writes them.
    fn join(&self, pieces: &[&str]) -> Result<String, HostError>;

    /// The id of a piece as the vocabulary writes it.
    fn token_to_id(&self, token: &str) -> Option<u32>;

    /// A piece as the vocabulary writes it.
    fn id_to_token(&self, id: u32) -> Option<String>;

    /// Whether tokens' places leave out their first spaces, but for the first token of each window.
    fn keeps_first_space(&self) -> bool;

    /// The tokens of a text in a language, its token among them.
    fn encode_in(&self, text: &str, language: &str) -> Result<Encoded, HostError>;

    /// The token of a language.
    fn language_id(&self, language: &str) -> Option<u32>;

    /// The languages that the tokenizer knows; none for most.
    fn languages(&self) -> Vec<String>;

    /// The language that texts are translated to where nothing else is said.
    fn target_language(&self) -> Option<&str>;

    /// Whether the vocabulary marks pieces that go on with a word.
    fn continuing_prefix(&self) -> bool;

    /// The token that stands for what the vocabulary does not have.
    fn unknown(&self) -> Option<u32>;

    /// The token that stands for what is to be found.
    fn mask(&self) -> Option<u32>;

    /// The token whose state stands for the whole text.
    fn cls(&self) -> Option<u32>;

    /// The token that ends a text.
    fn eos(&self) -> Option<u32>;

    /// The token that fills a batch.
    fn pad(&self) -> Option<u32>;

    /// The text of `ids`.
    fn decode(&self, ids: &[u32], special: DecodeSpecial) -> Result<String, HostError>;

    /// Decodes one token after another.
    fn stream(&self, special: DecodeSpecial) -> DecodeStream;

    /// The bytes that a token alone stands for.
    fn token_bytes(&self, id: u32) -> Vec<u8>;

    /// Whether a token is a special one.
    fn is_special(&self, id: u32) -> bool;

    /// The length the tokenizer cuts to where it is told to cut, if it knows one.
    fn max_length(&self) -> Option<usize>;

    /// The token that starts a text.
    fn bos(&self) -> Option<u32>;

    /// The highest id plus 1.
    fn n_ids(&self) -> u32;
}

impl Text for Tokenizer {
    fn encode(&self, text: &str, special: SpecialTokens) -> Result<Encoded, HostError> {
        Ok(Self::encode(self, text, special)?.into())
    }

    fn encode_pair(&self, first: &str, second: &str) -> Result<Encoded, HostError> {
        Ok(Self::encode_pair(self, first, second, SpecialTokens::Add)?.into())
    }

    fn encode_words(&self, words: &[String], special: SpecialTokens) -> Result<Encoded, HostError> {
        Ok(Self::encode_words(self, words, special)?.into())
    }

    fn join(&self, pieces: &[&str]) -> Result<String, HostError> {
        Ok(Self::join(self, pieces)?)
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        Self::token_to_id(self, token)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        Self::id_to_token(self, id)
    }

    fn keeps_first_space(&self) -> bool {
        Self::keeps_first_space(self)
    }

    fn encode_in(&self, text: &str, language: &str) -> Result<Encoded, HostError> {
        Ok(Self::encode_in(self, text, language)?.into())
    }

    fn language_id(&self, language: &str) -> Option<u32> {
        self.language_token_id(language)
    }

    fn languages(&self) -> Vec<String> {
        Self::languages(self).map(str::to_owned).collect()
    }

    fn target_language(&self) -> Option<&str> {
        Self::target_language(self)
    }

    fn continuing_prefix(&self) -> bool {
        Self::has_continuing_prefix(self)
    }

    fn unknown(&self) -> Option<u32> {
        self.unk_token_id()
    }

    fn mask(&self) -> Option<u32> {
        self.mask_token_id()
    }

    fn cls(&self) -> Option<u32> {
        self.cls_token_id()
    }

    fn eos(&self) -> Option<u32> {
        self.eos_token_id()
    }

    fn pad(&self) -> Option<u32> {
        self.pad_token_id()
    }

    fn decode(&self, ids: &[u32], special: DecodeSpecial) -> Result<String, HostError> {
        Ok(Self::decode(self, ids, special)?)
    }

    fn stream(&self, special: DecodeSpecial) -> DecodeStream {
        self.stream_with(special)
    }

    fn token_bytes(&self, id: u32) -> Vec<u8> {
        Self::token_bytes(self, id)
    }

    fn is_special(&self, id: u32) -> bool {
        Self::is_special(self, id)
    }

    fn max_length(&self) -> Option<usize> {
        self.model_max_length().map(|n| n as usize)
    }

    fn bos(&self) -> Option<u32> {
        self.bos_token_id()
    }

    fn n_ids(&self) -> u32 {
        self.vocab_size()
    }
}

/// A text of so many bytes is always tokenised.
const FREE_BYTES: usize = 256 << 10;
/// Bytes for each token the model takes; ordinary text has about four.
const BYTES_PER_TOKEN: usize = 64;

/// `text`, if tokenising it is worth the memory, which is a hundred times its size: a text far
/// beyond what `n_tokens` could hold is cut where it would be anyway if the request `truncates`.
///
/// # Errors
/// The most bytes there may be, for a longer text that is not to be cut.
pub(super) fn bounded(text: &str, n_tokens: usize, truncates: bool) -> Result<&str, usize> {
    let n_bytes = n_tokens.saturating_mul(BYTES_PER_TOKEN).max(FREE_BYTES);
    if text.len() <= n_bytes {
        Ok(text)
    } else if truncates {
        Ok(text.get(..text.floor_char_boundary(n_bytes)).unwrap_or_default())
    } else {
        Err(n_bytes)
    }
}

/// A text as tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Encoded {
    pub(crate) ids: Vec<u32>,
    /// The token types; empty or one for each id.
    pub(crate) type_ids: Vec<u32>,
    /// Whether each id was put around the text.
    pub(crate) special: Vec<bool>,
    /// First byte and end of each token in its text; empty or one for each id.
    pub(crate) offsets: Vec<(usize, usize)>,
    /// The word that each token belongs to; empty or one for each id.
    pub(crate) words: Vec<Option<u32>>,
}

impl From<Encoding> for Encoded {
    fn from(encoding: Encoding) -> Self {
        let Encoding { ids, type_ids, offsets, special, words } = encoding;
        Self { ids, type_ids, special, offsets, words }
    }
}

impl Encoded {
    /// Cuts the text's own tokens on the right until `limit` are left in all, special ones kept.
    /// `false` if the special ones alone are too many.
    pub(crate) fn cut(&mut self, limit: usize) -> bool {
        let n = self.ids.len();
        if n <= limit {
            return true;
        }
        let n_head = self.special.iter().take_while(|special| **special).count();
        let n_tail = self.special.iter().rev().take_while(|special| **special).count();
        let Some(n_kept) = limit.checked_sub(n_head + n_tail).filter(|_| n_head + n_tail <= n)
        else {
            return false;
        };
        self.remove(n_head + n_kept..n - n_tail);
        true
    }

    /// As [`Self::cut`], but cuts on the left.
    pub(crate) fn cut_head(&mut self, limit: usize) -> bool {
        let n = self.ids.len();
        if n <= limit {
            return true;
        }
        let n_head = self.special.iter().take_while(|special| **special).count();
        let n_tail = self.special.iter().rev().take_while(|special| **special).count();
        if n_head + n_tail > limit {
            return false;
        }
        self.remove(n_head..n_head + n - limit);
        true
    }

    fn remove(&mut self, gone: Range<usize>) {
        let n = self.ids.len();
        if self.offsets.len() == n {
            self.offsets.drain(gone.clone());
        }
        if self.words.len() == n {
            self.words.drain(gone.clone());
        }
        self.ids.drain(gone.clone());
        if self.type_ids.len() == n {
            self.type_ids.drain(gone.clone());
        }
        if self.special.len() == n {
            self.special.drain(gone);
        }
    }
}

/// What a scheduled model's directory says about text.
pub(crate) struct ModelText {
    pub(crate) dir: PathBuf,
    /// `config.json`; a model that needs none may have none.
    pub(crate) config: Option<ModelConfig>,
    pub(crate) generation: GenerationConfig,
    pub(crate) text: Box<dyn Text>,
    pub(crate) chat: ChatRenderer,
    pub(crate) grammars: Grammars,
    /// What the files say of the task.
    pub(super) facts: Facts,
}

impl ModelText {
    /// Reads `config.json`, `generation_config.json`, the tokenizer's files, or the GGUF file that
    /// stands for them, and what belongs to the task, which is `wanted` if that is said.
    ///
    /// # Errors
    /// One of them is missing or wrong; without `config.json` the other two must do.
    pub(crate) fn read(files: &ModelDir, wanted: Option<&str>) -> Result<Self, HostError> {
        let config = ModelConfig::find(files)?;
        let generation = match &config {
            Some(config) => {
                let own = facts::task_params(&config.json, wanted)?;
                GenerationConfig::read_with(files, config, own)?
            }
            None => GenerationConfig::default(),
        };
        let text = Box::new(Tokenizer::read(files)?);
        let chat = ChatRenderer::new(text.chat_templates(), text.special_tokens());
        let eos = generation.eos_token_id.clone().into();
        let grammars = Grammars::new(Tokenizer::clone(&text), eos);
        let facts = Facts::read(files, config.as_ref().map(|config| &config.json), wanted)?;
        let dir = files.path().to_owned();
        Ok(Self { dir, config, generation, text, chat, grammars, facts })
    }

    /// The file that names the architectures.
    pub(crate) fn config_path(&self) -> PathBuf {
        match &self.config {
            Some(config) => config.json.path().to_owned(),
            None => Path::new(&self.dir).join("config.json"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_keeps_what_stands_around_the_text() {
        let check = |special: &[u8], limit: usize, expect: Option<&[u32]>| {
            let mut encoded = Encoded {
                ids: (0..special.len() as u32).collect(),
                type_ids: vec![0; special.len()],
                special: special.iter().map(|s| *s == 1).collect(),
                ..Encoded::default()
            };
            let found = encoded.cut(limit).then_some(encoded.ids.as_slice());
            assert_eq!(found, expect, "{special:?} {limit}");
        };
        check(&[1, 0, 0, 0, 1], 5, Some(&[0, 1, 2, 3, 4]));
        check(&[1, 0, 0, 0, 1], 3, Some(&[0, 1, 4]));
        check(&[1, 0, 0, 0, 1], 2, Some(&[0, 4]));
        check(&[1, 0, 0, 0, 1], 1, None);
        check(&[0, 0, 0], 1, Some(&[0]));
        check(&[1, 0, 0], 2, Some(&[0, 1]));
        check(&[1, 1, 1], 2, None);
    }

    #[test]
    fn a_cut_on_the_left_keeps_the_end() {
        let check = |special: &[u8], limit: usize, expect: Option<&[u32]>| {
            let mut encoded = Encoded {
                ids: (0..special.len() as u32).collect(),
                type_ids: Vec::new(),
                special: special.iter().map(|s| *s == 1).collect(),
                ..Encoded::default()
            };
            let found = encoded.cut_head(limit).then_some(encoded.ids.as_slice());
            assert_eq!(found, expect, "{special:?} {limit}");
        };
        check(&[1, 0, 0, 0, 1], 5, Some(&[0, 1, 2, 3, 4]));
        check(&[1, 0, 0, 0, 1], 3, Some(&[0, 3, 4]));
        check(&[1, 0, 0, 0, 1], 2, Some(&[0, 4]));
        check(&[1, 0, 0, 0, 1], 1, None);
        check(&[0, 0, 0], 1, Some(&[2]));
        check(&[1, 1, 1], 2, None);
    }
}
