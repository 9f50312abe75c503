//! A model's chat templates: where they lie and what they are called.
//!
//! Source: transformers 5.23.0, `tokenization_utils_base.py` (`_from_pretrained` and
//! `get_chat_template`).

use std::collections::BTreeMap;

use serde_json::Value;

use crate::error::ArtifactError;
use crate::file::read_bounded;
use crate::json::JsonFile;
use crate::model_dir::ModelDir;

/// Largest template, in bytes.
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;

/// Most templates of one model.
const MAX_TEMPLATES: usize = 64;

const FILE: &str = "chat_template.jinja";
const FOLDER: &str = "additional_chat_templates";
const KEY: &str = "chat_template";

/// The templates that make one text of a conversation, in Jinja.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatTemplates {
    named: BTreeMap<String, String>,
}

impl ChatTemplates {
    /// Reads `chat_template.jinja` and the files of `additional_chat_templates`, else
    /// `chat_template` of `tokenizer_config.json`: a template, a list of objects with a name and a
    /// template, or an object of templates by name.
    ///
    /// # Errors
    /// A file is too large, there are too many, or the setting is of another form.
    pub(crate) fn read(dir: &ModelDir, config: &JsonFile) -> Result<Self, ArtifactError> {
        let mut named = BTreeMap::new();
        if let Some(path) = dir.file(FILE)? {
            named.insert("default".to_owned(), read_text(&path)?);
        }
        read_folder(dir, &mut named)?;
        if !named.is_empty() {
            return Ok(Self { named });
        }
        let wanted = "a template, or a list of objects with a name and a template";
        let mut add = |name: &str, template: &Value| {
            let template = template.as_str().ok_or_else(|| config.invalid(KEY, wanted))?;
            if template.len() as u64 > MAX_TEMPLATE_BYTES || named.len() == MAX_TEMPLATES {
                let most = format!(
                    "at most {MAX_TEMPLATES} templates of at most {MAX_TEMPLATE_BYTES} bytes each"
                );
                return Err(config.invalid(KEY, &most));
            }
            named.insert(name.to_owned(), template.to_owned());
            Ok(())
        };
        match config.get(KEY)? {
            None => {}
            Some(template @ Value::String(_)) => add("default", template)?,
            Some(Value::Array(templates)) => {
                for entry in templates {
                    let name = entry.get("name").and_then(Value::as_str);
                    let name = name.ok_or_else(|| config.invalid(KEY, wanted))?;
                    add(name, &entry["template"])?;
                }
            }
            Some(Value::Object(templates)) => {
                for (name, template) in templates {
                    add(name, template)?;
                }
            }
            Some(_) => return Err(config.invalid(KEY, wanted)),
        }
        Ok(Self { named })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    /// The template called `name`; the usual one is called `default`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.named.get(name).map(String::as_str)
    }

    /// All names with their templates, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.named.iter().map(|(name, template)| (name.as_str(), template.as_str()))
    }
}

/// The templates of the folder, each called as its file without `.jinja`.
fn read_folder(dir: &ModelDir, named: &mut BTreeMap<String, String>) -> Result<(), ArtifactError> {
    let Ok(entries) = std::fs::read_dir(dir.path().join(FOLDER)) else { return Ok(()) };
    for entry in entries.flatten().take(MAX_TEMPLATES) {
        let file = entry.file_name();
        let Some(name) = file.to_str().and_then(|file| file.strip_suffix(".jinja")) else {
            continue;
        };
        if let Some(path) = dir.file(&format!("{FOLDER}/{name}.jinja"))? {
            named.insert(name.to_owned(), read_text(&path)?);
        }
    }
    Ok(())
}

fn read_text(path: &std::path::Path) -> Result<String, ArtifactError> {
    let text = read_bounded(path, MAX_TEMPLATE_BYTES)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
