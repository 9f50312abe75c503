//! Decoding one token after another.
//!
//! The text of a token depends on its neighbours: letters are split over tokens, and the first token
//! of a text loses its space. So the last tokens are decoded together again with each new one, and
//! what was not yet given out is the news. Kept back is whatever a later token may still change:
//!
//! - a replacement character at the end, which may be the first half of a letter;
//! - a run of byte tokens (`<0xE2>`), which becomes replacement characters as a whole if it does not
//!   end as valid UTF-8;
//! - with clean-up, what lies behind the last place that no replacement reaches over.

use serde_json::Value;

use super::{DecodeSpecial, Tokenizer, cleanup};

/// Tokens that are decoded together; beyond it, the first ones are let go.
const WINDOW: usize = 64;

/// Tokens that are kept before new ones.
const CONTEXT: usize = 16;

/// Turns tokens into pieces of text, each valid UTF-8. All pieces and that of
/// [`DecodeStream::finish`] together are what [`Tokenizer::decode`] makes of all tokens at once.
#[derive(Clone, Debug)]
pub struct DecodeStream {
    tokenizer: Tokenizer,
    special: DecodeSpecial,
    /// The last tokens.
    window: Vec<u32>,
    /// What was given out of the window's text.
    shown: String,
}

impl DecodeStream {
    pub(super) fn new(tokenizer: Tokenizer, special: DecodeSpecial) -> Self {
        Self { tokenizer, special, window: Vec::new(), shown: String::new() }
    }

    /// Takes a token and gives out the text that is certain by now, if there is any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        // Decoding leaves such tokens out, so they do not even end a run of byte tokens.
        let token = self.tokenizer.id_to_token(id)?;
        if self.special == DecodeSpecial::Skip && self.tokenizer.is_special_text(&token) {
            return None;
        }
        self.window.push(id);
        if self.tokenizer.0.byte_fallback && is_byte(&token) {
            return None;
        }
        let text = self.text(&self.window)?;
        let news = self.news(&text, self.stable_len(&text));
        if self.window.len() > WINDOW && self.shown.len() == text.len() {
            self.forget(&text);
        }
        news
    }

    /// The text of byte tokens that are held back: what [`Self::finish`] would give out now, if the
    /// last token is such a one and the bytes make whole letters.
    pub fn pending(&self) -> Option<String> {
        let last = self.window.last().filter(|_| self.tokenizer.0.byte_fallback)?;
        if !is_byte(&self.tokenizer.id_to_token(*last)?) {
            return None;
        }
        let text = self.text(&self.window)?;
        let rest = text.get(..self.stable_len(&text))?.strip_prefix(self.shown.as_str())?;
        Some(rest.to_owned()).filter(|rest| !rest.is_empty())
    }

    /// Gives out the rest, when no more tokens come.
    pub fn finish(&mut self) -> Option<String> {
        let text = self.text(&self.window)?;
        let news = self.news(&text, text.len());
        self.window.clear();
        self.shown.clear();
        news
    }

    /// The text between what was shown and `end`.
    fn news(&mut self, text: &str, end: usize) -> Option<String> {
        let news = text.get(..end)?.strip_prefix(self.shown.as_str())?;
        if news.is_empty() {
            return None;
        }
        let news = news.to_owned();
        self.shown.push_str(&news);
        Some(news)
    }

    /// Lets the first tokens go, if what is left decodes to the end of the same text.
    fn forget(&mut self, text: &str) {
        let rest = &self.window[self.window.len() - CONTEXT..];
        let Some(rest_text) = self.text(rest) else { return };
        if !rest_text.is_empty() && text.ends_with(&rest_text) {
            self.window.drain(..self.window.len() - CONTEXT);
            self.shown = rest_text;
        }
    }

    fn text(&self, ids: &[u32]) -> Option<String> {
        self.tokenizer.decode(ids, self.special).ok()
    }

    fn stable_len(&self, text: &str) -> usize {
        let whole = text.strip_suffix('\u{fffd}').unwrap_or(text);
        if self.tokenizer.0.clean_up { cleanup::stable_len(whole) } else { whole.len() }
    }
}

fn is_byte(token: &str) -> bool {
    token.len() == 6 && token.starts_with("<0x") && token.ends_with('>')
}

/// Whether a tokenizer's decoder turns tokens like `<0x0A>` into bytes.
pub(super) fn has_byte_fallback(backend: &tokenizers::Tokenizer) -> bool {
    let decoder = serde_json::to_value(backend.get_decoder()).unwrap_or_default();
    let is_fallback = |decoder: &Value| decoder["type"] == "ByteFallback";
    let nested = decoder["decoders"].as_array();
    is_fallback(&decoder) || nested.into_iter().flatten().any(is_fallback)
}
