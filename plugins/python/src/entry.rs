//! Where the handler is: what `option.entryPoint` names, else what the model's directory holds.

use std::path::{Component, Path, PathBuf};

use crate::error::PythonError;

/// Where the handler is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A file.
    File(PathBuf),
    /// A module that the interpreter finds.
    Module(String),
    /// A file of a web server.
    Url(String),
    /// The handler that a TorchServe archive's manifest names.
    Archive,
}

impl Entry {
    /// The entry point of the model in `dir`, whose setting is `named`.
    pub(crate) fn find(named: Option<&str>, dir: &Path) -> Result<Self, PythonError> {
        match named.map(str::trim).filter(|named| !named.is_empty()) {
            Some(named) => Self::of_setting(named, dir),
            None => Self::of_dir(dir),
        }
    }

    fn of_setting(named: &str, dir: &Path) -> Result<Self, PythonError> {
        if named == "djl_python" || named.starts_with("djl_python.") {
            return Err(PythonError::BuiltInHandler { entry: named.to_owned() });
        }
        if named.starts_with("https://") || named.starts_with("http://") {
            return Ok(Self::Url(named.to_owned()));
        }
        // A path is looked up in the model's directory; an absolute one stays as it is.
        let candidates = [dir.join(named), dir.join(format!("{named}.py"))];
        let leaves = Path::new(named).components().any(|part| part == Component::ParentDir);
        if leaves {
            let expected = "a file inside the model's directory, without `..`";
            return Err(PythonError::Option {
                key: "entryPoint",
                value: named.to_owned(),
                expected,
            });
        }
        if let Some(file) = candidates.into_iter().find(|path| path.is_file()) {
            return Ok(Self::File(file));
        }
        let part = |part: &str| {
            !part.starts_with(|c: char| c.is_ascii_digit())
                && !part.is_empty()
                && part.chars().all(|c| c.is_alphanumeric() || c == '_')
        };
        if !named.ends_with(".py") && named.split('.').all(part) {
            return Ok(Self::Module(named.to_owned()));
        }
        let expected = "a Python file of the model's directory, a module's name or a URL";
        Err(PythonError::Option { key: "entryPoint", value: named.to_owned(), expected })
    }

    fn of_dir(dir: &Path) -> Result<Self, PythonError> {
        let named = dir.file_name().map(|name| format!("{}.py", name.to_string_lossy()));
        let scripts = [Some("model.py".to_owned()), named];
        let mut files = scripts.into_iter().flatten().map(|name| dir.join(name));
        if let Some(file) = files.find(|path| path.is_file()) {
            return Ok(Self::File(file));
        }
        if dir.join("MAR-INF/MANIFEST.json").is_file() {
            return Ok(Self::Archive);
        }
        Err(PythonError::NoEntryPoint { dir: dir.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[&str], named: Option<&str>, expect: Result<Entry, &str>) {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("mine");
        for file in files {
            let path = dir.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let short = |entry| match entry {
            Entry::File(path) => Entry::File(path.strip_prefix(&dir).unwrap_or(&path).to_owned()),
            other => other,
        };
        match (Entry::find(named, &dir).map(short), expect) {
            (Ok(found), Ok(expect)) => assert_eq!(found, expect, "{named:?}"),
            (Err(found), Err(expect)) => {
                assert!(found.to_string().contains(expect), "{named:?}: {found}");
            }
            (found, expect) => panic!("{named:?}: {found:?}, not {expect:?}"),
        }
    }

    #[test]
    fn the_setting_goes_before_the_files() {
        let file = |name: &str| Ok(Entry::File(name.into()));
        check(&["model.py", "mine.py"], None, file("model.py"));
        check(&["mine.py"], None, file("mine.py"));
        check(&["MAR-INF/MANIFEST.json"], None, Ok(Entry::Archive));
        check(&["other.txt"], None, Err("there is no Python handler"));
        check(&["model.py", "serve.py"], Some("serve.py"), file("serve.py"));
        check(&["model.py", "serve.py"], Some("serve"), file("serve.py"));
        check(&["code/serve.py"], Some("code/serve.py"), file("code/serve.py"));
        check(&["model.py"], Some(" "), file("model.py"));
        check(&[], Some("my.module"), Ok(Entry::Module("my.module".into())));
        check(&[], Some("https://h/x.py"), Ok(Entry::Url("https://h/x.py".into())));
        check(&["model.py"], Some("djl_python.huggingface"), Err("served by the other engines"));
        check(&[], Some("nonesuch.py"), Err("option.entryPoint=nonesuch.py: expected"));
        check(&["../x.py"], Some("../x.py"), Err("without `..`"));
        check(&[], Some("a;b"), Err("option.entryPoint=a;b: expected"));
    }
}
