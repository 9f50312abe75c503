//! JSON trees of a bounded size: a tree takes far more memory than its text.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// How many values a tree may still have.
#[derive(Debug)]
pub(crate) struct Budget {
    what: &'static str,
    most: usize,
    n_left: usize,
}

impl Budget {
    /// `most` values for `what`.
    pub(crate) fn new(what: &'static str, most: usize) -> Self {
        Self { what, most, n_left: most }
    }

    fn take<E: de::Error>(&mut self) -> Result<(), E> {
        match self.n_left.checked_sub(1) {
            Some(n_left) => {
                self.n_left = n_left;
                Ok(())
            }
            None => Err(de::Error::custom(format_args!(
                "\"{}\" holds more than {} values",
                self.what, self.most
            ))),
        }
    }
}

/// The object that `text` is, of at most `budget` values.
///
/// # Errors
/// Text that is not JSON, is no object, nests too deep or holds too many values.
pub(crate) fn parse_object(
    text: &str,
    budget: Budget,
) -> Result<Map<String, Value>, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_str(text);
    let object = BoundedObject(budget).deserialize(&mut json)?;
    json.end()?;
    Ok(object)
}

/// The value that `text` is, of at most `budget` values.
///
/// # Errors
/// Text that is not JSON, nests too deep or holds too many values.
pub(crate) fn parse_value(text: &str, mut budget: Budget) -> Result<Value, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_str(text);
    let value = BoundedValue(&mut budget).deserialize(&mut json)?;
    json.end()?;
    Ok(value)
}

/// An object, or null for an empty one.
pub(crate) struct BoundedObject(pub(crate) Budget);

impl<'de> DeserializeSeed<'de> for BoundedObject {
    type Value = Map<String, Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for BoundedObject {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" to be an object", self.0.what)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(Map::new())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, map: A) -> Result<Self::Value, A::Error> {
        match BoundedValue(&mut self.0).visit_map(map)? {
            Value::Object(object) => Ok(object),
            _ => Ok(Map::new()),
        }
    }
}

/// Any value.
struct BoundedValue<'a>(&'a mut Budget);

impl<'de> DeserializeSeed<'de> for BoundedValue<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.0.take()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for BoundedValue<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a json value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(BoundedValue(&mut *self.0))? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(BoundedValue(&mut *self.0))?;
            values.insert(key, value);
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_tree_is_read_up_to_its_bounds() {
        let read = |text: &str| {
            parse_object(text, Budget::new("body", 3))
                .map(Value::Object)
                .map_err(|error| error.to_string())
        };
        assert_eq!(read(r#"{"a": [1, 2]}"#).unwrap(), json!({"a": [1, 2]}));
        assert_eq!(read("null").unwrap(), json!({}));
        for (text, part) in [
            (r#"{"a": [1, 2, 3]}"#, "\"body\" holds more than 3 values"),
            ("[]", "expected \"body\" to be an object"),
            ("{} x", "trailing characters"),
            (r#"{"a": "\ud800"}"#, "hex escape"),
            (r#"{"a": NaN}"#, "expected value"),
            (r#"{"a": 1e999}"#, "out of range"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        let deep = format!("{{\"a\": {}1{}}}", "[".repeat(200), "]".repeat(200));
        let error = parse_object(&deep, Budget::new("body", 1000)).unwrap_err();
        assert!(error.to_string().contains("recursion limit"), "{error}");
    }
}
