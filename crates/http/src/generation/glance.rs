//! Which protocol a JSON body speaks, by its keys, without keeping its values.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

/// What a look at a body's keys says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Glance {
    /// Whether it has `messages`.
    pub(crate) messages: bool,
    /// Whether it has `prompt`.
    pub(crate) prompt: bool,
    /// Whether it has `inputs`.
    pub(crate) inputs: bool,
    /// `model`, where it is a string.
    pub(crate) model: Option<String>,
    /// `output_formatter`, where it is a string, here or in `parameters`.
    pub(crate) formatter: Option<String>,
    /// Whether `stream` is true, or `details` is in `parameters`.
    pub(crate) wants_lmi: bool,
    /// Whether `stream` is true.
    pub(crate) stream: bool,
}

impl Glance {
    /// Looks at `text`; `None` if it is no JSON object.
    pub(crate) fn at(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

impl<'de> Deserialize<'de> for Glance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Keys { depth: 0 })
    }
}

struct Keys {
    depth: u8,
}

/// A value of which only what is small is kept.
struct Small(Value);

impl<'de> Deserialize<'de> for Small {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SmallVisitor)
    }
}

struct SmallVisitor;

impl<'de> Visitor<'de> for SmallVisitor {
    type Value = Small;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a json value")
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Small, E> {
        Ok(Small(flag.into()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Small, E> {
        Ok(Small(text.into()))
    }

    fn visit_unit<E>(self) -> Result<Small, E> {
        Ok(Small(Value::Null))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Small, E> {
        Ok(Small(Value::Null))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Small, E> {
        Ok(Small(Value::Null))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Small, E> {
        Ok(Small(Value::Null))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Small, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Small(Value::Null))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Small, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Small(Value::Null))
    }
}

/// The keys of `parameters`, or nothing if it is no object: whoever reads it says so.
struct Parameters(Glance);

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Keys { depth: 1 }).map(Parameters)
    }
}

impl<'de> Visitor<'de> for Keys {
    type Value = Glance;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<Glance, E> {
        Ok(Glance::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Glance, A::Error> {
        let mut glance = Glance::default();
        while let Some(key) = map.next_key::<String>()? {
            match (self.depth, key.as_str()) {
                (0, "messages") => {
                    map.next_value::<IgnoredAny>()?;
                    glance.messages = true;
                }
                (0, "prompt") => {
                    map.next_value::<IgnoredAny>()?;
                    glance.prompt = true;
                }
                (0, "inputs") => {
                    map.next_value::<IgnoredAny>()?;
                    glance.inputs = true;
                }
                (0, "model") => {
                    glance.model = map.next_value::<Small>()?.0.as_str().map(str::to_owned);
                }
                (_, "output_formatter") => {
                    let name = map.next_value::<Small>()?.0;
                    glance.formatter = name.as_str().map(str::to_owned).or(glance.formatter);
                    glance.wants_lmi |= !name.is_null();
                }
                (0, "stream") => {
                    glance.stream = map.next_value::<Small>()?.0 == Value::Bool(true);
                    glance.wants_lmi |= glance.stream;
                }
                (1, "details") => {
                    glance.wants_lmi |= map.next_value::<Small>()?.0 == Value::Bool(true);
                }
                (0, "parameters") => {
                    let Parameters(inner) = map.next_value()?;
                    glance.formatter = glance.formatter.or(inner.formatter);
                    glance.wants_lmi |= inner.wants_lmi;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(glance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_say_what_a_body_is() {
        let at = |text: &str| Glance::at(text).unwrap();
        assert!(at(r#"{"messages": []}"#).messages);
        assert!(at(r#"{"prompt": [[1]], "x": {}}"#).prompt);
        let lmi =
            at(r#"{"inputs": "a", "stream": true, "parameters": {"output_formatter": "sse"}}"#);
        assert!(lmi.inputs && lmi.stream && lmi.wants_lmi);
        assert_eq!(lmi.formatter.as_deref(), Some("sse"));
        assert!(!at(r#"{"inputs": "a", "stream": "yes", "parameters": null}"#).wants_lmi);
        assert!(at(r#"{"inputs": "a", "parameters": {"details": true}}"#).wants_lmi);
        assert!(!at(r#"{"inputs": "a", "parameters": {"stream": true}}"#).wants_lmi);
        for text in ["[1]", "\"a\"", "{", "1", r#"{"parameters": 1}"#] {
            assert_eq!(Glance::at(text), None, "{text}");
        }
    }
}
