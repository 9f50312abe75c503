//! Engine names, and what a model directory looks like before any engine has seen it.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// The most entries of a model directory that are looked at.
const MAX_DIR_ENTRIES: usize = 10_000;

/// Names DJL Serving and its users have for engines, without case, and the name here.
pub(crate) const ENGINE_ALIASES: [(&str, &str); 4] = [
    ("pytorch", "torch"),
    ("libtorch", "torch"),
    ("mpi", "deepspeed"),
    ("ft", "fastertransformer"),
];

/// Which engine a model asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum EngineChoice {
    /// The host picks by the kind of model and the hardware.
    #[default]
    Auto,
    /// This one, in lower case and with DJL's names replaced by ours. Whether there is such an
    /// engine, the host knows.
    Named(String),
}

impl EngineChoice {
    /// Reads an engine's name, without case; nothing and `auto` mean the host's choice.
    pub fn parse(name: &str) -> Self {
        let name = name.trim().to_lowercase();
        if name.is_empty() || name == "auto" {
            return Self::Auto;
        }
        let alias = ENGINE_ALIASES.iter().find(|(alias, _)| *alias == name);
        Self::Named(alias.map_or(name, |(_, ours)| (*ours).to_owned()))
    }

    /// The name, if one was asked for.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Auto => None,
            Self::Named(name) => Some(name),
        }
    }
}

impl fmt::Display for EngineChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name().unwrap_or("auto"))
    }
}

/// What answers a model's requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandlerKind {
    /// The host's own tasks, on whichever engine runs the model.
    BuiltIn,
    /// The model's own Python code: a file, a module's name or a URL.
    UserScript(PathBuf),
}

impl HandlerKind {
    /// Whether the model brings its own code.
    pub fn is_user_script(&self) -> bool {
        matches!(self, Self::UserScript(_))
    }
}

/// What the top level of a model directory holds, as far as it tells engines apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirLooks {
    /// `model.py`, else `<directory>.py`.
    pub script: Option<PathBuf>,
    /// A Hugging Face `config.json`.
    pub has_config_json: bool,
    /// A TorchServe archive's `MAR-INF`, which names a handler.
    pub has_mar_inf: bool,
    /// The engine DJL Serving would guess from the files, under our name.
    pub guess: Option<&'static str>,
}

impl DirLooks {
    /// Looks at a directory; one that can't be listed looks like nothing.
    pub fn of(dir: &Path) -> Self {
        let mut names: Vec<String> = fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .take(MAX_DIR_ENTRIES)
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !name.starts_with('.'))
            .collect();
        names.sort_unstable();
        let has = |name: &str| names.binary_search_by(|n| n.as_str().cmp(name)).is_ok();
        let script_name = dir
            .file_name()
            .and_then(|prefix| Some(format!("{}.py", prefix.to_str()?)))
            .filter(|name| has(name));
        let script = if has("model.py") { Some("model.py".to_owned()) } else { script_name };
        let mut looks = Self {
            script: script.map(|name| dir.join(name)),
            has_config_json: has("config.json"),
            has_mar_inf: has("MAR-INF"),
            guess: None,
        };
        looks.guess = looks.guess(&names);
        looks
    }

    /// The contract's order of guesses, newest version: first match wins.
    fn guess(&self, names: &[String]) -> Option<&'static str> {
        let ends =
            |suffixes: &[&str]| names.iter().any(|n| suffixes.iter().any(|s| n.ends_with(s)));
        let has = |name: &str| names.iter().any(|n| n == name);
        if self.has_mar_inf {
            Some("python")
        } else if ends(&[".pt"]) {
            Some("torch")
        } else if has("config.pbtxt") {
            Some("tritonserver")
        } else if has("saved_model.pb") {
            Some("tensorflow")
        } else if ends(&[".onnx"]) {
            Some("onnxruntime")
        } else if ends(&[".xgb", ".bst"]) {
            Some("xgboost")
        } else if ends(&[".skops", ".joblib", ".pkl", ".pickle", ".cloudpkl"])
            || self.script.is_some()
        {
            Some("python")
        } else {
            None
        }
    }
}

/// Whether an entry point is one of the handlers DJL's own Python package brings.
pub(crate) fn is_built_in_entry_point(entry_point: &str) -> bool {
    let module = entry_point.trim();
    module == "djl_python" || module.starts_with("djl_python.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_without_case() {
        for (text, name) in [
            ("Python", "python"),
            ("PYTHON", "python"),
            ("DeepSpeed", "deepspeed"),
            ("FasterTransformer", "fastertransformer"),
            ("Accelerate", "accelerate"),
            ("MPI", "deepspeed"),
            ("PyTorch", "torch"),
            ("torch", "torch"),
            ("OnnxRuntime", "onnxruntime"),
            (" nonesuch ", "nonesuch"),
        ] {
            assert_eq!(EngineChoice::parse(text), EngineChoice::Named(name.to_owned()));
        }
        for text in ["", "  ", "auto", "AUTO"] {
            assert_eq!(EngineChoice::parse(text), EngineChoice::Auto);
        }
    }

    #[test]
    fn a_directory_shows_its_kind() {
        let check = |files: &[&str], guess: Option<&str>, script: Option<&str>| {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let dir = dir.path().join("mymodel");
            fs::create_dir(&dir).expect("created");
            for file in files {
                fs::write(dir.join(file), b"").expect("written");
            }
            let looks = DirLooks::of(&dir);
            assert_eq!(looks.guess, guess, "{files:?}");
            assert_eq!(looks.script, script.map(|name| dir.join(name)), "{files:?}");
        };
        check(&[], None, None);
        check(&["config.json", "model.safetensors"], None, None);
        check(&["config.json", "model.py"], Some("python"), Some("model.py"));
        check(&["mymodel.py"], Some("python"), Some("mymodel.py"));
        check(&["mymodel.py", "model.py"], Some("python"), Some("model.py"));
        check(&["model.py", "mymodel.pt"], Some("torch"), Some("model.py"));
        check(&["MAR-INF", "model.pt"], Some("python"), None);
        check(&["model.onnx"], Some("onnxruntime"), None);
        check(&[".model.py.swp"], None, None);
    }

    #[test]
    fn djl_modules_are_built_in() {
        assert!(is_built_in_entry_point("djl_python.huggingface"));
        assert!(is_built_in_entry_point("djl_python.stable-diffusion"));
        assert!(!is_built_in_entry_point("model.py"));
        assert!(!is_built_in_entry_point("djl_python_mine"));
    }
}
