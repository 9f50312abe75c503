//! Which keys of a JSON file were asked for: what `inspect` shows of a config.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::json::JsonFile;

/// What [`JsonFile::recording`] keeps. Clones share it.
///
/// A key is dotted where it is nested. Spellings that were asked for at once, the first that is
/// there counting, are one key.
#[derive(Clone, Debug, Default)]
pub struct KeyRecord(Arc<Mutex<Asked>>);

#[derive(Clone, Debug, Default)]
struct Asked {
    /// The spellings of each key, in the order they were tried.
    keys: BTreeSet<Vec<String>>,
    /// Keys whose `null` was looked at.
    nulls: BTreeSet<String>,
    /// What the file calls keys that were asked for under other names.
    own_names: BTreeMap<String, BTreeSet<String>>,
}

impl KeyRecord {
    /// The keys that were asked for and are in `json`, under its own names, sorted.
    pub fn read(&self, json: &JsonFile) -> Vec<String> {
        let asked = self.lock();
        let names = asked.names();
        let found = names.iter().filter(|name| asked.is_found(json.value(), name));
        found.map(|name| (*name).to_owned()).collect()
    }

    /// The keys that were asked for and are not in `json`, so that something else stands in for
    /// them, sorted. All spellings are listed, the one that was tried first ahead.
    pub fn defaulted(&self, json: &JsonFile) -> Vec<String> {
        let asked = self.lock();
        let absent = asked.keys.iter().filter_map(|spellings| {
            let mut names: Vec<&str> = Vec::new();
            for name in spellings.iter().flat_map(|name| asked.spelled(name)) {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            let is_absent = !names.iter().any(|name| asked.is_found(json.value(), name));
            is_absent.then(|| names.join(" or "))
        });
        absent.collect::<BTreeSet<String>>().into_iter().collect()
    }

    /// The keys in `json` that nobody asked for, sorted. An object is one key if none of what is in
    /// it was asked for by name.
    pub fn unread(&self, json: &JsonFile) -> Vec<String> {
        let asked = self.lock();
        let names = asked.names();
        let mut unread = Vec::new();
        collect_unread(&names, json.value(), "", &mut unread);
        unread.sort();
        unread
    }

    /// Whether `key` was asked for, under this name.
    pub fn asked(&self, key: &str) -> bool {
        self.lock().names().contains(key)
    }

    /// Takes over what another record has.
    pub fn absorb(&self, other: &Self) {
        let Asked { keys, nulls, own_names } = other.lock().clone();
        let mut asked = self.lock();
        asked.keys.extend(keys);
        asked.nulls.extend(nulls);
        for (name, own) in own_names {
            asked.own_names.entry(name).or_default().extend(own);
        }
    }

    pub(crate) fn note(&self, spellings: &[&str]) {
        let spellings = spellings.iter().map(|key| (*key).to_owned()).collect();
        self.lock().keys.insert(spellings);
    }

    pub(crate) fn note_null(&self, key: &str) {
        self.lock().nulls.insert(key.to_owned());
    }

    pub(crate) fn rename(&self, name: &str, own: &str) {
        self.lock().own_names.entry(name.to_owned()).or_default().insert(own.to_owned());
    }

    /// Nothing that is done under the lock can leave it half done.
    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked {
    /// A key's names: as it was asked for, then the file's own for it.
    fn spelled<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let own = self.own_names.get(name).into_iter().flatten().map(String::as_str);
        std::iter::once(name).chain(own)
    }

    /// All names that were asked for.
    fn names(&self) -> BTreeSet<&str> {
        let names = self.keys.iter().flatten().flat_map(|name| self.spelled(name));
        names.chain(self.nulls.iter().map(String::as_str)).collect()
    }

    fn is_found(&self, value: &Value, name: &str) -> bool {
        match value_at(value, name) {
            None => false,
            Some(Value::Null) => self.nulls.contains(name),
            Some(_) => true,
        }
    }
}

fn value_at<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    value.get(key).or_else(|| {
        let (head, tail) = key.split_once('.')?;
        value_at(value.get(head)?, tail)
    })
}

fn collect_unread(asked: &BTreeSet<&str>, value: &Value, path: &str, unread: &mut Vec<String>) {
    for (key, value) in value.as_object().into_iter().flatten() {
        let name = format!("{path}{key}");
        let inner = format!("{name}.");
        let is_entered = value.is_object() && asked.iter().any(|key| key.starts_with(&inner));
        if is_entered {
            collect_unread(asked, value, &inner, unread);
        } else if !asked.contains(name.as_str()) {
            unread.push(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_are_told_apart() {
        let file = JsonFile::from_value(
            "config.json",
            json!({"n_embd": 4, "n_layer": null, "cap": null, "labels": {"a": 1}, "odd": {"a": 1},
                   "rope": {"type": "linear", "fator": 2.0}}),
        );
        let (json, record) = file.recording();
        assert_eq!(json.u32_any(&["hidden_size", "n_embd"]).unwrap(), 4);
        assert_eq!(json.opt_u32_any(&["n_head", "heads"]).unwrap(), None);
        assert_eq!(json.opt_u32("n_layer").unwrap(), None);
        assert!(json.get("labels").unwrap().is_some());
        assert!(json.contains("rope") && !json.contains("quantization"));
        assert_eq!(json.opt_str("rope.type").unwrap(), Some("linear"));
        assert_eq!(json.opt_f64("rope.factor").unwrap(), None);
        assert!(json.is_null("cap"));
        assert_eq!(record.read(&file), ["cap", "labels", "n_embd", "rope", "rope.type"]);
        assert_eq!(record.defaulted(&file), ["n_head or heads", "n_layer", "rope.factor"]);
        assert_eq!(record.unread(&file), ["odd", "rope.fator"]);
    }

    #[test]
    fn other_names_count_as_the_files_own() {
        let file = JsonFile::from_value("config.json", json!({"hidden_size": 4}));
        let (json, record) = file.recording();
        let names = [("d_model", "hidden_size"), ("layers", "num_layers")];
        let renamed = json.renamed(json!({"hidden_size": 4, "d_model": 4}), names);
        assert_eq!(renamed.u32("d_model").unwrap(), 4);
        assert_eq!(renamed.opt_u32("layers").unwrap(), None);
        assert_eq!(record.read(&file), ["hidden_size"]);
        assert_eq!(record.defaulted(&file), ["layers or num_layers"]);
        let other = KeyRecord::default();
        other.absorb(&record);
        assert!(other.unread(&file).is_empty());
    }

    #[test]
    fn nothing_is_kept_unless_asked_for() {
        let file = JsonFile::from_value("config.json", json!({"a": 1}));
        let (_, record) = file.recording();
        assert_eq!(file.u32("a").unwrap(), 1);
        assert_eq!(record.unread(&file), ["a"]);
    }
}
