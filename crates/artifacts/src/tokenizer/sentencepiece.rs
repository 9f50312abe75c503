//! Reading of sentencepiece's `.model` and `.spm` files: a protocol buffer, of which the vocabulary,
//! the kind of the model and the settings of the normaliser are taken.
//!
//! Source: sentencepiece's `sentencepiece_model.proto` (numbers and defaults of the fields), and the
//! encoding of protocol buffers, <https://protobuf.dev/programming-guides/encoding/>.

use std::path::Path;

use super::build::{Piece, PieceAlgorithm, PieceKind, PieceModel, PieceNormalizer};
use crate::error::{ArtifactError, shorten};
use crate::file::read_bounded;

/// Largest file, in bytes. The largest that is known, of XLM-V with 901,000 pieces, has 18 MB.
const MAX_MODEL_BYTES: u64 = 64 << 20;

/// Most pieces.
const MAX_PIECES: usize = 1 << 22;

/// A sentencepiece model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SentencePieceModel {
    pub(super) pieces: PieceModel,
    /// The text of the token for unknown text, for a text's start and for its end, where the model
    /// has them.
    pub(super) unk: Option<String>,
    pub(super) bos: Option<String>,
    pub(super) eos: Option<String>,
}

/// Reads a model.
///
/// # Errors
/// The file can't be read, is too large, is no such model, or is of a kind (words, characters) that
/// no tokenizer here is made from.
pub(super) fn read(path: &Path) -> Result<SentencePieceModel, ArtifactError> {
    let content = read_bounded(path, MAX_MODEL_BYTES)?;
    parse(&content).map_err(|reason| ArtifactError::Tokenizer {
        path: path.to_owned(),
        source: format!("is no sentencepiece model: {reason}").into(),
    })
}

/// Reads a model from the bytes of its file; the error says what is wrong.
pub(super) fn parse(content: &[u8]) -> Result<SentencePieceModel, String> {
    let mut pieces = Vec::new();
    let mut trainer = Trainer::default();
    let mut normalizer = PieceNormalizer {
        charsmap: Vec::new(),
        add_dummy_prefix: true,
        remove_extra_whitespaces: true,
        escape_whitespaces: true,
    };
    for field in Fields::new(content) {
        match field? {
            (1, Content::Bytes(piece)) => {
                if pieces.len() == MAX_PIECES {
                    return Err(format!("it has more than {MAX_PIECES} pieces"));
                }
                let idx = pieces.len();
                pieces.push(read_piece(piece).map_err(|why| format!("piece {idx}: {why}"))?);
            }
            (2, Content::Bytes(spec)) => trainer.read(spec)?,
            (3, Content::Bytes(spec)) => read_normalizer(spec, &mut normalizer)?,
            _ => {}
        }
    }
    if pieces.is_empty() {
        return Err("it has no pieces".to_owned());
    }
    let algorithm = match trainer.model_type {
        1 => PieceAlgorithm::Unigram,
        2 => PieceAlgorithm::Bpe,
        3 => return Err("it is of words, expected a unigram or BPE model".to_owned()),
        4 => return Err("it is of characters, expected a unigram or BPE model".to_owned()),
        other => return Err(format!("model_type = {other}, expected 1 (unigram) or 2 (BPE)")),
    };
    let named = |id: i64, text: String| (id >= 0).then_some(text);
    let unk = usize::try_from(trainer.unk_id).ok().filter(|id| *id < pieces.len());
    Ok(SentencePieceModel {
        unk: named(trainer.unk_id, trainer.unk_piece),
        bos: named(trainer.bos_id, trainer.bos_piece),
        eos: named(trainer.eos_id, trainer.eos_piece),
        pieces: PieceModel {
            algorithm,
            unk: unk.and_then(|id| u32::try_from(id).ok()),
            byte_fallback: trainer.byte_fallback,
            normalizer,
            pieces,
        },
    })
}

/// What is used of the `TrainerSpec`.
struct Trainer {
    model_type: i64,
    byte_fallback: bool,
    unk_id: i64,
    bos_id: i64,
    eos_id: i64,
    unk_piece: String,
    bos_piece: String,
    eos_piece: String,
}

impl Default for Trainer {
    fn default() -> Self {
        Self {
            model_type: 1,
            byte_fallback: false,
            unk_id: 0,
            bos_id: 1,
            eos_id: 2,
            unk_piece: "<unk>".to_owned(),
            bos_piece: "<s>".to_owned(),
            eos_piece: "</s>".to_owned(),
        }
    }
}

impl Trainer {
    fn read(&mut self, spec: &[u8]) -> Result<(), String> {
        for field in Fields::new(spec) {
            match field? {
                (3, Content::Number(number)) => self.model_type = number,
                (35, Content::Number(number)) => self.byte_fallback = number != 0,
                (40, Content::Number(number)) => self.unk_id = number,
                (41, Content::Number(number)) => self.bos_id = number,
                (42, Content::Number(number)) => self.eos_id = number,
                (45, Content::Bytes(text)) => self.unk_piece = utf8(text)?,
                (46, Content::Bytes(text)) => self.bos_piece = utf8(text)?,
                (47, Content::Bytes(text)) => self.eos_piece = utf8(text)?,
                _ => {}
            }
        }
        // An empty name stands for the usual one.
        for (name, usual) in [
            (&mut self.unk_piece, "<unk>"),
            (&mut self.bos_piece, "<s>"),
            (&mut self.eos_piece, "</s>"),
        ] {
            if name.is_empty() {
                usual.clone_into(name);
            }
        }
        Ok(())
    }
}

