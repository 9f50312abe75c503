//! The files of the AWS command line: `credentials` and `config`.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::SourceError;

/// Largest file; an honest one has a few lines a profile.
const MAX_BYTES: u64 = 4 << 20;

/// The settings of one profile.
#[derive(Clone, Default)]
pub(super) struct Profile(HashMap<String, String>);

/// All profiles of both files.
#[derive(Default)]
pub(super) struct Profiles(HashMap<String, Profile>);

impl Profile {
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }
}

impl Profiles {
    /// Reads both files; one that is not there is empty. Where both set a key, `credentials` counts.
    pub(super) fn read(
        credentials: Option<&Path>,
        config: Option<&Path>,
    ) -> Result<Self, SourceError> {
        let mut profiles = Self::default();
        for (path, is_config) in [(config, true), (credentials, false)] {
            if let Some(text) = path.map(read).transpose()?.flatten() {
                profiles.add(&text, is_config);
            }
        }
        Ok(profiles)
    }

    pub(super) fn take(mut self, name: &str) -> Option<Profile> {
        self.0.remove(name)
    }

    fn add(&mut self, text: &str, is_config: bool) {
        let mut current: Option<&mut Profile> = None;
        for line in text.lines() {
            // An indented line belongs to the value above it: settings of one service.
            let nested = line.starts_with([' ', '\t']);
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(section) = line.strip_prefix('[').and_then(|l| l.split(']').next()) {
                let section = section.trim();
                let name = match (is_config, section.strip_prefix("profile ")) {
                    (true, Some(name)) => Some(name.trim()),
                    (true, None) => Some(section).filter(|name| *name == "default"),
                    (false, _) => Some(section),
                };
                current = name.map(|name| self.0.entry(name.to_owned()).or_default());
                continue;
            }
            if let (Some(profile), Some((key, value)), false) =
                (current.as_deref_mut(), line.split_once('='), nested)
            {
                let key = key.trim().to_ascii_lowercase();
                profile.0.insert(key, value.trim().to_owned());
            }
        }
    }
}

fn read(path: &Path) -> Result<Option<String>, SourceError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(SourceError::io(path, "open")(error)),
    };
    let mut text = String::new();
    let read = file.take(MAX_BYTES).read_to_string(&mut text);
    read.map_err(SourceError::io(path, "read"))?;
    Ok(Some(text))
}
