//! What a tokenizer is made from: the files that hold its vocabulary, and what becomes of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::models::bpe::Merges;
use tokenizers::{AddedToken, ModelWrapper, PostProcessorWrapper};

use super::build::{self, PieceAlgorithm, Prefix};
use super::class::{self, Class};
use super::guard::Cause;
use super::languages::Languages;
use super::limits;
use super::paired::{Paired, PairedFiles};
use super::sentencepiece::{self, SentencePieceModel};
use super::settings::Settings;
use super::special::{self, SpecialNames, SpecialSettings};
use super::template::Around;
use super::vocabulary::{Vocabulary, Words, read_ids};
use super::{MAX_TOKENIZER_BYTES, pipeline};
use crate::error::ArtifactError;
use crate::file::read_bounded;
use crate::gguf;
use crate::json::JsonFile;
use crate::model_dir::ModelDir;

/// The names of sentencepiece models.
const PIECES: [&str; 5] = [
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "sentencepiece.model",
    "spm.model",
];

/// Files that only other programs can read, as far as a vocabulary is concerned.
const FOREIGN: [&str; 4] = ["tekken.json", "tiktoken.model", "bpe.codes", "vocab.bpe"];

/// What a tokenizer is made from.
pub(super) struct Definition {
    /// The file that holds the vocabulary.
    pub(super) path: PathBuf,
    pub(super) class: Class,
    source: Source,
}

enum Source {
    /// `tokenizer.json`, parsed.
    Stored(Value),
    Pieces(Box<SentencePieceModel>),
    Vocabulary(Vocabulary),
    Paired(Box<PairedFiles>),
}

/// A tokenizer with what belongs to it.
pub(super) struct Built {
    pub(super) backend: tokenizers::Tokenizer,
    pub(super) names: SpecialNames,
    pub(super) languages: Option<Languages>,
    pub(super) paired: Option<Paired>,
    /// One more than the highest id.
    pub(super) vocab_size: u32,
}

impl Definition {
    /// Finds and reads the files.
    pub(super) fn find(
        dir: &ModelDir,
        config: &JsonFile,
        model_config: Option<&JsonFile>,
    ) -> Result<Self, ArtifactError> {
        let class = class::of_model(config, model_config, || false)?;
        if let Some((files, path)) = PairedFiles::find(dir, class, config)? {
            let class = class.unwrap_or(Class::Other);
            return Ok(Self { path, class, source: Source::Paired(Box::new(files)) });
        }
        if let Some(path) = dir.file("tokenizer.json")? {
            let content = read_bounded(&path, MAX_TOKENIZER_BYTES)?;
            let stored: Value = serde_json::from_slice(&content)
                .map_err(|source| ArtifactError::Json { path: path.clone(), source })?;
            let class = class::of_model(config, model_config, || is_byte_level(&stored))?;
            let class = class.unwrap_or(Class::AsStored);
            return Ok(Self {
                path,
                class: class.of_stored(&stored),
                source: Source::Stored(stored),
            });
        }
        if let Some((path, stored)) = gguf::definition(dir)? {
            return Ok(Self { path, class: Class::AsStored, source: Source::Stored(stored) });
        }
        match Self::of_vocabulary(dir, class)? {
            Some(found) => Ok(found),
            None => Err(missing(dir, class)),
        }
    }

    /// The vocabulary that the class takes, of whatever kind there is where none is known.
    fn of_vocabulary(dir: &ModelDir, class: Option<Class>) -> Result<Option<Self>, ArtifactError> {
        let takes = |kind: fn(Class) -> bool| match class {
            None | Some(Class::AsStored) => true,
            Some(class) => kind(class),
        };
        let find = |is_taken: bool, name| if is_taken { dir.file(name) } else { Ok(None) };
        if let Some(path) = find(takes(Class::is_byte_level), "vocab.json")? {
            let class = class.filter(|class| class.is_byte_level()).unwrap_or(Class::Gpt2);
            let merges = dir.file("merges.txt")?.ok_or_else(|| ArtifactError::MissingFile {
                dir: dir.path().to_owned(),
                wanted: "merges.txt, which belongs to its vocab.json".to_owned(),
            })?;
            let vocabulary = Vocabulary::Ranked(read_vocab(&path)?, read_merges(&merges)?);
            return Ok(Some(Self { path, class, source: Source::Vocabulary(vocabulary) }));
        }
        if let Some(path) = find(takes(Class::is_word_piece), "vocab.txt")? {
            let class = class.filter(|class| class.is_word_piece()).unwrap_or(Class::Bert);
            let vocabulary = Vocabulary::Tokens(read_lines(&path)?);
            return Ok(Some(Self { path, class, source: Source::Vocabulary(vocabulary) }));
        }
        let usual = match class {
            Some(Class::T5 | Class::Pegasus) => "spiece.model",
            Some(class) if class.is_scored() || class == Class::Nllb => "sentencepiece.bpe.model",
            _ => "tokenizer.model",
        };
        for name in std::iter::once(usual).chain(PIECES) {
            if let Some(path) = find(takes(Class::is_of_pieces), name)? {
                let model = Box::new(sentencepiece::read(&path)?);
                let class = class.unwrap_or(Class::AsStored);
                return Ok(Some(Self { path, class, source: Source::Pieces(model) }));
            }
        }
        Ok(None)
    }

