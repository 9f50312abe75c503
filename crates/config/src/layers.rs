//! Settings in layers: who set what, whose word counts, and the checked value.
//!
//! Every layer is text with sources. The highest layer that has any name of a key decides; within
//! one layer the canonical name goes before aliases, `option.` before none, and a later duplicate
//! before an earlier one.

use std::collections::{HashMap, HashSet};

use crate::environment::Environment;
use crate::error::{ConfigError, Warning, shown};
use crate::keys::{self, FromText, Key, Role, Scope};
use crate::properties::Properties;
use crate::source::{Source, Sourced};

/// The prefix that marks an option in a model's file.
const OPTION_PREFIX: &str = "option.";

/// The most warnings of one configuration; a file can hold a hundred thousand unknown keys.
const MAX_WARNINGS: usize = 100;

/// One setting of one layer.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    /// The key without `option.`.
    pub(crate) name: String,
    /// Whether it was written with `option.`.
    pub(crate) prefixed: bool,
    /// The text.
    pub(crate) value: String,
    /// Where it stands.
    pub(crate) source: Source,
}

impl Setting {
    pub(crate) fn new(name: impl Into<String>, value: impl Into<String>, source: Source) -> Self {
        Self { name: name.into(), prefixed: false, value: value.into(), source }
    }

    /// A setting that fills a key from a variable.
    pub(crate) fn env(name: impl Into<String>, value: &str, variable: impl Into<String>) -> Self {
        Self::new(name, value, Source::Env { variable: variable.into() })
    }

    /// The key as it was spelled.
    pub(crate) fn spelled(&self) -> String {
        if self.prefixed { format!("{OPTION_PREFIX}{}", self.name) } else { self.name.clone() }
    }

    pub(crate) fn refuse(&self, wanted: impl Into<String>) -> ConfigError {
        ConfigError::Value {
            at: self.source.clone(),
            key: self.spelled(),
            value: self.value.clone(),
            wanted: wanted.into(),
        }
    }
}

/// The layers of a scope, highest first, and what was noticed while reading them.
#[derive(Debug)]
pub(crate) struct Layers {
    scope: Scope,
    layers: Vec<Vec<Setting>>,
    pub(crate) warnings: Vec<Warning>,
}

impl Layers {
    pub(crate) fn new(scope: Scope) -> Self {
        Self { scope, layers: Vec::new(), warnings: Vec::new() }
    }

    /// Adds a layer below those already there.
    pub(crate) fn push(&mut self, layer: Vec<Setting>) {
        self.layers.push(layer);
    }

    pub(crate) fn warn(&mut self, at: Source, message: impl Into<String>) {
        match self.warnings.len() {
            MAX_WARNINGS.. => {}
            count if count + 1 == MAX_WARNINGS => {
                self.warnings.push(Warning::new(at, "further warnings are left out"));
            }
            _ => self.warnings.push(Warning::new(at, message)),
        }
    }

    /// Whether another warning would still be kept.
    fn wants_warnings(&self) -> bool {
        self.warnings.len() < MAX_WARNINGS
    }

    /// A properties file's settings, as a layer for [`Layers::push`].
    pub(crate) fn of_file(&mut self, file: &Properties) -> Vec<Setting> {
        let mut layer = Vec::with_capacity(file.entries.len());
        for entry in &file.entries {
            let source = file.source(entry);
            let bare = match self.scope {
                Scope::Model => entry.key.strip_prefix(OPTION_PREFIX),
                Scope::Server => None,
            };
            let name = bare.unwrap_or(&entry.key);
            if name.is_empty() {
                self.warn(
                    source,
                    format!("{}: no key before the separator", shown("", &entry.key)),
                );
                continue;
            }
            let setting = Setting {
                name: name.to_owned(),
                prefixed: bare.is_some(),
                value: entry.value.clone(),
                source,
            };
            self.check_known(&setting);
            layer.push(setting);
        }
        layer
    }

    /// SageMaker's variables, which go before everything else.
    pub(crate) fn of_sagemaker(&self, env: &Environment) -> Vec<Setting> {
        keys::all(self.scope)
            .filter_map(|key| {
                let (variable, value) = first_set(env, key.sagemaker)?;
                Some(Setting::env(key.name, value, variable))
            })
            .collect()
    }

    /// The named variables of the table, which fill gaps.
    pub(crate) fn of_variables(&self, env: &Environment) -> Vec<Setting> {
        let mut layer = Vec::new();
        for key in keys::all(self.scope) {
            if let Some((variable, value)) = first_set(env, key.env) {
                layer.push(Setting::env(key.name, value, variable));
            } else if let Some(variable) = key.inverse_env {
                let opposite = match env.get(variable).map(str::to_ascii_lowercase).as_deref() {
                    Some("true" | "1") => "false",
                    Some("false" | "0") => "true",
                    _ => continue,
                };
                layer.push(Setting::env(key.name, opposite, variable));
            }
        }
        layer
    }

