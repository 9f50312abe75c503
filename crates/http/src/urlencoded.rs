//! `application/x-www-form-urlencoded`, of queries and of bodies, refused where it is not UTF-8.
//!
//! `form_urlencoded` puts U+FFFD where the bytes are not UTF-8, which nobody can tell from a U+FFFD
//! that the client sent. So the bytes are checked here before they become text.

/// A name and its value.
pub(crate) type Pair = (String, String);

/// A pair that percent-encodes something else than UTF-8.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotUtf8 {
    /// The name, with U+FFFD for what is not UTF-8.
    pub(crate) name: String,
}

/// The pairs of `text` in order. A pair without `=` has an empty value; empty pairs are left out.
pub(crate) fn pairs(text: &[u8]) -> impl Iterator<Item = Result<Pair, NotUtf8>> {
    text.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()).map(|pair| {
        let mut halves = pair.splitn(2, |byte| *byte == b'=');
        let name = decode(halves.next().unwrap_or_default());
        let value = decode(halves.next().unwrap_or_default());
        match (String::from_utf8(name), String::from_utf8(value)) {
            (Ok(name), Ok(value)) => Ok((name, value)),
            (Ok(name), Err(_)) => Err(NotUtf8 { name }),
            (Err(error), _) => {
                Err(NotUtf8 { name: String::from_utf8_lossy(error.as_bytes()).into_owned() })
            }
        }
    })
}

/// The bytes that `text` stands for: `+` for a space, `%XX` for the byte XX; a `%` without two
/// digits for itself.
fn decode(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, mut after)) = rest.split_first() {
        bytes.push(match (first, after) {
            (b'+', _) => b' ',
            (b'%', [high, low, others @ ..]) => match (hex_digit(*high), hex_digit(*low)) {
                (Some(high), Some(low)) => {
                    after = others;
                    high << 4 | low
                }
                _ => b'%',
            },
            (byte, _) => *byte,
        });
        rest = after;
    }
    bytes
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(text: &[u8]) -> Result<Vec<Pair>, NotUtf8> {
        pairs(text).collect()
    }

    #[test]
    fn a_replacement_character_of_the_client_is_text() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(all(b"a=%EF%BF%BD").unwrap(), [pair("a", "\u{fffd}")]);
        assert_eq!(all("\u{fffd}=1".as_bytes()).unwrap(), [pair("\u{fffd}", "1")]);
        let name = |text: &[u8]| all(text).unwrap_err().name;
        assert_eq!(name(b"ok=1&a=%ff"), "a");
        assert_eq!(name(b"b%ff=%ff"), "b\u{fffd}");
        // A character cut in two by its pair is none.
        assert_eq!(name(b"c=%c3&%a9"), "c");
    }

    proptest! {
        /// What is text, `form_urlencoded` reads the same; what is not, it cannot read without
        /// replacements.
        #[test]
        fn pairs_are_those_of_the_standard(
            text in prop_oneof![
                "([a-c&=+%]|%[0-9a-fA-F]{2}|%C3%A9|\u{fffd}|é){0,24}".prop_map(String::into_bytes),
                proptest::collection::vec(any::<u8>(), 0..48),
            ]
        ) {
            let standard: Vec<Pair> = form_urlencoded::parse(&text).into_owned().collect();
            match all(&text) {
                Ok(pairs) => prop_assert_eq!(pairs, standard),
                Err(_) => {
                    let is_replaced = |text: &str| text.contains('\u{fffd}');
                    prop_assert!(standard.iter().any(|(n, v)| is_replaced(n) || is_replaced(v)));
                }
            }
        }
    }
}
