//! Values in a template's text as Python writes them.

use std::fmt::{self, Write};

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, Output};

use super::{MAX_TEXT, TOO_LONG};

/// Deepest nesting that is written.
const MAX_DEPTH: usize = 128;

/// A text that grows to a limit and no further.
#[derive(Default)]
struct Limited(String);

impl Write for Limited {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.len() > MAX_TEXT.saturating_sub(self.0.len()) {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// Writes `str(value)`: what `{{ value }}` shows.
pub(super) fn write_str(out: &mut Output<'_>, value: &Value) -> Result<(), Error> {
    let text = to_str(value)?;
    out.write_str(&text).map_err(|_| wrong(TOO_LONG))
}

/// `str(value)`.
pub(super) fn to_str(value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    if value.is_undefined() {
        return Ok(String::new());
    }
    let mut out = Limited::default();
    repr(&mut out, value, MAX_DEPTH)?;
    Ok(out.0)
}

/// Writes `repr(value)`.
fn repr(out: &mut Limited, value: &Value, depth: usize) -> Result<(), Error> {
    let full = |_: fmt::Error| wrong(TOO_LONG);
    let inner = depth.checked_sub(1).ok_or_else(|| wrong("the value is nested too deep"))?;
    match value.kind() {
        ValueKind::Undefined => out.write_str("Undefined").map_err(full),
        ValueKind::None => out.write_str("None").map_err(full),
        ValueKind::Bool => {
            out.write_str(if value.is_true() { "True" } else { "False" }).map_err(full)
        }
        ValueKind::Number => out.write_str(&number(value)).map_err(full),
        ValueKind::String => {
            out.write_str(&quoted(value.as_str().unwrap_or_default())).map_err(full)
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() { ("(", ")") } else { ("[", "]") };
            out.write_str(open).map_err(full)?;
            let mut n = 0;
            for item in value.try_iter()? {
                out.write_str(if n > 0 { ", " } else { "" }).map_err(full)?;
                repr(out, &item, inner)?;
                n += 1;
            }
            out.write_str(if value.is_tuple() && n == 1 { "," } else { "" }).map_err(full)?;
            out.write_str(close).map_err(full)
        }
        ValueKind::Map => {
            out.write_str("{").map_err(full)?;
            for (n, key) in value.try_iter()?.enumerate() {
                out.write_str(if n > 0 { ", " } else { "" }).map_err(full)?;
                repr(out, &key, inner)?;
                out.write_str(": ").map_err(full)?;
                repr(out, &value.get_item(&key)?, inner)?;
            }
            out.write_str("}").map_err(full)
        }
        _ => write!(out, "{value}").map_err(full),
    }
}

/// A string in quotes, as `repr` writes it.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for letter in text.chars() {
        match letter {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            letter if letter == quote => out.extend(['\\', letter]),
            letter if letter.is_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(letter));
            }
            letter => out.push(letter),
        }
    }
    out.push(quote);
    out
}

/// A number as `repr` writes it.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float)
}

/// A float as `repr` writes it: the shortest digits that mean it, with an exponent from 1e16 on and
/// below 1e-4.
fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = x.to_string();
        return if plain.contains('.') { plain } else { format!("{plain}.0") };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// How JSON is written.
struct Style {
    escapes_all: bool,
    indent: Option<String>,
    between: String,
    after_key: String,
    sorts_keys: bool,
}

