//! The `.properties` syntax, as `java.util.Properties` reads it, with the line of every key.
//!
//! Two steps, as the Java documentation describes them. *Logical lines*: leading blanks, blank
//! lines and comments go, and a line that ends in an odd number of backslashes continues on the
//! next one, whose leading blanks go too. *Pairs*: the key ends at the first unescaped `=`, `:` or
//! blank; blanks and at most one `=` or `:` follow; the rest of the logical line, trailing blanks
//! included, is the value. Escapes are undone last, on each half alone.
//!
//! A file is UTF-8 where that is what it holds, else Latin-1; a byte order mark is skipped.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::error::ConfigError;
use crate::source::Source;

/// The most bytes of a properties file that are read; real ones are a few hundred bytes.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// The most keys of a properties file.
const MAX_ENTRIES: usize = 10_000;

/// One key of a properties file, with escapes undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value, trailing blanks included.
    pub value: String,
    /// The line the key starts on, from 1.
    pub line: u32,
}

/// A properties file: its entries in file order, duplicates included (the last one counts).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// The file, for messages.
    pub path: PathBuf,
    /// Every pair in the file.
    pub entries: Vec<Entry>,
}

impl Properties {
    /// Reads a file; `None` if it does not exist.
    ///
    /// # Errors
    /// The inner result says that the file is there and can't be read, which the caller turns into
    /// a warning. The outer one is a file that is too large, or that breaks the syntax.
    pub fn read(path: &Path) -> Result<io::Result<Option<Self>>, ConfigError> {
        match read_bounded(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Ok(None)),
            Err(e) => Ok(Err(e)),
            Ok((bytes, size)) if size > MAX_FILE_BYTES => {
                drop(bytes);
                Err(ConfigError::TooLarge {
                    path: path.to_owned(),
                    bytes: size,
                    limit: MAX_FILE_BYTES,
                })
            }
            Ok((bytes, _)) => Self::parse(path, &bytes).map(|properties| Ok(Some(properties))),
        }
    }

    /// Reads the content of a properties file; `path` is for messages.
    ///
    /// # Errors
    /// A `\u` without four hexadecimal digits, half of a surrogate pair, or more than 10,000 keys.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ConfigError> {
        let text = decode(bytes);
        let mut entries = Vec::new();
        let mut lines = LogicalLines::new(&text);
        while let Some((line, number)) = lines.next_line() {
            if entries.len() == MAX_ENTRIES {
                return Err(ConfigError::Syntax {
                    path: path.to_owned(),
                    line: number,
                    found: format!("key number {}", MAX_ENTRIES + 1),
                    wanted: "at most 10000 keys in a properties file",
                });
            }
            let (key, value) = split_pair(&line);
            let unescape = |half: &[char]| {
                unescape(half).map_err(|found| ConfigError::Syntax {
                    path: path.to_owned(),
                    line: number,
                    found,
                    wanted: "\\u and four hexadecimal digits that make a character, or \\\\ for a \
                             backslash",
                })
            };
            entries.push(Entry { key: unescape(key)?, value: unescape(value)?, line: number });
        }
        Ok(Self { path: path.to_owned(), entries })
    }

    /// Where an entry stands.
    pub(crate) fn source(&self, entry: &Entry) -> Source {
        Source::File { path: self.path.clone(), line: entry.line }
    }
}

/// The first bytes of a regular file, at most one more than the limit, and the file's size.
fn read_bounded(path: &Path) -> io::Result<(Vec<u8>, u64)> {
    // Opening a pipe would wait for a writer, so the kind of file is asked for first.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let file = File::open(path)?;
    let announced = file.metadata()?.len();
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    let size = announced.max(bytes.len() as u64);
    Ok((bytes, size))
}

fn decode(bytes: &[u8]) -> Cow<'_, str> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => Cow::Owned(bytes.iter().map(|&byte| char::from(byte)).collect()),
    }
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\x0C')
}

/// Cuts a text into logical lines.
struct LogicalLines<'a> {
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    /// The number of the natural line that the next character stands on, from 1.
    line: u32,
    /// Whether the last line end was two characters.
    two_char_end: bool,
}

impl<'a> LogicalLines<'a> {
    fn new(text: &'a str) -> Self {
        Self { chars: text.chars().peekable(), line: 1, two_char_end: false }
    }

