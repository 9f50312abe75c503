//! JSON objects with their keys in order, each once or several times.

use std::fmt;

use serde::Deserializer;
use serde::de::{MapAccess, Visitor};
use serde_json::Value;

/// The pairs of the object `text`, as they are written.
pub(crate) fn pairs(text: &str) -> Result<Vec<(String, Value)>, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_str(text);
    let pairs = json.deserialize_map(Pairs)?;
    json.end()?;
    Ok(pairs)
}

struct Pairs;

impl<'de> Visitor<'de> for Pairs {
    type Value = Vec<(String, Value)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_as_they_are_written() {
        let found = pairs(r#" {"b": 1, "a": "x", "b": null} "#).unwrap();
        let keys: Vec<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["b", "a", "b"]);
        assert_eq!(pairs("{}").unwrap(), []);
        for text in ["", "{", "[]", "1", r#"{"a": 1} x"#, "{1: 2}"] {
            assert!(pairs(text).is_err(), "{text:?}");
        }
    }
}
