//! Text to tokens and back, as transformers' `AutoTokenizer` does it.

mod build;
mod charsmap;
mod class;
mod cleanup;
mod definition;
mod guard;
mod language_codes;
mod languages;
mod limits;
mod paired;
mod pieces;
mod pipeline;
mod sentencepiece;
mod settings;
mod special;
mod stream;
mod template;
mod vocabulary;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use build::merges_by_rank;
pub use stream::DecodeStream;

use crate::chat_template::ChatTemplates;
use crate::error::ArtifactError;
use crate::gguf;
use crate::json::JsonFile;
use crate::model_config::{MAX_CONFIG_BYTES, config_json};
use crate::model_dir::ModelDir;
use languages::Languages;
use paired::Paired;
use settings::Settings;
use special::SpecialNames;

/// Largest `tokenizer.json` or vocabulary, in bytes.
const MAX_TOKENIZER_BYTES: u64 = 512 << 20;

/// Whether encoding adds the tokens that the model expects around a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialTokens {
    /// As the post-processor says: `<s> ... </s>`, for example.
    Add,
    /// The text's own tokens only.
    None,
}

/// Whether decoding shows special tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeSpecial {
    /// Leaves them out.
    Skip,
    /// Writes them as their text.
    Keep,
}

/// A text's tokens; all lists have one item a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids.
    pub ids: Vec<u32>,
    /// 0 for the first text, 1 for the second where the model tells them apart.
    pub type_ids: Vec<u32>,
    /// First byte and end of the token in its text; (0, 0) for tokens that were added.
    pub offsets: Vec<(usize, usize)>,
    /// Whether the token was added by the post-processor.
    pub special: Vec<bool>,
    /// The number of the word that a token belongs to, where the tokenizer splits words.
    pub words: Vec<Option<u32>>,
}

/// A model's tokenizer. Cloning is cheap: clones share the vocabulary.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    path: PathBuf,
    backend: tokenizers::Tokenizer,
    names: SpecialNames,
    languages: Option<Languages>,
    /// What cuts and joins pieces where `backend` only knows their ids.
    paired: Option<Paired>,
    vocab_size: u32,
    model_max_length: Option<u32>,
    chat_templates: ChatTemplates,
    spelling: pieces::Spelling,
    clean_up: bool,
    /// Whether bytes that no token has are tokens of their own, `<0x0A>`.
    byte_fallback: bool,
}

impl Tokenizer {
    /// Makes the tokenizer of a model from `tokenizer.json`, else from its GGUF file, else from the
    /// files that its class knows: `vocab.json` and `merges.txt` (byte-level BPE), `vocab.txt`
    /// (WordPiece), a sentencepiece model, or for Marian and M2M100 sentencepiece models and
    /// `vocab.json`; with what `tokenizer_config.json`, `special_tokens_map.json` and
    /// `added_tokens.json` say. Truncation and padding that `tokenizer.json` carries are switched off.
    ///
    /// # Errors
    /// There are no such files, or one is too large or broken; the error names it.
    pub fn read(dir: &ModelDir) -> Result<Self, ArtifactError> {
        Self::read_for(dir, config_json(dir)?.as_ref())
    }

