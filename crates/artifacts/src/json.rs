//! JSON files with typed access, whose errors name file, key, value and what is allowed.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{ArtifactError, shorten};
use crate::file::read_bounded;
use crate::key_record::KeyRecord;

/// A JSON object read from a file, such as `config.json`.
///
/// A key may be dotted to reach into nested objects (`rope_parameters.rope_theta`); a `null` is the
/// same as an absent key. Which keys were asked for is noted once [`Self::recording`] is called.
#[derive(Clone, Debug)]
pub struct JsonFile {
    path: PathBuf,
    value: Value,
    record: Option<KeyRecord>,
}

impl JsonFile {
    /// Reads a file of at most `max_bytes` bytes. Nesting deeper than 128 levels is refused.
    ///
    /// # Errors
    /// The file can't be read, is too large, is no JSON, or holds something else than an object.
    pub fn read(path: &Path, max_bytes: u64) -> Result<Self, ArtifactError> {
        let file = Self::read_any(path, max_bytes)?;
        if !file.value.is_object() {
            return Err(ArtifactError::JsonShape {
                path: path.to_owned(),
                found: render(&file.value),
                wanted: "a JSON object",
            });
        }
        Ok(file)
    }

    /// As [`Self::read`], for a file that may hold something else than an object.
    ///
    /// # Errors
    /// The file can't be read, is too large or is no JSON.
    pub fn read_any(path: &Path, max_bytes: u64) -> Result<Self, ArtifactError> {
        let content = read_bounded(path, max_bytes)?;
        let value: Value = serde_json::from_slice(&content)
            .map_err(|source| ArtifactError::Json { path: path.to_owned(), source })?;
        Ok(Self::from_value(path, value))
    }

    /// A value that was read elsewhere; `path` is what errors name.
    pub fn from_value(path: impl Into<PathBuf>, value: Value) -> Self {
        Self { path: path.into(), value, record: None }
    }

    /// The same file with a record of the keys that it is asked for from now on. Clones share it.
    pub fn recording(&self) -> (Self, KeyRecord) {
        let record = KeyRecord::default();
        (Self { record: Some(record.clone()), ..self.clone() }, record)
    }

    /// The same file with another `value`, made of its own: in each pair, the second key is now
    /// called the first. A record goes on with this file's own names.
    pub fn renamed<'a>(
        &self,
        value: Value,
        names: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let renamed = Self { path: self.path.clone(), value, record: self.record.clone() };
        if let Some(record) = &renamed.record {
            names.into_iter().for_each(|(name, own)| record.rename(name, own));
        }
        renamed
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole value.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The value of `key`, if it is there and not `null`.
    ///
    /// # Errors
    /// `key` is dotted and passes through something else than an object.
    pub fn get(&self, key: &str) -> Result<Option<&Value>, ArtifactError> {
        self.note(&[key]);
        self.find(key)
    }

    fn note(&self, keys: &[&str]) {
        if let Some(record) = &self.record {
            record.note(keys);
        }
    }

    /// [`Self::get`] off the record.
    fn find(&self, key: &str) -> Result<Option<&Value>, ArtifactError> {
        let mut at = &self.value;
        let mut rest = key;
        loop {
            if let Some(value) = at.get(rest) {
                return Ok(Some(value).filter(|v| !v.is_null()));
            }
            let Some((head, tail)) = rest.split_once('.') else { return Ok(None) };
            match at.get(head) {
                None | Some(Value::Null) => return Ok(None),
                Some(next @ Value::Object(_)) => at = next,
                Some(_) => {
                    let passed = &key[..key.len() - tail.len() - 1];
                    return Err(self.invalid(passed, "an object"));
                }
            }
            rest = tail;
        }
    }

    /// Whether `key` is there and not `null`. A record counts this only where it is: whoever goes
    /// on without asks for what stands in for it.
    pub fn contains(&self, key: &str) -> bool {
        let is_there = matches!(self.find(key), Ok(Some(_)));
        if is_there {
            self.note(&[key]);
        }
        is_there
    }

