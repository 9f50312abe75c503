//! What a request's `Content-Type` says, and the text of a body in the charset it names.

use std::borrow::Cow;

use axum::http::{HeaderMap, header};
use encoding_rs::{Encoding, UTF_8};

use crate::failure::ApiError;

/// How a body is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyFormat {
    /// `application/json`, any `+json`, or no content type.
    Json,
    /// `text/plain`.
    Text,
    /// `text/csv`.
    Csv,
    /// `application/x-www-form-urlencoded`.
    Form,
    /// `multipart/form-data`.
    Multipart,
    /// Bytes that no text task reads.
    Binary,
}

/// A parsed `Content-Type`.
#[derive(Clone, Debug)]
pub(crate) struct ContentType {
    /// How the body is to be read.
    pub(crate) format: BodyFormat,
    /// As the client sent it; empty when it did not.
    pub(crate) text: String,
    charset: Charset,
}

#[derive(Clone, Copy, Debug)]
enum Charset {
    Utf8,
    /// ISO 8859-1 to the letter: byte n is U+00nn.
    Latin1,
    Other(&'static Encoding),
}

impl ContentType {
    /// Reads the header.
    ///
    /// # Errors
    /// A value that is no media type, or names a charset that is not known.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let Some(value) = headers.get(header::CONTENT_TYPE) else {
            return Ok(Self {
                format: BodyFormat::Json,
                text: String::new(),
                charset: Charset::Utf8,
            });
        };
        let text = value
            .to_str()
            .map_err(|_| ApiError::bad_request("content-type is not visible ascii"))?
            .trim();
        if text.is_empty() {
            return Ok(Self {
                format: BodyFormat::Json,
                text: String::new(),
                charset: Charset::Utf8,
            });
        }
        let mime: mime::Mime = text.parse().map_err(|_| {
            ApiError::bad_request(format!(
                "content-type {text:?} is not a media type: write it like text/plain; charset=utf-8"
            ))
        })?;
        let charset = mime.get_param(mime::CHARSET).map_or(Ok(Charset::Utf8), |name| {
            charset(name.as_str()).ok_or_else(|| {
                ApiError::bad_request(format!(
                    "content-type {text:?}: charset {name} is not known: use utf-8"
                ))
            })
        })?;
        let format = match (mime.type_().as_str(), mime.subtype().as_str()) {
            ("application", "json") | ("text", "json") => BodyFormat::Json,
            _ if mime.suffix() == Some(mime::JSON) => BodyFormat::Json,
            ("text", "plain") => BodyFormat::Text,
            ("text", "csv") => BodyFormat::Csv,
            ("application", "x-www-form-urlencoded") => BodyFormat::Form,
            ("multipart", "form-data") => BodyFormat::Multipart,
            _ => BodyFormat::Binary,
        };
        Ok(Self { format, text: text.to_owned(), charset })
    }

    /// The text of `body`, without a byte order mark.
    ///
    /// # Errors
    /// Bytes that are not text of the charset, with the place of the first bad one for UTF-8.
    pub(crate) fn decode<'a>(&self, body: &'a [u8]) -> Result<Cow<'a, str>, ApiError> {
        match self.charset {
            Charset::Utf8 => decode_utf8(body).map(Cow::Borrowed),
            Charset::Latin1 => Ok(encoding_rs::mem::decode_latin1(body)),
            Charset::Other(encoding) => encoding
                .decode_without_bom_handling_and_without_replacement(body)
                .ok_or_else(|| {
                    ApiError::untranslatable(format!(
                        "body is not {}, which content-type {:?} says it is: send the bytes in \
                         that charset, or name the right one",
                        encoding.name().to_ascii_lowercase(),
                        self.text
                    ))
                }),
        }
    }
}

/// UTF-8 text without its byte order mark.
///
/// # Errors
/// The byte, offset and line of the first fault.
pub(crate) fn decode_utf8(body: &[u8]) -> Result<&str, ApiError> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    std::str::from_utf8(body).map_err(|error| {
        let offset = error.valid_up_to();
        let n_newlines =
            body.iter().take(offset).fold(0_usize, |n, byte| n + usize::from(*byte == b'\n'));
        let what = match (error.error_len(), body.get(offset)) {
            (None, _) => "the text ends inside a character".to_owned(),
            (Some(_), byte) => format!("byte 0x{:02x}", byte.copied().unwrap_or_default()),
        };
        ApiError::untranslatable(format!(
            "body is not utf-8: {what} at offset {offset} (line {}): send utf-8, or name the \
             charset in content-type",
            n_newlines + 1
        ))
    })
}

fn charset(name: &str) -> Option<Charset> {
    let latin1 = ["iso-8859-1", "iso8859-1", "latin1", "latin-1", "us-ascii", "ascii"];
    if latin1.iter().any(|known| name.eq_ignore_ascii_case(known)) {
        return Some(Charset::Latin1);
    }
    let encoding = Encoding::for_label(name.as_bytes())?;
    Some(if encoding == UTF_8 { Charset::Utf8 } else { Charset::Other(encoding) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content_type(value: &'static str) -> Result<ContentType, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, axum::http::HeaderValue::from_static(value));
        ContentType::of(&headers)
    }

    #[test]
    fn formats_are_told_apart_without_case() {
        for (value, format) in [
            ("", BodyFormat::Json),
            ("APPLICATION/JSON", BodyFormat::Json),
            ("application/json; charset=UTF-8", BodyFormat::Json),
            ("application/problem+json", BodyFormat::Json),
            ("Text/Plain;charset=\"latin1\"", BodyFormat::Text),
            ("text/csv; header=present", BodyFormat::Csv),
            ("application/x-www-form-urlencoded", BodyFormat::Form),
            ("multipart/form-data; boundary=x", BodyFormat::Multipart),
            ("image/png", BodyFormat::Binary),
            ("application/octet-stream", BodyFormat::Binary),
        ] {
            assert_eq!(content_type(value).unwrap().format, format, "{value}");
        }
        assert_eq!(ContentType::of(&HeaderMap::new()).unwrap().format, BodyFormat::Json);
    }

    #[test]
    fn what_is_no_media_type_or_charset_is_refused() {
        for (value, wanted) in [
            ("nonsense", "is not a media type"),
            ("text/plain; charset=klingon", "charset klingon is not known"),
        ] {
            let error = content_type(value).unwrap_err();
            assert!(error.message.contains(wanted), "{}", error.message);
        }
    }

    #[test]
    fn text_is_decoded_in_its_charset() {
        for (value, body, text) in [
            ("text/plain", &b"caf\xc3\xa9"[..], "café"),
            ("text/plain", b"\xef\xbb\xbfbom", "bom"),
            ("text/plain; charset=latin-1", b"caf\xe9 \x80", "café \u{80}"),
            ("text/plain; charset=ISO-8859-1", b"\xff", "ÿ"),
            ("text/plain; charset=windows-1252", b"\x80", "€"),
            ("text/plain; charset=utf-16le", b"h\0i\0", "hi"),
        ] {
            assert_eq!(content_type(value).unwrap().decode(body).unwrap(), text, "{value}");
        }
    }

    #[test]
    fn bad_utf8_is_named_by_offset_and_line() {
        let error = content_type("text/plain").unwrap().decode(b"ab\ncd\xff").unwrap_err();
        assert!(error.message.contains("byte 0xff at offset 5 (line 2)"), "{}", error.message);
        let error = content_type("text/plain").unwrap().decode(b"ab\xe2\x82").unwrap_err();
        assert!(error.message.contains("ends inside a character at offset 2"), "{}", error.message);
    }
}
