//! One model to load: the `[name:version:engine:devices]=url` syntax and default names.

use std::fmt;
use std::path::Path;

use crate::engine::EngineChoice;
use crate::error::ConfigError;
use crate::source::Source;

/// Suffixes of an archive, longest first.
const ARCHIVE_SUFFIXES: [&str; 6] = [".tar.gz", ".tar.z", ".tgz", ".tar", ".zip", ".mar"];

/// A model that is to be loaded, as `load_models`, the command line or a management request name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSpec {
    /// The name it is registered under; [`ModelSpec::name_or_default`] where this is `None`.
    pub name: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// The engine's name as written; it goes before what `serving.properties` says.
    pub engine: Option<String>,
    /// The devices as written: `*`, or a list with `;`.
    pub devices: Option<String>,
    /// A directory, an archive, or a URL; for [`Origin::ModelId`] a model id.
    pub url: String,
    /// How `url` is meant.
    pub origin: Origin,
    /// Where the model was asked for.
    pub source: Source,
}

/// How a [`ModelSpec`]'s `url` is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// The place of a model directory or an archive.
    #[default]
    Artifact,
    /// A model id (hub id, `s3://` prefix) that stands for a directory with nothing but
    /// `option.model_id` in it; `HF_MODEL_ID` and hub ids of the command line make these.
    ModelId,
}

impl ModelSpec {
    /// What an entry may look like, for messages.
    pub(crate) const WANTED: &str =
        "[name:version:engine:devices]=url, name=path or path, devices separated with ;";

    /// A model at a path or URL, everything else left to its files and to defaults. What is no path
    /// of this machine and looks like `org/name`, or begins with `hf://`, is an id of the hub.
    pub fn at(url: impl Into<String>) -> Self {
        let url = url.into();
        Self {
            name: None,
            version: None,
            engine: None,
            devices: None,
            origin: if is_hub_id(&url) { Origin::ModelId } else { Origin::Artifact },
            url,
            source: Source::Default,
        }
    }

    /// Reads one entry.
    ///
    /// The part before the first `=` names the model, unless a `/` or a `?` comes first: then that
    /// `=` belongs to the URL.
    ///
    /// # Errors
    /// An empty URL, more than four parts before the `=`, or a name that can't stand in a URL.
    pub fn parse(entry: &str, source: &Source) -> Result<Self, ConfigError> {
        let bad = |wanted: &str| ConfigError::Value {
            at: source.clone(),
            key: "load_models".to_owned(),
            value: entry.to_owned(),
            wanted: wanted.to_owned(),
        };
        let (head, url) = match entry.split_once('=') {
            Some((head, url)) if !head.contains(['/', '?']) => (head, url),
            _ => ("", entry),
        };
        let url = url.trim();
        if url.is_empty() {
            return Err(bad(Self::WANTED));
        }
        let head = head.trim();
        let head = match (head.strip_prefix('['), head.strip_suffix(']')) {
            (Some(rest), Some(_)) => rest.strip_suffix(']').ok_or_else(|| bad(Self::WANTED))?,
            (None, None) => head,
            _ => return Err(bad(Self::WANTED)),
        };
        let mut parts = head.split(':').map(|part| {
            let part = part.trim();
            (!part.is_empty()).then(|| part.to_owned())
        });
        let mut next = || parts.next().flatten();
        let (name, version, engine, devices) = (next(), next(), next(), next());
        if parts.next().is_some() {
            return Err(bad(Self::WANTED));
        }
        for part in [&name, &version].into_iter().flatten() {
            if part.contains(['\\', '#', '%']) || part.chars().any(char::is_control) {
                return Err(bad("a name and a version without \\ # %, as they stand in URLs"));
            }
        }
        Ok(Self { name, version, engine, devices, source: source.clone(), ..Self::at(url) })
    }

    /// Reads a list of entries separated with commas or blanks.
    ///
    /// # Errors
    /// The first entry that is none.
    pub fn parse_list(list: &str, source: &Source) -> Result<Vec<Self>, ConfigError> {
        list.split([',', ' ', '\t'])
            .filter(|entry| !entry.is_empty())
            .map(|entry| Self::parse(entry, source))
            .collect()
    }

    /// The name the model is registered under.
    pub fn name_or_default(&self) -> String {
        match (&self.name, self.origin) {
            (Some(name), _) => name.clone(),
            (None, Origin::Artifact) => default_name(&self.url),
            (None, Origin::ModelId) => match self.url.strip_prefix("hf://") {
                Some(id) => word_characters(id),
                None if self.url.contains("://") => default_name(&self.url),
                None => word_characters(&self.url),
            },
        }
    }