fn read_normalizer(spec: &[u8], normalizer: &mut PieceNormalizer) -> Result<(), String> {
    for field in Fields::new(spec) {
        match field? {
            (2, Content::Bytes(charsmap)) => normalizer.charsmap = charsmap.to_vec(),
            (3, Content::Number(number)) => normalizer.add_dummy_prefix = number != 0,
            (4, Content::Number(number)) => normalizer.remove_extra_whitespaces = number != 0,
            (5, Content::Number(number)) => normalizer.escape_whitespaces = number != 0,
            _ => {}
        }
    }
    Ok(())
}

fn read_piece(piece: &[u8]) -> Result<Piece, String> {
    let mut read = Piece { text: String::new(), score: 0.0, kind: PieceKind::Normal };
    for field in Fields::new(piece) {
        match field? {
            (1, Content::Bytes(text)) => read.text = utf8(text)?,
            (2, Content::Fixed32(bits)) => {
                let score = f32::from_bits(bits);
                if !score.is_finite() {
                    return Err(format!("score = {score}, expected a finite number"));
                }
                read.score = f64::from(score);
            }
            (3, Content::Number(kind)) => {
                read.kind = match kind {
                    1 => PieceKind::Normal,
                    2 => PieceKind::Unknown,
                    3 => PieceKind::Control,
                    4 => PieceKind::UserDefined,
                    5 => PieceKind::Unused,
                    6 => PieceKind::Byte,
                    other => return Err(format!("type = {other}, expected 1 to 6")),
                };
            }
            _ => {}
        }
    }
    Ok(read)
}

fn utf8(text: &[u8]) -> Result<String, String> {
    match std::str::from_utf8(text) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(format!("{:?} is not UTF-8", shorten(&String::from_utf8_lossy(text)))),
    }
}

/// What a field holds.
enum Content<'a> {
    Number(i64),
    Fixed32(u32),
    Bytes(&'a [u8]),
    /// Eight bytes, which nothing here has.
    Fixed64,
}

/// The fields of a message with their numbers, in their order.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let (&byte, rest) = self.rest.split_first().ok_or("it is cut off")?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a number in it has more than ten bytes".to_owned())
    }

    fn take(&mut self, n_bytes: u64) -> Result<&'a [u8], String> {
        let n_bytes = usize::try_from(n_bytes).unwrap_or(usize::MAX);
        let (taken, rest) = self.rest.split_at_checked(n_bytes).ok_or("it is cut off")?;
        self.rest = rest;
        Ok(taken)
    }

    fn read(&mut self) -> Result<(u64, Content<'a>), String> {
        let key = self.varint()?;
        let content = match key & 7 {
            // Negative numbers are written as the same bits of an unsigned one.
            0 => Content::Number(self.varint()?.cast_signed()),
            1 => {
                self.take(8)?;
                Content::Fixed64
            }
            2 => {
                let length = self.varint()?;
                Content::Bytes(self.take(length)?)
            }
            5 => match self.take(4)?.first_chunk::<4>() {
                Some(bits) => Content::Fixed32(u32::from_le_bytes(*bits)),
                None => return Err("it is cut off".to_owned()),
            },
            other => return Err(format!("a field of it is of the unknown kind {other}")),
        };
        Ok((key >> 3, content))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Content<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field with bytes as protocol buffers write it.
    fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, content.len() as u8], content].concat()
    }

    #[test]
    fn broken_models_say_what_is_wrong() {
        let check = |content: &[u8], expect: &str| assert_eq!(parse(content).unwrap_err(), expect);
        check(b"", "it has no pieces");
        check(&[0x0a], "it is cut off");
        check(&[0x0a, 0x7f, 0], "it is cut off");
        check(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], "it is cut off");
        check(&[0xff; 12], "a number in it has more than ten bytes");
        check(&[0x0b], "a field of it is of the unknown kind 3");
        check(&bytes(1, &bytes(1, &[0xff])), "piece 0: \"\u{fffd}\" is not UTF-8");
        check(&bytes(1, &[0x18, 7]), "piece 0: type = 7, expected 1 to 6");
        check(
            &bytes(1, &[0x15, 0, 0, 0xc0, 0x7f]),
            "piece 0: score = NaN, expected a finite number",
        );
        let piece = bytes(1, &bytes(1, b"a"));
        let of_type = |kind| [&piece[..], &bytes(2, &[0x18, kind])].concat();
        check(&of_type(3), "it is of words, expected a unigram or BPE model");
        check(&of_type(9), "model_type = 9, expected 1 (unigram) or 2 (BPE)");
        assert_eq!(parse(&of_type(2)).unwrap().pieces.algorithm, PieceAlgorithm::Bpe);
    }
}