    /// The next character, with `\r\n` and `\r` made `\n`, and the line it stands on.
    fn next_char(&mut self) -> Option<(char, u32)> {
        let line = self.line;
        let mut c = self.chars.next()?;
        if c == '\r' {
            self.two_char_end = self.chars.next_if_eq(&'\n').is_some();
            c = '\n';
        } else if c == '\n' {
            self.two_char_end = false;
        }
        if c == '\n' {
            self.line = self.line.saturating_add(1);
        }
        Some((c, line))
    }

    /// The next logical line, escapes intact, and the number of the natural line it starts on.
    fn next_line(&mut self) -> Option<(Vec<char>, u32)> {
        let mut logical = Vec::new();
        let mut start = self.line;
        let mut skip_blanks = true;
        // True while the characters just read belong to a line begun before a continuation: an
        // empty natural line then ends the logical one.
        let mut continued = false;
        let mut after_backslash = false;
        while let Some((c, line)) = self.next_char() {
            if skip_blanks {
                if is_blank(c) || (!continued && c == '\n') {
                    continue;
                }
                skip_blanks = false;
                continued = false;
            }
            if logical.is_empty() {
                if c == '#' || c == '!' {
                    while self.next_char().is_some_and(|(c, _)| c != '\n') {}
                    skip_blanks = true;
                    continue;
                }
                start = line;
            }
            if c != '\n' {
                logical.push(c);
                after_backslash = c == '\\' && !after_backslash;
            } else if logical.is_empty() {
                skip_blanks = true;
            } else if after_backslash {
                logical.pop();
                // Java's reader gives even an empty line back here, as an empty key.
                if self.chars.peek().is_none() && !self.two_char_end {
                    return Some((logical, start));
                }
                skip_blanks = true;
                continued = true;
                after_backslash = false;
            } else {
                return Some((logical, start));
            }
        }
        if after_backslash {
            logical.pop();
            return Some((logical, start));
        }
        (!logical.is_empty()).then_some((logical, start))
    }
}

/// Splits a logical line into key and value, both still escaped.
fn split_pair(line: &[char]) -> (&[char], &[char]) {
    let mut after_backslash = false;
    let key_end = line.iter().position(|&c| {
        let ends = !after_backslash && (matches!(c, '=' | ':') || is_blank(c));
        after_backslash = c == '\\' && !after_backslash;
        ends
    });
    let (key, mut rest) = line.split_at(key_end.unwrap_or(line.len()));
    let mut separator_seen = false;
    while let Some((&c, tail)) = rest.split_first() {
        if !is_blank(c) {
            if separator_seen || !matches!(c, '=' | ':') {
                break;
            }
            separator_seen = true;
        }
        rest = tail;
    }
    (key, rest)
}

/// Undoes escapes; the error is the text of the bad one.
fn unescape(text: &[char]) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((&c, tail)) = rest.split_first() {
        rest = tail;
        if c != '\\' {
            out.push(c);
            continue;
        }
        let Some((&escaped, tail)) = rest.split_first() else { break };
        match escaped {
            'u' => {
                let (c, tail) = unicode_escape(rest)?;
                out.push(c);
                rest = tail;
                continue;
            }
            't' => out.push('\t'),
            'r' => out.push('\r'),
            'n' => out.push('\n'),
            'f' => out.push('\x0C'),
            other => out.push(other),
        }
        rest = tail;
    }
    Ok(out)
}

/// The character of `uXXXX`, or of `uXXXX\uXXXX` where two surrogates make one; and what follows.
fn unicode_escape(text: &[char]) -> Result<(char, &[char]), String> {
    let bad = || format!("\\{}", text.iter().take(5).collect::<String>().escape_debug());
    let (unit, rest) = utf16_unit(text).ok_or_else(bad)?;
    if let Some(c) = char::from_u32(unit) {
        return Ok((c, rest));
    }
    let pair = rest.strip_prefix(&['\\']).and_then(utf16_unit);
    if let (0xD800..=0xDBFF, Some((low @ 0xDC00..=0xDFFF, rest))) = (unit, pair) {
        let code = 0x1_0000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
        return Ok((char::from_u32(code).ok_or_else(bad)?, rest));
    }
    Err(bad())
}

fn utf16_unit(text: &[char]) -> Option<(u32, &[char])> {
    let (digits, rest) = text.strip_prefix(&['u'])?.split_at_checked(4)?;
    let unit = digits.iter().try_fold(0, |unit, c| Some(unit * 16 + c.to_digit(16)?))?;
    Some((unit, rest))
}

#[cfg(test)]
mod tests;
