//! Tokens alone: the bytes that each one stands for.

use serde_json::Value;

use super::Tokenizer;

/// How the vocabulary writes bytes: what the decoder undoes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Spelling {
    /// Each byte is written as a printable letter.
    is_byte_level: bool,
    /// `<0x0A>` is a byte.
    has_byte_tokens: bool,
    /// What stands for what, such as `▁` for a space.
    replaced: Vec<(String, String)>,
    /// What a token starts with that goes on with a word, `##`.
    inner_prefix: Option<String>,
    /// What a token ends with that ends a word, `</w>`.
    end_suffix: Option<String>,
}

impl Spelling {
    pub(super) fn of(backend: &tokenizers::Tokenizer) -> Self {
        let decoder = serde_json::to_value(backend.get_decoder()).unwrap_or_default();
        let mut spelling = Self::default();
        let nested = decoder["decoders"].as_array().map_or(&[][..], Vec::as_slice);
        for decoder in std::iter::once(&decoder).chain(nested) {
            spelling.add(decoder);
        }
        spelling
    }

    fn add(&mut self, decoder: &Value) {
        let text = |key: &str| decoder[key].as_str().filter(|text| !text.is_empty());
        match decoder["type"].as_str() {
            Some("ByteLevel") => self.is_byte_level = true,
            Some("ByteFallback") => self.has_byte_tokens = true,
            Some("Metaspace") => {
                let mark = text("replacement").unwrap_or("▁");
                self.replaced.push((mark.to_owned(), " ".to_owned()));
            }
            Some("Replace") => {
                let from = decoder["pattern"]["String"].as_str().filter(|from| !from.is_empty());
                if let (Some(from), Some(to)) = (from, decoder["content"].as_str()) {
                    self.replaced.push((from.to_owned(), to.to_owned()));
                }
            }
            Some("WordPiece") => self.inner_prefix = text("prefix").map(str::to_owned),
            Some("BPEDecoder") => self.end_suffix = text("suffix").map(str::to_owned),
            _ => {}
        }
    }

    /// The bytes of a token of the vocabulary, which is not an added one.
    fn bytes(&self, token: &str) -> Vec<u8> {
        if self.has_byte_tokens
            && let Some(byte) = byte_token(token)
        {
            return vec![byte];
        }
        if self.is_byte_level
            && let Some(bytes) = token.chars().map(byte_of_letter).collect::<Option<Vec<u8>>>()
        {
            return bytes;
        }
        let inner = self.inner_prefix.as_deref().and_then(|prefix| token.strip_prefix(prefix));
        let mut text = inner.unwrap_or(token).to_owned();
        for (from, to) in &self.replaced {
            if text.contains(from.as_str()) {
                text = text.replace(from.as_str(), to);
            }
        }
        if let Some(word) = self.end_suffix.as_deref().and_then(|suffix| text.strip_suffix(suffix))
        {
            text = format!("{word} ");
        }
        text.into_bytes()
    }
}

impl Tokenizer {
    /// The bytes that a token alone stands for, its leading space included: for byte-level and
    /// byte tokens the bytes themselves, which need not be whole letters, and for added tokens
    /// their text. Empty for ids that the vocabulary does not have.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let added = self.0.backend.get_added_vocabulary().get_added_tokens_decoder();
        if let Some(token) = added.get(&id) {
            let is_text = token.special || self.0.spelling.is_byte_level;
            let text = token.content.as_str();
            return if is_text { text.into() } else { self.0.spelling.bytes(text) };
        }
        let model = tokenizers::Model::id_to_token(self.0.backend.get_model(), id);
        model.map_or_else(Vec::new, |token| self.0.spelling.bytes(&token))
    }

    /// [`Self::token_bytes`] as text; what is no whole letter is shown as U+FFFD.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8(self.token_bytes(id))
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }
}

/// The byte of a token like `<0x0A>`.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// The byte that byte-level vocabularies write as this letter: printable Latin-1 letters stand for
/// themselves, and the 68 other bytes, in order, for the letters from U+0100 on.
///
/// Source: Radford et al. 2019, `encoder.py` of GPT-2, `bytes_to_unicode`.
fn byte_of_letter(letter: char) -> Option<u8> {
    let code = u32::from(letter);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u8::try_from(code).ok(),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_stand_for_every_byte_once() {
        let mut found: Vec<u8> =
            (0..0x200).filter_map(char::from_u32).filter_map(byte_of_letter).collect();
        found.sort_unstable();
        assert_eq!(found, (0..=255).collect::<Vec<u8>>());
        let check = |letter, byte| assert_eq!(byte_of_letter(letter), Some(byte), "{letter}");
        check('Ġ', b' ');
        check('Ċ', b'\n');
        check('ġ', 0x7f);
        check('Ģ', 0x80);
        check('ł', 0xa0);
        check('Ń', 0xad);
    }

    #[test]
    fn tokens_are_spelled_back() {
        let byte_level = Spelling { is_byte_level: true, ..Spelling::default() };
        let metaspace = Spelling {
            has_byte_tokens: true,
            replaced: vec![("▁".to_owned(), " ".to_owned())],
            ..Spelling::default()
        };
        let word_piece = Spelling { inner_prefix: Some("##".to_owned()), ..Spelling::default() };
        let ends = Spelling { end_suffix: Some("</w>".to_owned()), ..Spelling::default() };
        let check = |spelling: &Spelling, token: &str, expect: &[u8]| {
            assert_eq!(spelling.bytes(token), expect, "{token}");
        };
        check(&byte_level, "Ġthe", b" the");
        check(&byte_level, "âĤ", &[0xe2, 0x82]);
        check(&metaspace, "▁the", b" the");
        check(&metaspace, "<0xE2>", &[0xe2]);
        check(&metaspace, "<0xE2", b"<0xE2");
        check(&word_piece, "##ing", b"ing");
        check(&word_piece, "go", b"go");
        check(&ends, "go</w>", b"go ");
    }
}