    /// The engine this entry asks for, if it names one.
    pub fn engine_choice(&self) -> Option<EngineChoice> {
        self.engine.as_deref().map(EngineChoice::parse)
    }

    /// What the entry says of the model's settings, the arguments of its URL included, as
    /// registration parameters for [`ModelInputs::registration`](crate::ModelInputs).
    pub fn registration(&self) -> Vec<(String, String)> {
        let id = (self.origin == Origin::ModelId).then_some(&self.url);
        let own =
            [("engine", self.engine.as_ref()), ("device", self.devices.as_ref()), ("model_id", id)]
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), value?.clone())));
        let query = if has_scheme(&self.url) { self.url.split_once('?') } else { None };
        let query = query.map_or("", |(_, query)| query);
        own.chain(form_urlencoded::parse(query.as_bytes()).into_owned()).collect()
    }

    /// `url` without its arguments, which are the registration's. Of a web address they belong to the
    /// address: they may be what grants access to it.
    pub fn place(&self) -> &str {
        let is_web = ["http://", "https://"].iter().any(|scheme| self.url.starts_with(scheme));
        match has_scheme(&self.url) && !is_web {
            true => self.url.split('?').next().unwrap_or(&self.url),
            false => &self.url,
        }
    }

    /// The file or directory that `url` names on this machine; `None` for a model id and for a URL
    /// of another scheme than `file:`.
    pub fn local_path(&self) -> Option<&Path> {
        if self.origin == Origin::ModelId {
            return None;
        }
        if !has_scheme(&self.url) {
            return Some(Path::new(&self.url));
        }
        let path = self.url.strip_prefix("file:")?;
        let path = path.strip_prefix("//").unwrap_or(path);
        Some(Path::new(path.split('?').next().unwrap_or(path)))
    }
}

impl fmt::Display for ModelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name_or_default(), self.url)
    }
}

/// The name of a model that was given none: the last segment of the URL's path without the suffix of
/// an archive or a GGUF file, everything but ASCII letters, digits and `_` made `_`.
pub fn default_name(url: &str) -> String {
    let path = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = path.strip_prefix("file:").unwrap_or(path);
    let path = path.split(['?', '#']).next().unwrap_or(path);
    let is_directory = path.ends_with('/');
    let path = path.trim_end_matches('/');
    let last = path.rsplit('/').next().unwrap_or(path);
    let name = if is_directory { last } else { without_archive_suffix(without_gguf(last)) };
    match name {
        // The path itself has no name: a relative path to here, or a root.
        "" | "." | ".." => Path::new(url)
            .canonicalize()
            .ok()
            .and_then(|path| Some(word_characters(path.file_name()?.to_str()?)))
            .unwrap_or_else(|| "model".to_owned()),
        name => word_characters(name),
    }
}

/// Whether a text that stands where a path may stand is an id of the hub: one that says so, or
/// `org/name` where neither this path nor its first part is on this machine.
fn is_hub_id(text: &str) -> bool {
    if text.starts_with("hf://") {
        return true;
    }
    let is_part = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '~'])
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.@".contains(&b))
    };
    let Some((org, name)) = text.split_once('/') else { return false };
    is_part(org)
        && is_part(name)
        && !is_archive(name)
        && !Path::new(text).exists()
        && !Path::new(org).exists()
}

/// Whether a URL names its scheme, so that a `?` begins its query; a path has none.
fn has_scheme(url: &str) -> bool {
    url.starts_with("file:") || url.contains("://")
}

/// The name of a GGUF file without its suffix.
fn without_gguf(name: &str) -> &str {
    let stem = name
        .rsplit_once('.')
        .filter(|(stem, end)| !stem.is_empty() && end.eq_ignore_ascii_case("gguf"));
    stem.map_or(name, |(stem, _)| stem)
}

/// Whether a file name is an archive's.
pub(crate) fn is_archive(name: &str) -> bool {
    without_archive_suffix(name).len() < name.len()
}

fn without_archive_suffix(name: &str) -> &str {
    ARCHIVE_SUFFIXES
        .iter()
        .find_map(|suffix| {
            let (stem, end) = name.split_at_checked(name.len().checked_sub(suffix.len())?)?;
            (end.eq_ignore_ascii_case(suffix) && !stem.is_empty()).then_some(stem)
        })
        .unwrap_or(name)
}

fn word_characters(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests;
