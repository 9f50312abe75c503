//! Which models are loaded at start.

use std::fs;
use std::path::{Path, PathBuf};

use super::Machine;
use crate::environment::Environment;
use crate::error::ConfigError;
use crate::layers::Layers;
use crate::server::{LoadModels, ServerOverrides};
use crate::source::{Source, Sourced};
use crate::spec::{self, ModelSpec, Origin};

/// How the command line's models are shown.
const MODELS_FLAG: &str = "--models";

type Start = (Sourced<LoadModels>, Option<Sourced<PathBuf>>, Vec<ModelSpec>);

/// What `load_models` says, the model store, and the models that follow from both.
pub(super) fn models(
    l: &mut Layers,
    cli: &ServerOverrides,
    env: &Environment,
    machine: &Machine,
) -> Result<Start, ConfigError> {
    let load = load_models(l, cli)?;
    let mut store: Option<Sourced<PathBuf>> = l.get_opt("model_store")?;
    let multi_model = l.get::<bool>("sagemaker_multi_model")?.value;
    if let (None, Some(path)) = (&store, &machine.model_dir) {
        store = Some(Sourced::new(path.clone(), Source::Found { path: path.clone() }));
    }
    let mut models = match (&load.value, &store) {
        (LoadModels::Listed(specs), _) => specs.clone(),
        (LoadModels::None, _) | (LoadModels::All, None) => Vec::new(),
        (LoadModels::All, Some(store)) => scan_store(l, store)?,
    };
    if let Some(id) = env.get("HF_MODEL_ID") {
        add_model_id(l, &mut models, id.trim());
    }
    let nothing_asked = load.source.is_default() && store.is_none() && !multi_model;
    if let (true, true, Some(path)) = (models.is_empty(), nothing_asked, &cli.default_model) {
        models.push(ModelSpec::at(path.to_string_lossy()));
    }
    Ok((load, store, models))
}

/// `SERVING_LOAD_MODELS`, else the command line's models, else the file's list.
fn load_models(l: &mut Layers, cli: &ServerOverrides) -> Result<Sourced<LoadModels>, ConfigError> {
    let set: Option<Sourced<String>> = l.get_opt("load_models")?;
    let from_file = matches!(&set, None | Some(Sourced { source: Source::File { .. }, .. }));
    if cli.models.is_empty() || !from_file {
        let Some(Sourced { value, source }) = set else {
            return Ok(Sourced::built_in(LoadModels::All));
        };
        if !cli.models.is_empty() {
            l.warn(source.clone(), "load_models goes before the models of the command line");
        }
        let load = match keyword(&value) {
            Some(load) => load,
            None => LoadModels::Listed(ModelSpec::parse_list(&value, &source)?),
        };
        return Ok(Sourced::new(load, source));
    }
    let source = Source::CommandLine { flag: MODELS_FLAG };
    if let [only] = cli.models.as_slice()
        && let Some(load) = keyword(only)
    {
        return Ok(Sourced::new(load, source));
    }
    let mut specs = Vec::new();
    for entry in &cli.models {
        let spec = ModelSpec::parse(entry, &source);
        match spec {
            // A path of the command line may have commas and blanks in it; a list has them too.
            Ok(spec) if !entry.contains([',', ' ']) || Path::new(&spec.url).exists() => {
                specs.push(spec);
            }
            _ if Path::new(entry).exists() => {
                specs.push(ModelSpec { source: source.clone(), ..ModelSpec::at(entry) });
            }
            Ok(_) => specs.extend(ModelSpec::parse_list(entry, &source)?),
            Err(e) => return Err(e),
        }
    }
    Ok(Sourced::new(LoadModels::Listed(specs), source))
}

fn keyword(text: &str) -> Option<LoadModels> {
    match text.trim() {
        "" | "ALL" => Some(LoadModels::All),
        "NONE" => Some(LoadModels::None),
        _ => None,
    }
}

/// The store's models: each entry, if all that is visible are directories and archives; else the
/// store is itself one model.
fn scan_store(l: &mut Layers, store: &Sourced<PathBuf>) -> Result<Vec<ModelSpec>, ConfigError> {
    let Sourced { value: root, source } = store;
    if !root.is_dir() {
        let message = format!("model_store={}: no such directory", root.display());
        l.warn(source.clone(), message);
        return Ok(Vec::new());
    }
    let failed = |e| ConfigError::ModelStore { at: source.clone(), path: root.clone(), source: e };
    let mut models = Vec::new();
    let mut all_are_models = true;
    for entry in fs::read_dir(root).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            l.warn(Source::Found { path }, "not loaded: its name is not UTF-8");
            continue;
        };
        if name.starts_with('.') {
            continue;
        }
        let is_model = path.is_dir() || (path.is_file() && spec::is_archive(name));
        all_are_models &= is_model;
        models.push(ModelSpec { source: source.clone(), ..ModelSpec::at(path.to_string_lossy()) });
    }
    if !all_are_models {
        let root = ModelSpec::at(root.to_string_lossy());
        return Ok(vec![ModelSpec { source: source.clone(), ..root }]);
    }
    models.sort_by(|a, b| a.url.cmp(&b.url));
    Ok(models)
}

/// Adds the model of `HF_MODEL_ID`, unless it is a directory that is loaded anyway.
fn add_model_id(l: &mut Layers, models: &mut Vec<ModelSpec>, id: &str) {
    let source = Source::Env { variable: "HF_MODEL_ID".to_owned() };
    let path = Path::new(id.strip_prefix("file://").unwrap_or(id));
    let origin = if path.exists() { Origin::Artifact } else { Origin::ModelId };
    let spec = ModelSpec { origin, source: source.clone(), ..ModelSpec::at(id) };
    if origin == Origin::Artifact {
        let canonical = path.canonicalize().ok();
        let same = |other: &ModelSpec| Path::new(&other.url).canonicalize().ok() == canonical;
        if models.iter().any(same) {
            l.warn(source, format!("{id} is loaded already; HF_MODEL_ID adds nothing"));
            return;
        }
    }
    models.push(spec);
}