    /// Warns about a key that nobody knows, or that means nothing here.
    pub(crate) fn check_known(&mut self, setting: &Setting) {
        let Setting { name, source, .. } = setting;
        let spelled = shown("", &setting.spelled());
        if let Some(key) = keys::find(self.scope, name) {
            if key.role == Role::Ignored {
                let message = format!("{spelled} has no effect here ({})", key.text.to_lowercase());
                self.warn(source.clone(), message);
            }
            return;
        }
        if !self.wants_warnings() {
            return;
        }
        let nearest = keys::nearest(self.scope, name);
        let option = setting.prefixed;
        // An option may well be one that only the engine knows, so only a likely slip is named.
        let close = nearest.filter(|(known, distance)| {
            let slip = if name.len() < 8 { 1 } else { 2 };
            *distance <= if option { slip } else { slip.max(known.len() / 3) }
        });
        let message = match (close, option, self.scope) {
            (None, true, _) => return,
            (Some((known, _)), true, _) => {
                format!("unknown option {spelled} goes to the engine; is option.{known} meant?")
            }
            (Some((known, _)), false, Scope::Model) => {
                format!(
                    "unknown key {spelled} goes to the engine; the nearest known one is {known}"
                )
            }
            (Some((known, _)), false, Scope::Server) => {
                format!("unknown key {spelled} is ignored; the nearest known one is {known}")
            }
            (None, false, Scope::Model) => format!("unknown key {spelled} goes to the engine"),
            (None, false, Scope::Server) => format!("unknown key {spelled} is ignored"),
        };
        self.warn(source.clone(), message);
    }

    /// The setting that decides this name; `name` may have a device prefix.
    pub(crate) fn find(&self, name: &str) -> Option<&Setting> {
        let key = keys::find(self.scope, name)?;
        let names: Vec<&str> =
            if key.names().any(|n| n == name) { key.names().collect() } else { vec![name] };
        self.layers.iter().find_map(|layer| {
            names.iter().find_map(|name| {
                let mut same = layer.iter().rev().filter(|setting| setting.name == *name);
                let last = same.clone().next()?;
                same.find(|setting| setting.prefixed).or(Some(last))
            })
        })
    }

    /// The checked value of a key; the table's default, if it has one, where nobody set it.
    pub(crate) fn get_opt<T: FromText>(
        &mut self,
        name: &str,
    ) -> Result<Option<Sourced<T>>, ConfigError> {
        let Some(key) = keys::find(self.scope, name) else { return Ok(None) };
        if let Some(setting) = self.find(name).cloned() {
            self.check_other_names(key, name, &setting)?;
            let value = if key.kind.trims() { setting.value.trim() } else { &setting.value };
            if !(value.is_empty() && key.kind.empty_is_unset()) {
                if value != setting.value {
                    let message = format!("{}: blanks around the value dropped", setting.spelled());
                    self.warn(setting.source.clone(), message);
                }
                return match T::from_text(key.kind, value) {
                    Some(value) => Ok(Some(Sourced::new(value, setting.source))),
                    None => Err(setting.refuse(key.kind.wanted())),
                };
            }
        }
        let default = Some(key.default).filter(|text| !text.is_empty());
        Ok(default.and_then(|text| T::from_text(key.kind, text)).map(Sourced::built_in))
    }

    /// The checked value of a key that has a default in the table.
    pub(crate) fn get<T: FromText>(&mut self, name: &str) -> Result<Sourced<T>, ConfigError> {
        let value = self.get_opt(name)?;
        Ok(value.expect("the table has a default for this key, of the kind that is asked for"))
    }

    /// The checked value of a key, or what the server says for every model.
    pub(crate) fn get_or<T: FromText + Clone>(
        &mut self,
        name: &str,
        server: &Sourced<T>,
    ) -> Result<Sourced<T>, ConfigError> {
        Ok(self.get_opt(name)?.unwrap_or_else(|| server.clone()))
    }

    /// Compares the setting that counts with the same layer's other spellings of the key.
    fn check_other_names(
        &mut self,
        key: &Key,
        name: &str,
        chosen: &Setting,
    ) -> Result<(), ConfigError> {
        let same_key = |other: &Setting| {
            if key.names().any(|n| n == name) {
                key.names().any(|n| n == other.name)
            } else {
                other.name == name
            }
        };
        let Some(layer) = self.layers.iter().find(|layer| layer.iter().any(same_key)) else {
            return Ok(());
        };
        let mut unused = None;
        for other in layer.iter().filter(|other| same_key(other) && other.value != chosen.value) {
            if other.name != chosen.name && key.names_must_agree {
                return Err(ConfigError::Conflict {
                    at: other.source.clone(),
                    key: other.spelled(),
                    value: other.value.clone(),
                    problem: format!(
                        "the same setting as {}={} at {}; give one of them",
                        chosen.spelled(),
                        shown(&chosen.name, &chosen.value),
                        chosen.source
                    ),
                });
            }
            unused = Some(other);
        }
        if let Some(other) = unused {
            let message = format!(
                "{}={} is not used: {}={} at {} is the same setting",
                other.spelled(),
                shown(&other.name, &other.value),
                chosen.spelled(),
                shown(&chosen.name, &chosen.value),
                chosen.source
            );
            let at = other.source.clone();
            self.warn(at, message);
        }
        Ok(())
    }

    /// Every setting that counts, one for each name as it was written, without `option.`; the
    /// highest layer's first.
    pub(crate) fn effective(&self) -> Vec<&Setting> {
        let mut taken = HashSet::new();
        let mut settings = Vec::new();
        for layer in &self.layers {
            let mut chosen: HashMap<&str, &Setting> = HashMap::new();
            for setting in layer {
                let slot = chosen.entry(&setting.name).or_insert(setting);
                if setting.prefixed || !slot.prefixed {
                    *slot = setting;
                }
            }
            for setting in layer {
                if !taken.contains(setting.name.as_str())
                    && let Some(chosen) = chosen.get(setting.name.as_str())
                {
                    taken.insert(setting.name.as_str());
                    settings.push(*chosen);
                }
            }
        }
        settings
    }
}

/// The first of some variables that is set, and its value.
fn first_set<'a>(
    env: &'a Environment,
    variables: &[&'static str],
) -> Option<(&'static str, &'a str)> {
    variables.iter().find_map(|variable| Some((*variable, env.get(variable)?)))
}