    /// Whether `key` is there and `null`, for the few whose `null` says something.
    pub fn is_null(&self, key: &str) -> bool {
        let is_null = self.value.get(key).is_some_and(Value::is_null);
        if let Some(record) = self.record.as_ref().filter(|_| is_null) {
            record.note_null(key);
        }
        is_null
    }

    /// The error for a `key` whose value the caller can't use; `wanted` says what is allowed.
    pub fn invalid(&self, key: &str, wanted: impl Display) -> ArtifactError {
        let (path, key_name) = (self.path.clone(), shorten(key));
        match self.find(key) {
            Ok(Some(value)) => ArtifactError::InvalidKey {
                path,
                key: key_name,
                found: render(value),
                wanted: wanted.to_string(),
            },
            _ => ArtifactError::MissingKey { path, key: key_name, wanted: wanted.to_string() },
        }
    }

    /// A number or a list of numbers, each of which fits 32 bits; empty lists are kept.
    ///
    /// # Errors
    /// The value is neither.
    pub fn opt_u32_list(&self, key: &str) -> Result<Option<Vec<u32>>, ArtifactError> {
        const WANTED: &str = "a whole number from 0 to 4294967295, or a list of them";
        let list = match self.get(key)? {
            None => return Ok(None),
            Some(Value::Array(items)) => items.iter().map(as_u32).collect(),
            Some(single) => as_u32(single).map(|number| vec![number]),
        };
        list.map(Some).ok_or_else(|| self.invalid(key, WANTED))
    }

    /// A list of strings; a single string is a list of one.
    ///
    /// # Errors
    /// The value is neither.
    pub fn opt_strings(&self, key: &str) -> Result<Option<Vec<String>>, ArtifactError> {
        let list = match self.get(key)? {
            None => return Ok(None),
            Some(Value::Array(items)) => {
                items.iter().map(|item| item.as_str().map(str::to_owned)).collect()
            }
            Some(single) => single.as_str().map(|text| vec![text.to_owned()]),
        };
        list.map(Some).ok_or_else(|| self.invalid(key, "a string, or a list of strings"))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ArtifactError> {
        match self.find(key)? {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| self.invalid(key, wanted)),
        }
    }

    fn missing(&self, keys: &[&str], wanted: &str) -> ArtifactError {
        ArtifactError::MissingKey {
            path: self.path.clone(),
            key: keys.join(" or "),
            wanted: wanted.to_owned(),
        }
    }
}

/// The four accessors of one type: optional, required, and both over several spellings of a key.
macro_rules! accessors {
    ($opt:ident, $required:ident, $opt_any:ident, $any:ident, $type:ty, $wanted:literal, $read:expr) => {
        #[doc = concat!("The value of `key`: ", $wanted, "; `None` where it is absent or `null`.")]
        ///
        /// # Errors
        /// The value is of another kind; the error names file, key, value and what is wanted.
        pub fn $opt(&self, key: &str) -> Result<Option<$type>, ArtifactError> {
            self.$opt_any(&[key])
        }

        #[doc = concat!("The value of `key`: ", $wanted, ".")]
        ///
        /// # Errors
        /// The value is absent or of another kind.
        pub fn $required(&self, key: &str) -> Result<$type, ArtifactError> {
            self.$any(&[key])
        }

        #[doc = concat!("The first of `keys` that is there: ", $wanted, ".")]
        ///
        /// # Errors
        /// That value is of another kind.
        pub fn $opt_any(&self, keys: &[&str]) -> Result<Option<$type>, ArtifactError> {
            self.note(keys);
            for key in keys {
                if let Some(value) = self.typed(key, $wanted, $read)? {
                    return Ok(Some(value));
                }
            }
            Ok(None)
        }

        #[doc = concat!("The first of `keys` that is there: ", $wanted, ".")]
        ///
        /// # Errors
        /// None is there, or the first that is has a value of another kind.
        pub fn $any(&self, keys: &[&str]) -> Result<$type, ArtifactError> {
            self.$opt_any(keys)?.ok_or_else(|| self.missing(keys, $wanted))
        }
    };
}