    /// The added tokens that `tokenizer.json` holds.
    pub(super) fn stored_added_tokens(&self) -> BTreeMap<u32, AddedToken> {
        match &self.source {
            Source::Stored(stored) => special::stored(stored),
            _ => BTreeMap::new(),
        }
    }

    /// The token that the padding of `tokenizer.json` uses.
    pub(super) fn stored_pad_token(&self) -> Option<&str> {
        match &self.source {
            Source::Stored(stored) => stored.get("padding")?.get("pad_token")?.as_str(),
            _ => None,
        }
    }

    /// The sentencepiece model that the vocabulary comes from.
    pub(super) fn pieces(&self) -> Option<&SentencePieceModel> {
        match &self.source {
            Source::Pieces(model) => Some(model),
            _ => None,
        }
    }

    /// Whether a sentencepiece model puts a space before every text.
    pub(super) fn prefixes_text(&self) -> bool {
        self.pieces().is_some_and(|model| model.pieces.normalizer.add_dummy_prefix)
    }

    /// The named tokens that there are where the files say nothing.
    pub(super) fn usual_names(&self) -> Vec<(&str, &str)> {
        let mut names = special::class_defaults(self.class).to_vec();
        if let (Class::AsStored, Some(model)) = (self.class, self.pieces()) {
            let own =
                [("bos_token", &model.bos), ("eos_token", &model.eos), ("unk_token", &model.unk)];
            names.extend(own.into_iter().filter_map(|(name, text)| Some((name, text.as_deref()?))));
        }
        names
    }

    /// Makes the tokenizer.
    pub(super) fn build(
        self,
        special: &SpecialSettings,
        settings: &Settings,
    ) -> Result<Built, Cause> {
        let class = self.class;
        let is_stored = matches!(self.source, Source::Stored(_));
        let mut paired = None;
        let mut backend = match self.source {
            Source::Stored(stored) => of_stored(class, stored, special, settings)?,
            Source::Vocabulary(vocabulary) => {
                let words = Words { vocabulary, charsmap: None };
                pipeline::make(class, words, special, settings)?
            }
            Source::Pieces(model) if class == Class::AsStored => {
                let prefix = match settings.legacy.unwrap_or(true) {
                    true => Prefix::Always,
                    false => Prefix::First,
                };
                build::sentencepiece(&renamed(*model, special).pieces, prefix)?
            }
            Source::Pieces(model) => {
                let words = Words::of_pieces(class, &model, special, settings)?;
                pipeline::make(class, words, special, settings)?
            }
            Source::Paired(files) => {
                let (backend, pieces) = files.build(special, settings)?;
                paired = Some(pieces);
                backend
            }
        };
        backend.with_truncation(None)?;
        backend.with_padding(None);
        if paired.is_none() {
            special.add_to(&mut backend)?;
        }
        backend.set_encode_special_tokens(settings.split_special_tokens);
        let languages = Languages::of_class(class, settings, &backend)?;
        if let (Some(paired), Some(languages)) = (&mut paired, &languages) {
            paired.set_language(languages.source_token().1);
        }
        let around = Around { class, is_stored, special, settings, languages: languages.as_ref() };
        if let Some(template) = around.post_processor(&backend) {
            let wrapper: PostProcessorWrapper = build::part(template)?;
            backend.with_post_processor(Some(wrapper));
        }
        let highest = backend.get_vocab(true).into_values().max();
        let highest = highest.max(paired.as_ref().and_then(Paired::highest_id));
        let vocab_size = highest.map_or(0, |id| id.saturating_add(1));
        Ok(Built { backend, names: special.names(), languages, paired, vocab_size })
    }
}

impl Class {
    /// The class that takes a `tokenizer.json`: itself, if that is of its kind.
    fn of_stored(self, stored: &Value) -> Self {
        match self {
            // The languages of these are known whatever the file holds.
            Self::M2m100 => self,
            _ if self.suits(stored) => self,
            _ => Self::AsStored,
        }
    }
}

/// The tokenizer of a `tokenizer.json`: as it is, or the class's own around its vocabulary.
fn of_stored(
    class: Class,
    mut stored: Value,
    special: &SpecialSettings,
    settings: &Settings,
) -> Result<tokenizers::Tokenizer, Cause> {
    limits::check_stored(&stored)?;
    if !class.suits(&stored) {
        remove(&mut stored, &["truncation", "padding"]);
        return build::part(stored);
    }
    let post_processor = stored["post_processor"].take();
    let words = Words::of_stored(class, &mut stored)?;
    let mut backend = pipeline::make(class, words, special, settings)?;
    let post_processor: Option<PostProcessorWrapper> = build::part(post_processor)?;
    backend.with_post_processor(post_processor);
    Ok(backend)
}

