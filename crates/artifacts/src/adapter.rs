//! `adapter_config.json`: where the weights are that an adapter changes.

use crate::error::ArtifactError;
use crate::json::JsonFile;
use crate::model_dir::ModelDir;
use crate::weights::has_hugging_face_weights;

/// The file that makes a directory an adapter's.
const CONFIG: &str = "adapter_config.json";
/// Largest file.
const MAX_BYTES: u64 = 1 << 20;

/// Where the base of an adapter is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdapterBase {
    /// In the adapter's own directory.
    Here,
    /// Elsewhere.
    At {
        /// `base_model_name_or_path`: a path, or an id of the hub.
        name: String,
        /// `revision`, of a hub id.
        revision: Option<String>,
    },
}

impl AdapterBase {
    /// The base of the adapter in `dir`; `None` if there is no adapter.
    ///
    /// # Errors
    /// The config can't be read, or names no base where there are no weights beside it.
    pub fn find(dir: &ModelDir) -> Result<Option<Self>, ArtifactError> {
        let Some(path) = dir.file(CONFIG)? else { return Ok(None) };
        let json = JsonFile::read(&path, MAX_BYTES)?;
        if dir.file("config.json")?.is_some() && has_hugging_face_weights(dir)? {
            return Ok(Some(Self::Here));
        }
        let name = json.str("base_model_name_or_path")?.to_owned();
        let revision = json.opt_str("revision")?.map(str::to_owned);
        Ok(Some(Self::At { name, revision }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_is_beside_the_adapter_or_named_by_it() {
        let dir = tempfile::tempdir().unwrap();
        let find = || AdapterBase::find(&ModelDir::open(dir.path(), &Default::default()).unwrap());
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("config.json", "{}");
        assert_eq!(find().unwrap(), None);
        write(CONFIG, r#"{"base_model_name_or_path": "a/b", "revision": null}"#);
        write("adapter_model.safetensors", "");
        let at = |name: &str| AdapterBase::At { name: name.to_owned(), revision: None };
        assert_eq!(find().unwrap(), Some(at("a/b")));
        write("model.safetensors", "");
        assert_eq!(find().unwrap(), Some(AdapterBase::Here));
        write(CONFIG, "{}");
        assert_eq!(find().unwrap(), Some(AdapterBase::Here));
        std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        let error = find().unwrap_err().to_string();
        assert!(error.contains("base_model_name_or_path is missing"), "{error}");
    }
}