impl JsonFile {
    accessors!(
        opt_u32,
        u32,
        opt_u32_any,
        u32_any,
        u32,
        "a whole number from 0 to 4294967295",
        as_u32
    );
    accessors!(opt_u64, u64, opt_u64_any, u64_any, u64, "a whole number, 0 or more", as_u64);
    accessors!(opt_f64, f64, opt_f64_any, f64_any, f64, "a finite number", as_f64);
    accessors!(opt_bool, bool, opt_bool_any, bool_any, bool, "true or false", Value::as_bool);
    accessors!(opt_str, str, opt_str_any, str_any, &str, "a string", Value::as_str);
}

/// Python writes whole numbers as floats at times (`2048.0`), so these pass.
fn as_u64(value: &Value) -> Option<u64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_u64().or_else(|| {
        value
            .as_f64()
            .filter(|float| float.fract() == 0.0 && (0.0..=EXACT).contains(float))
            .map(|float| float as u64)
    })
}

fn as_u32(value: &Value) -> Option<u32> {
    as_u64(value).and_then(|number| u32::try_from(number).ok())
}

fn as_f64(value: &Value) -> Option<f64> {
    value.as_f64().filter(|float| float.is_finite())
}

/// A value as one short line; no more of it is written out than is shown.
fn render(value: &Value) -> String {
    struct Bounded(Vec<u8>);
    impl io::Write for Bounded {
        fn write(&mut self, part: &[u8]) -> io::Result<usize> {
            if self.0.len() > 512 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.0.extend_from_slice(&part[..part.len().min(512)]);
            Ok(part.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut text = Bounded(Vec::new());
    // An error means that the bound was reached: what was written is what is shown.
    let _ = serde_json::to_writer(&mut text, value);
    shorten(&String::from_utf8_lossy(&text.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn file(value: Value) -> JsonFile {
        JsonFile::from_value("config.json", value)
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_named() {
        let config = file(json!({"n": "abc", "f": 1.5, "neg": -1, "big": 5_000_000_000u64}));
        let check = |result: Result<Option<u32>, ArtifactError>, expect: &str| {
            assert_eq!(result.unwrap_err().to_string(), expect);
        };
        let wanted = "expected a whole number from 0 to 4294967295";
        check(config.opt_u32("n"), &format!("config.json: n = \"abc\": {wanted}"));
        check(config.opt_u32("f"), &format!("config.json: f = 1.5: {wanted}"));
        check(config.opt_u32("neg"), &format!("config.json: neg = -1: {wanted}"));
        check(config.opt_u32("big"), &format!("config.json: big = 5000000000: {wanted}"));
        assert_eq!(
            config.u32_any(&["n_embd", "hidden_size"]).unwrap_err().to_string(),
            format!("config.json: n_embd or hidden_size is missing: {wanted}")
        );
    }

    #[test]
    fn dotted_keys_reach_into_objects() {
        let config =
            file(json!({"rope": {"theta": 1e4, "inner": {"x": 2048.0}}, "n": null, "k": 3}));
        assert_eq!(config.f64("rope.theta").unwrap(), 1e4);
        assert_eq!(config.u32("rope.inner.x").unwrap(), 2048);
        assert_eq!(config.opt_u32("rope.none").unwrap(), None);
        assert_eq!(config.opt_u32("n.none").unwrap(), None);
        assert_eq!(
            config.opt_u32("k.x").unwrap_err().to_string(),
            "config.json: k = 3: expected an object"
        );
    }

    #[test]
    fn lists_take_single_values() {
        let config = file(json!({"one": 2, "two": [1, 2], "bad": [1, "x"], "s": "a"}));
        assert_eq!(config.opt_u32_list("one").unwrap(), Some(vec![2]));
        assert_eq!(config.opt_u32_list("two").unwrap(), Some(vec![1, 2]));
        assert_eq!(config.opt_u32_list("none").unwrap(), None);
        assert!(config.opt_u32_list("bad").unwrap_err().to_string().contains("bad = [1,\"x\"]"));
        assert_eq!(config.opt_strings("s").unwrap(), Some(vec!["a".to_owned()]));
        assert!(config.opt_strings("two").is_err());
    }

    #[test]
    fn long_values_are_shortened() {
        let config = file(json!({"long": "x".repeat(100_000)}));
        assert!(config.u32("long").unwrap_err().to_string().len() < 250);
    }
}