/// A model of which `added_tokens_decoder` gives some pieces other names, as where a name was kept
/// free for it. Only those of a BPE are renamed.
fn renamed(mut model: SentencePieceModel, special: &SpecialSettings) -> SentencePieceModel {
    if model.pieces.algorithm != PieceAlgorithm::Bpe {
        return model;
    }
    let names: BTreeMap<usize, &str> =
        special.saved().map(|(id, text)| (id as usize, text)).collect();
    let taken: std::collections::HashSet<String> = model
        .pieces
        .texts()
        .enumerate()
        .filter(|(id, _)| !names.contains_key(id))
        .map(|(_, text)| text.to_owned())
        .collect();
    for (id, name) in names {
        if let Some(piece) = model.pieces.pieces.get_mut(id)
            && !taken.contains(name)
        {
            name.clone_into(&mut piece.text);
        }
    }
    model
}

/// Whether a tokenizer's model is a BPE.
pub(super) fn is_bpe(backend: &tokenizers::Tokenizer) -> bool {
    matches!(backend.get_model(), ModelWrapper::BPE(_))
}

fn remove(definition: &mut Value, keys: &[&str]) {
    if let Some(definition) = definition.as_object_mut() {
        for key in keys {
            definition.remove(*key);
        }
    }
}

fn is_byte_level(stored: &Value) -> bool {
    let parts = [&stored["pre_tokenizer"], &stored["decoder"]];
    parts.into_iter().any(|part| {
        let nested =
            ["pretokenizers", "decoders"].iter().filter_map(|key| part.get(key)?.as_array());
        part["type"] == "ByteLevel" || nested.flatten().any(|inner| inner["type"] == "ByteLevel")
    })
}

/// `vocab.json`: tokens with ids.
fn read_vocab(path: &Path) -> Result<Vec<(String, u32)>, ArtifactError> {
    let content = read_bounded(path, MAX_TOKENIZER_BYTES)?;
    let vocab: Value = serde_json::from_slice(&content)
        .map_err(|source| ArtifactError::Json { path: path.to_owned(), source })?;
    read_ids(vocab).map_err(|source| ArtifactError::Tokenizer { path: path.to_owned(), source })
}

/// `merges.txt`: two tokens a line.
fn read_merges(path: &Path) -> Result<Merges, ArtifactError> {
    let text = read_text(path)?;
    let mut merges = Vec::new();
    for (idx, line) in text.lines().enumerate() {
        if line.starts_with("#version") || line.is_empty() {
            continue;
        }
        let Some((left, right)) = line.split_once(' ').filter(|(_, right)| !right.contains(' '))
        else {
            let reason = format!("line {} is not two tokens with a space between", idx + 1);
            return Err(ArtifactError::Tokenizer { path: path.to_owned(), source: reason.into() });
        };
        merges.push((left.to_owned(), right.to_owned()));
    }
    Ok(merges)
}

/// `vocab.txt`: a token a line, whose number is its id.
fn read_lines(path: &Path) -> Result<Vec<(String, u32)>, ArtifactError> {
    let text = read_text(path)?;
    Ok(build::ids(text.lines().map(str::trim_end)).collect())
}

fn read_text(path: &Path) -> Result<String, ArtifactError> {
    let content = read_bounded(path, MAX_TOKENIZER_BYTES)?;
    String::from_utf8(content).map_err(|error| ArtifactError::Tokenizer {
        path: path.to_owned(),
        source: Box::new(error.utf8_error()),
    })
}

/// The error where there is no vocabulary that the class can be made from.
fn missing(dir: &ModelDir, class: Option<Class>) -> ArtifactError {
    let pieces = PIECES.join(", ");
    let looked_for = match class {
        None | Some(Class::AsStored) => format!(
            "tokenizer.json, vocab.json with merges.txt, vocab.txt, or a sentencepiece model \
             ({pieces})"
        ),
        Some(Class::Other) => "tokenizer.json".to_owned(),
        Some(Class::Marian) => {
            "source.spm with target.spm and vocab.json, or tokenizer.json".to_owned()
        }
        Some(Class::M2m100) => {
            "sentencepiece.bpe.model with vocab.json, or tokenizer.json".to_owned()
        }
        Some(class) if class.is_byte_level() => {
            "tokenizer.json, or vocab.json with merges.txt".to_owned()
        }
        Some(class) if class.is_word_piece() => "tokenizer.json or vocab.txt".to_owned(),
        Some(_) => format!("tokenizer.json or a sentencepiece model ({pieces})"),
    };
    let mut wanted = format!("tokenizer: expected {looked_for}");
    let others = PIECES.iter().chain(&FOREIGN).chain(&["vocab.json", "vocab.txt", "source.spm"]);
    let mut others = others.filter(|name| matches!(dir.file(name), Ok(Some(_))));
    if let Some(other) = others.next() {
        wanted += &format!(
            "; its {other} alone does not make the tokenizer that its tokenizer_config.json or \
             config.json names: save it once with transformers' AutoTokenizer.save_pretrained"
        );
    }
    ArtifactError::MissingFile { dir: dir.path().to_owned(), wanted }
}