/// The filter `tojson`: `json.dumps(value, ensure_ascii=False, indent=None, separators=None,
/// sort_keys=False)`.
///
/// # Errors
/// The value is no JSON, or the text would be too long.
pub(super) fn to_json(
    value: &Value,
    ensure_ascii: Option<bool>,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<Value, Error> {
    let named_ascii: Option<bool> = options.get("ensure_ascii")?;
    let named_indent: Option<Value> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sorts_keys: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let indent = match named_indent.or(indent).filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => Some(match (indent.as_str(), indent.as_i64()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(n @ ..=32)) => " ".repeat(usize::try_from(n).unwrap_or(0)),
            _ => return Err(wrong("tojson: indent: expected a text or a number up to 32")),
        }),
    };
    let (between, after_key) = match separators.as_deref() {
        Some([between, after_key]) => (between.clone(), after_key.clone()),
        Some(_) => return Err(wrong("tojson: separators: expected two texts")),
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let style = Style {
        escapes_all: named_ascii.or(ensure_ascii).unwrap_or(false),
        indent,
        between,
        after_key,
        sorts_keys: sorts_keys.unwrap_or(false),
    };
    let mut out = Limited::default();
    style.write(&mut out, value, 0)?;
    Ok(Value::from(out.0))
}

impl Style {
    fn write(&self, out: &mut Limited, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(wrong("tojson: the value is nested too deep"));
        }
        let text = match value.kind() {
            ValueKind::None => "null".to_owned(),
            ValueKind::Bool => value.is_true().to_string(),
            ValueKind::Number => json_number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => return self.list(out, value, depth),
            ValueKind::Map => return self.object(out, value, depth),
            kind => return Err(wrong(format!("tojson: {kind} is no JSON"))),
        };
        out.write_str(&text).map_err(|_| wrong(TOO_LONG))
    }

    fn list(&self, out: &mut Limited, list: &Value, depth: usize) -> Result<(), Error> {
        let put = |out: &mut Limited, text: &str| out.write_str(text).map_err(|_| wrong(TOO_LONG));
        put(out, "[")?;
        let mut n = 0;
        for item in list.try_iter()? {
            put(out, if n > 0 { &self.between } else { "" })?;
            self.line(out, depth + 1)?;
            self.write(out, &item, depth + 1)?;
            n += 1;
        }
        if n > 0 {
            self.line(out, depth)?;
        }
        put(out, "]")
    }

    fn object(&self, out: &mut Limited, object: &Value, depth: usize) -> Result<(), Error> {
        let put = |out: &mut Limited, text: &str| out.write_str(text).map_err(|_| wrong(TOO_LONG));
        put(out, "{")?;
        let mut keys: Vec<Value> = object.try_iter()?.collect();
        if self.sorts_keys {
            keys.sort();
        }
        for (n, key) in keys.iter().enumerate() {
            put(out, if n > 0 { &self.between } else { "" })?;
            self.line(out, depth + 1)?;
            let name = match key.kind() {
                ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
                ValueKind::None => "null".to_owned(),
                ValueKind::Bool => key.is_true().to_string(),
                _ => json_number(key),
            };
            put(out, &self.string(&name))?;
            put(out, &self.after_key)?;
            self.write(out, &object.get_item(key)?, depth + 1)?;
        }
        if !keys.is_empty() {
            self.line(out, depth)?;
        }
        put(out, "}")
    }

    /// A new line, where values stand on lines of their own.
    fn line(&self, out: &mut Limited, depth: usize) -> Result<(), Error> {
        let Some(indent) = &self.indent else { return Ok(()) };
        out.write_str("\n").map_err(|_| wrong(TOO_LONG))?;
        (0..depth).try_for_each(|_| out.write_str(indent).map_err(|_| wrong(TOO_LONG)))
    }

    fn string(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len() + 2);
        out.push('"');
        for letter in text.chars() {
            match letter {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                letter if letter < ' ' || (self.escapes_all && !(' '..='~').contains(&letter)) => {
                    for unit in letter.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                letter => out.push(letter),
            }
        }
        out.push('"');
        out
    }
}

/// A number as `json.dumps` writes it.
fn json_number(value: &Value) -> String {
    match number(value).as_str() {
        "nan" => "NaN".to_owned(),
        "inf" => "Infinity".to_owned(),
        "-inf" => "-Infinity".to_owned(),
        text => text.to_owned(),
    }
}
