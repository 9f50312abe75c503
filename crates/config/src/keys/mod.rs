//! The one table of keys: names, aliases, variables, types, defaults and their text.
//!
//! Lookups, checks, messages and `docs/configuration.md` all come from it.

mod kind;
mod model;
mod server;

pub(crate) use kind::{FromText, Kind};

/// Whose setting a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The process's: `config.properties`, `SERVING_*`.
    Server,
    /// One model's: `serving.properties`, `OPTION_*`, `ARGS_*`.
    Model,
}

/// What becomes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It is read here.
    Used,
    /// It goes to the engine or the handler as it is.
    Passed,
    /// It is accepted and means nothing here; the text says why.
    Ignored,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// The name, without `option.`.
    pub(crate) name: &'static str,
    /// Other names for the same setting; the first of them that is set counts.
    pub(crate) aliases: &'static [&'static str],
    /// Whether two names of this key with different values stop the model.
    pub(crate) names_must_agree: bool,
    /// Variables that fill it where no file and no `OPTION_*` does; the first that is set counts.
    pub(crate) env: &'static [&'static str],
    /// A variable that fills it with the opposite of its own value.
    pub(crate) inverse_env: Option<&'static str>,
    /// Variables of SageMaker that go before everything else.
    pub(crate) sagemaker: &'static [&'static str],
    /// What values it takes.
    pub(crate) kind: Kind,
    /// The default as one would write it; empty where unset is a state of its own.
    pub(crate) default: &'static str,
    /// Whether `gpu.`, `cpu.` and `nc.` forms of it apply to one kind of device.
    pub(crate) by_device: bool,
    /// Whether its usual spelling has the `option.` prefix.
    pub(crate) is_option: bool,
    /// What becomes of it.
    pub(crate) role: Role,
    /// What it means, in a sentence.
    pub(crate) text: &'static str,
}

impl Key {
    const fn new(
        name: &'static str,
        kind: Kind,
        default: &'static str,
        text: &'static str,
    ) -> Self {
        Self {
            name,
            aliases: &[],
            names_must_agree: false,
            env: &[],
            inverse_env: None,
            sagemaker: &[],
            kind,
            default,
            by_device: false,
            is_option: false,
            role: Role::Used,
            text,
        }
    }

    /// A key that is usually written with `option.`.
    const fn option(
        name: &'static str,
        kind: Kind,
        default: &'static str,
        text: &'static str,
    ) -> Self {
        Self { is_option: true, ..Self::new(name, kind, default, text) }
    }

    /// An option for the engine.
    const fn passed(name: &'static str, text: &'static str) -> Self {
        Self { role: Role::Passed, ..Self::option(name, Kind::Text, "", text) }
    }

    /// An un-prefixed key for the engine.
    const fn argument(name: &'static str, text: &'static str) -> Self {
        Self { role: Role::Passed, ..Self::new(name, Kind::Text, "", text) }
    }

    /// A key that has no meaning here.
    const fn ignored(name: &'static str, text: &'static str) -> Self {
        Self { role: Role::Ignored, ..Self::new(name, Kind::Text, "", text) }
    }

    const fn alias(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    const fn agreeing(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, names_must_agree: true, ..self }
    }

    const fn env(self, env: &'static [&'static str]) -> Self {
        Self { env, ..self }
    }

    const fn inverse_env(self, variable: &'static str) -> Self {
        Self { inverse_env: Some(variable), ..self }
    }

    const fn sagemaker(self, sagemaker: &'static [&'static str]) -> Self {
        Self { sagemaker, ..self }
    }

    const fn by_device(self) -> Self {
        Self { by_device: true, ..self }
    }

    /// All names of the key, the canonical one first.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.aliases.iter().copied())
    }
}

/// The rows of a scope, in the order of the documentation.
pub(crate) fn groups(scope: Scope) -> &'static [(&'static str, &'static [Key])] {
    match scope {
        Scope::Server => server::GROUPS,
        Scope::Model => model::GROUPS,
    }
}

/// All rows of a scope.
pub(crate) fn all(scope: Scope) -> impl Iterator<Item = &'static Key> {
    groups(scope).iter().flat_map(|(_, keys)| keys.iter())
}

/// The row that has this name or alias; a `gpu.`, `cpu.` or `nc.` prefix is seen through.
pub(crate) fn find(scope: Scope, name: &str) -> Option<&'static Key> {
    let bare = device_prefixed(name);
    all(scope).find(|key| {
        key.names().any(|n| n == name) || (key.by_device && bare.is_some_and(|b| b == key.name))
    })
}

/// What follows a device prefix.
fn device_prefixed(name: &str) -> Option<&str> {
    ["gpu.", "cpu.", "nc."].iter().find_map(|prefix| name.strip_prefix(prefix))
}

/// A known name spelled as an environment variable has to spell it, in one case.
pub(crate) fn find_no_case(scope: Scope, name: &str) -> Option<&'static str> {
    all(scope).flat_map(Key::names).find(|known| known.eq_ignore_ascii_case(name))
}

/// The known name nearest to an unknown one, and how many edits away it is.
pub(crate) fn nearest(scope: Scope, name: &str) -> Option<(&'static str, usize)> {
    // Longer than any key: not a slip of the pen, and not worth comparing.
    if name.len() > 64 {
        return None;
    }
    let folded = name.to_ascii_lowercase().replace('-', "_");
    all(scope)
        .flat_map(Key::names)
        .map(|known| (known, strsim::osa_distance(&folded, &known.to_ascii_lowercase())))
        .min_by_key(|(_, distance)| *distance)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_texts_are_sentences() {
        for scope in [Scope::Server, Scope::Model] {
            let mut seen = BTreeSet::new();
            for key in all(scope) {
                for name in key.names() {
                    assert!(seen.insert(name), "{name} is in the table twice");
                }
                assert!(!key.text.is_empty() && !key.text.ends_with('.'), "{}", key.name);
                assert!(!key.text.contains('|'), "{}: would break the table", key.name);
            }
        }
    }

    #[test]
    fn defaults_are_values_their_kind_allows() {
        for scope in [Scope::Server, Scope::Model] {
            for key in all(scope).filter(|key| !key.default.is_empty()) {
                assert!(key.kind.allows(key.default), "{}={}", key.name, key.default);
            }
        }
    }

    #[test]
    fn the_nearest_name_is_found() {
        assert_eq!(nearest(Scope::Model, "max_batch_dely"), Some(("max_batch_delay", 1)));
        assert_eq!(nearest(Scope::Server, "job_que_size"), Some(("job_queue_size", 2)));
        assert_eq!(nearest(Scope::Model, "entry-point").map(|(name, _)| name), Some("entryPoint"));
        assert_eq!(nearest(Scope::Model, &"x".repeat(65)), None);
    }
}
