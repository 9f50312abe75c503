//! The JSON that the server itself writes: DJL's dialect, which clients in the field compare.
//!
//! Two-space indent, one newline at the end, and `<`, `>`, `&`, `=`, `'` as `\u00xx` escapes.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, PrettyFormatter, Serializer};

/// `value` in the server's dialect, newline included.
pub(crate) fn server_json(value: &impl Serialize) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    let formatter = Dialect { pretty: PrettyFormatter::with_indent(b"  ") };
    value
        .serialize(&mut Serializer::with_formatter(&mut out, formatter))
        .expect("the server's own replies have string keys, and a Vec takes every byte");
    out.push(b'\n');
    out
}

struct Dialect {
    pretty: PrettyFormatter<'static>,
}

impl Formatter for Dialect {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(idx) = rest.find(['<', '>', '&', '=', '\'', '\u{2028}', '\u{2029}']) {
            let (before, from) = rest.split_at(idx);
            writer.write_all(before.as_bytes())?;
            let mut chars = from.chars();
            if let Some(escaped) = chars.next() {
                write!(writer, "\\u{:04x}", u32::from(escaped))?;
            }
            rest = chars.as_str();
        }
        writer.write_all(rest.as_bytes())
    }

    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        // `Display` writes a whole number without its fraction, as the dialect wants.
        write!(writer, "{value}")
    }

    fn write_char_escape<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        self.pretty.write_char_escape(writer, escape)
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.begin_array(writer)
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.pretty.begin_array_value(w, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.begin_object(writer)
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.pretty.begin_object_key(w, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_object_value(writer)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_dialect_indents_escapes_and_ends_with_a_newline() {
        let value = json!({
            "a": "<b> & 'c' = d\n\"é\"\u{2028}",
            "whole": 2.0,
            "list": [1, {"x": null}],
            "none": {},
        });
        let text = String::from_utf8(server_json(&value)).unwrap();
        assert_eq!(
            text,
            "{\n  \"a\": \"\\u003cb\\u003e \\u0026 \\u0027c\\u0027 \\u003d d\\n\\\"é\\\"\\u2028\",\n  \
             \"whole\": 2,\n  \"list\": [\n    1,\n    {\n      \"x\": null\n    }\n  ],\n  \
             \"none\": {}\n}\n"
        );
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap()["a"], value["a"]);
    }
}