    /// As [`Self::read`], for a model whose `config.json` was read already.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_for(
        dir: &ModelDir,
        model_config: Option<&JsonFile>,
    ) -> Result<Self, ArtifactError> {
        let config = match optional_json(dir, "tokenizer_config.json")? {
            Some(config) => Some(config),
            None => gguf::tokenizer_config(dir)?,
        };
        let config =
            config.unwrap_or_else(|| JsonFile::from_value(dir.path(), serde_json::json!({})));
        let definition = definition::Definition::find(dir, &config, model_config)?;
        let path = definition.path.clone();
        let settings = Settings::read(&config, definition.class)?;
        let named = special::SpecialSettings::read(dir, &config, &definition, &settings)?;
        let chat_templates = ChatTemplates::read(dir, &config)?;
        let built = guard::call(|| definition.build(&named, &settings))
            .map_err(|source| ArtifactError::Tokenizer { path: path.clone(), source })?;
        let backend = built.backend;
        let cleans = settings.clean_up && (!definition::is_bpe(&backend) || settings.clean_up_bpe);
        Ok(Self(Arc::new(Inner {
            path,
            names: built.names,
            languages: built.languages,
            paired: built.paired,
            vocab_size: built.vocab_size,
            model_max_length: settings.model_max_length,
            chat_templates,
            spelling: pieces::Spelling::of(&backend),
            clean_up: cleans,
            byte_fallback: stream::has_byte_fallback(&backend),
            backend,
        })))
    }

    /// The tokens of a text.
    ///
    /// # Errors
    /// The tokenizer can't encode the text.
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Encoding, ArtifactError> {
        if let Some(paired) = &self.0.paired {
            return guard::call(|| paired.encode(text, None, special))
                .map_err(|source| self.error("encode the text", source));
        }
        self.encode_input(text.into(), special)
    }

    /// The tokens of two texts that the model is to compare.
    ///
    /// # Errors
    /// The tokenizer can't encode the texts.
    pub fn encode_pair(
        &self,
        first: &str,
        second: &str,
        special: SpecialTokens,
    ) -> Result<Encoding, ArtifactError> {
        if let Some(paired) = &self.0.paired {
            return guard::call(|| paired.encode(first, Some(second), special))
                .map_err(|source| self.error("encode the text", source));
        }
        self.encode_input((first, second).into(), special)
    }

    /// The tokens of a text that is cut into words already: offsets are those in each word, and
    /// the words that tokens belong to are those given.
    ///
    /// # Errors
    /// The tokenizer can't encode the words.
    pub fn encode_words(
        &self,
        words: &[String],
        special: SpecialTokens,
    ) -> Result<Encoding, ArtifactError> {
        self.encode_input(words.to_vec().into(), special)
    }

    /// The text that pieces make, each written as in the vocabulary.
    ///
    /// # Errors
    /// The tokenizer can't join the pieces.
    pub fn join(&self, pieces: &[&str]) -> Result<String, ArtifactError> {
        let pieces: Vec<String> = pieces.iter().map(|piece| (*piece).to_owned()).collect();
        match self.0.backend.get_decoder() {
            None => Ok(pieces.join(" ")),
            Some(decoder) => guard::call(|| tokenizers::Decoder::decode(decoder, pieces))
                .map_err(|source| self.error("join the pieces", source)),
        }
    }

    /// Whether the places of tokens leave out the spaces that tokens begin with, but for the first
    /// token of each piece of a text that is cut into pieces.
    pub fn keeps_first_space(&self) -> bool {
        let processor =
            serde_json::to_value(self.0.backend.get_post_processor()).unwrap_or_default();
        let nested = processor["processors"].as_array().map_or(&[][..], Vec::as_slice);
        std::iter::once(&processor).chain(nested).any(|one| {
            matches!(one["type"].as_str(), Some("ByteLevel" | "RobertaProcessing"))
                && one["trim_offsets"] == true
                && one["add_prefix_space"] == true
        })
    }

    /// Whether the vocabulary marks pieces that go on with a word, `##ing`.
    pub fn has_continuing_prefix(&self) -> bool {
        match self.0.backend.get_model() {
            tokenizers::ModelWrapper::WordPiece(model) => {
                !model.continuing_subword_prefix.is_empty()
            }
            tokenizers::ModelWrapper::BPE(model) => {
                model.continuing_subword_prefix.as_deref().is_some_and(|prefix| !prefix.is_empty())
            }
            _ => false,
        }
    }

    /// The text of tokens. Ids that the vocabulary does not have are left out. Where
    /// `tokenizer_config.json` asks for it, and the tokenizer is no BPE, spaces before punctuation
    /// are cleaned up, as in transformers 5.23.0.
    ///
    /// # Errors
    /// The tokenizer can't decode the ids.
    pub fn decode(&self, ids: &[u32], special: DecodeSpecial) -> Result<String, ArtifactError> {
        let backend = &self.0.backend;
        let text = guard::call(|| match &self.0.paired {
            Some(paired) => Ok(paired.decode(backend, ids, special)),
            None => backend.decode(ids, special == DecodeSpecial::Skip),
        })
        .map_err(|source| self.error("decode the tokens", source))?;
        Ok(if self.0.clean_up { cleanup::clean_up(&text) } else { text })
    }

    /// Decodes one token after another; special tokens are left out.
    pub fn stream(&self) -> DecodeStream {
        self.stream_with(DecodeSpecial::Skip)
    }

    /// Decodes one token after another.
    pub fn stream_with(&self, special: DecodeSpecial) -> DecodeStream {
        DecodeStream::new(self.clone(), special)
    }

    /// The id of a token, which is written as in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.backend.token_to_id(token)
    }

    /// The token of an id, written as in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.backend.id_to_token(id)
    }

    /// Whether decoding leaves this token out when special tokens are skipped.
    pub fn is_special(&self, id: u32) -> bool {
        self.id_to_token(id).is_some_and(|token| self.is_special_text(&token))
    }

    fn is_special_text(&self, token: &str) -> bool {
        self.0.backend.get_added_vocabulary().is_special_token(token)
    }

    /// One more than the highest token id, added tokens included: the least number of rows an
    /// embedding needs.
    pub fn vocab_size(&self) -> u32 {
        self.0.vocab_size
    }

    /// The token that starts a text.
    pub fn bos_token_id(&self) -> Option<u32> {
        self.named("bos_token")
    }

    /// The token that ends a text.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.named("eos_token")
    }

    /// The token that fills a batch.
    pub fn pad_token_id(&self) -> Option<u32> {
        self.named("pad_token")
    }

    /// The token that stands for what the vocabulary does not have.
    pub fn unk_token_id(&self) -> Option<u32> {
        self.named("unk_token")
    }

    /// The token that separates texts.
    pub fn sep_token_id(&self) -> Option<u32> {
        self.named("sep_token")
    }

    /// The token whose state stands for the whole text.
    pub fn cls_token_id(&self) -> Option<u32> {
        self.named("cls_token")
    }

    /// The token that stands for what is to be guessed.
    pub fn mask_token_id(&self) -> Option<u32> {
        self.named("mask_token")
    }

    /// The text of a named special token, such as `bos_token`: what chat templates refer to.
    pub fn special_token(&self, name: &str) -> Option<&str> {
        self.0.names.get(name).map(String::as_str)
    }

    /// Most tokens that the model takes, as `tokenizer_config.json` says; `None` where it does not,
    /// or says a number that stands for none.
    pub fn model_max_length(&self) -> Option<u32> {
        self.0.model_max_length
    }

    /// The template that makes one text of a conversation, where nothing asks for another one.
    pub fn chat_template(&self) -> Option<&str> {
        self.0.chat_templates.get("default")
    }

    /// All templates that make one text of a conversation.
    pub fn chat_templates(&self) -> &ChatTemplates {
        &self.0.chat_templates
    }

    /// All named special tokens, such as `bos_token`, with their texts.
    pub fn special_tokens(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.names.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// The whole tokenizer in the form of `tokenizer.json`.
    ///
    /// # Errors
    /// The tokenizer can't be written in that form.
    pub fn to_json(&self) -> Result<serde_json::Value, ArtifactError> {
        guard::call(|| Ok(serde_json::to_value(&self.0.backend)?))
            .map_err(|source| self.error("write the tokenizer as JSON", source))
    }

    /// The file the vocabulary comes from.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    fn named(&self, name: &str) -> Option<u32> {
        self.token_to_id(self.special_token(name)?)
    }

    fn encode_input(
        &self,
        input: tokenizers::EncodeInput<'_>,
        special: SpecialTokens,
    ) -> Result<Encoding, ArtifactError> {
        let encoding = guard::call(|| self.0.backend.encode(input, special == SpecialTokens::Add))
            .map_err(|source| self.error("encode the text", source))?;
        Ok(Encoding {
            ids: encoding.get_ids().to_vec(),
            type_ids: encoding.get_type_ids().to_vec(),
            offsets: encoding.get_offsets().to_vec(),
            special: encoding.get_special_tokens_mask().iter().map(|&mask| mask != 0).collect(),
            words: encoding.get_word_ids().to_vec(),
        })
    }

    fn error(&self, action: &'static str, source: guard::Cause) -> ArtifactError {
        ArtifactError::Tokenize { path: self.0.path.clone(), action, source }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("path", &self.0.path)
            .field("vocab_size", &self.0.vocab_size)
            .finish_non_exhaustive()
    }
}

fn optional_json(dir: &ModelDir, name: &str) -> Result<Option<JsonFile>, ArtifactError> {
    dir.file(name)?.map(|path| JsonFile::read(&path, MAX_CONFIG_BYTES)).transpose()
}
