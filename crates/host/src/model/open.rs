//! The files of a model that is to be loaded, and the adapters that belong to it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use drivetrain_artifacts::{AdapterBase, ModelDir, UnpackOptions};
use drivetrain_config::{ModelConfig, ModelInputs, Origin};
use drivetrain_engine::TokenModel;
use drivetrain_sources::{Stop, Watch};

use super::Shared;
use super::inbox::Inbox;
use super::load::LoadInputs;
use crate::HostError;
use crate::adapters::{self, Adapters, Mail};
use crate::code_adapters::CodeAdapters;
use crate::sources::{self, Names, Place};

/// Adapters that are loaded at once where `option.max_loras` does not say.
const MAX_LORAS: usize = 4;

/// What a model is loaded from.
pub(super) struct Opened {
    pub(super) config: Arc<ModelConfig>,
    /// The model's own directory, where it has one apart from its weights.
    pub(super) own: Option<ModelDir>,
    /// The weights, with the adapter that becomes a part of them.
    pub(super) weights: ModelDir,
    pub(super) adapter: Option<ModelDir>,
    /// Tokenizer, template, generation config: the adapter's own go before the model's.
    pub(super) texts: ModelDir,
}

/// The adapters of a model with `option.enable_lora`; those in its directory are there at once.
pub(super) fn adapters_of(
    opened: &Opened,
    inbox: &Arc<Inbox<Mail>>,
    model: &mut dyn TokenModel,
) -> Result<Option<Arc<Adapters>>, HostError> {
    let options = &opened.config.options;
    if !enables_lora(&opened.config) {
        return Ok(None);
    }
    let source = |key: &'static str, value: &str, reason: &str| HostError::Source {
        key,
        value: value.to_owned(),
        reason: reason.to_owned(),
    };
    if !model.info().has_adapters {
        let reason = "the model's engine computes no adapters beside the weights";
        return Err(source("option.enable_lora", "true", reason));
    }
    let slots = |key: &'static str, name: &'static str| -> Result<Option<usize>, HostError> {
        let Some(text) = options.get(key) else { return Ok(None) };
        let number = text.trim().parse::<usize>().ok().filter(|n| *n > 0);
        number.map(Some).ok_or_else(|| source(name, text, "expected a whole number above 0"))
    };
    let on_device = slots("max_loras", "option.max_loras")?.unwrap_or(MAX_LORAS);
    let in_memory = slots("max_cpu_loras", "option.max_cpu_loras")?.unwrap_or(on_device);
    let root = opened.own.as_ref().unwrap_or(&opened.weights).path();
    let adapters = Adapters::new(Arc::clone(inbox), root.to_owned(), on_device.max(in_memory));
    let mut found = adapters::found_in(&root.join("adapters"))?;
    if opened.own.is_some() {
        let more = adapters::found_in(&opened.weights.path().join("adapters"))?;
        let is_new = |(name, _): &(String, PathBuf)| found.iter().all(|(known, _)| known != name);
        let more: Vec<_> = more.into_iter().filter(is_new).collect();
        found.extend(more);
    }
    adapters.register_found(found, |id, dir| model.load_adapter(id, dir))?;
    Ok(Some(Arc::new(adapters)))
}

/// The adapters of a model with code of its own and `option.enable_lora`.
pub(super) fn code_adapters_of(opened: &Opened) -> Result<Option<CodeAdapters>, HostError> {
    if !enables_lora(&opened.config) || !runs_own_code(&opened.config) {
        return Ok(None);
    }
    let root = opened.own.as_ref().unwrap_or(&opened.weights).path();
    CodeAdapters::new(root).map(Some)
}

fn enables_lora(config: &ModelConfig) -> bool {
    let text = config.options.get("enable_lora");
    text.is_some_and(|text| text.trim().eq_ignore_ascii_case("true"))
}

/// Opens the model's directory, its settings, and the directory of its weights, each brought to this
/// machine where it is elsewhere, of which `watch` is told.
pub(super) fn open(
    shared: &Shared,
    inputs: &LoadInputs,
    watch: &dyn Watch,
) -> Result<Opened, HostError> {
    let name = shared.name.as_str();
    shared.lifecycle.progress("opening the files", 0, 0);
    let unpack = UnpackOptions::default();
    let spec = &inputs.spec;
    let bring = |place: Place<'_>| sources::bring(&place, &inputs.server, &inputs.env, watch);
    let own = || -> Result<ModelDir, HostError> {
        let path = bring(Place {
            key: "url",
            text: spec.place(),
            revision: None,
            beside: None,
            names: Names::Paths,
            options: None,
        })?;
        shared.lifecycle.progress("opening the files", 0, 0);
        Ok(ModelDir::open(&path, &unpack)?)
    };
    let dir = match spec.origin {
        Origin::Artifact => Some(own()?),
        _ => None,
    };
    let root = dir.as_ref().map_or_else(|| Path::new(&spec.url), |dir| dir.path());
    let (config, warnings) = ModelConfig::resolve(ModelInputs {
        name,
        dir: root,
        server: &inputs.server,
        env: &inputs.env,
        registration: &[spec.registration(), inputs.settings.clone()].concat(),
    })?;
    for warning in warnings {
        tracing::warn!(model = name, at = %warning.at, "{}", warning.message);
    }
    for note in &config.notes {
        tracing::info!(model = name, "{note}");
    }
    shared.lifecycle.set_load_limit(config.model_loading_timeout.value);
    let config = Arc::new(config);
    let _ = shared.config.set(Arc::clone(&config));
    let (own, files) = match (&config.model_id, dir) {
        // The model's own code takes its weights from where it likes, but for what it can't reach.
        (Some(id), Some(dir)) if runs_own_code(&config) && !id.value.contains("://") => (None, dir),
        (Some(id), dir) => {
            let path = bring(Place {
                key: "option.model_id",
                text: &id.value,
                revision: config.revision.as_ref().map(|revision| revision.value.as_str()),
                beside: dir.as_ref().map(ModelDir::path),
                names: Names::Hub,
                options: Some(&config.options),
            })?;
            // What follows a `?` may be what grants access.
            let model_id = id.value.split('?').next();
            tracing::info!(model = name, model_id, set_by = %id.source,
                path = %path.display(), "the weights are elsewhere");
            shared.lifecycle.progress("opening the files", 0, 0);
            (dir, ModelDir::open(&path, &unpack)?)
        }
        (None, Some(dir)) => (None, dir),
        (None, None) => (None, own()?),
    };
    if runs_own_code(&config) {
        let texts = files.clone();
        return Ok(Opened { config, own, weights: files, adapter: None, texts });
    }
    let base = match base_of(&config, &files)? {
        None => {
            return Ok(Opened { config, own, texts: files.clone(), weights: files, adapter: None });
        }
        Some(AdapterBase::Here) => files.clone(),
        Some(AdapterBase::At { name: base, revision }) => {
            let path = bring(Place {
                key: "base_model_name_or_path in adapter_config.json",
                text: &base,
                revision: revision.as_deref(),
                beside: Some(files.path()),
                names: Names::Hub,
                options: Some(&config.options),
            })?;
            tracing::info!(model = name, base, path = %path.display(),
                "the model is an adapter, which is merged into its base");
            shared.lifecycle.progress("opening the files", 0, 0);
            ModelDir::open(&path, &unpack)?
        }
    };
    let texts = files.clone().over(&base);
    Ok(Opened { config, own, weights: base, adapter: Some(files), texts })
}

/// Whether requests are answered by code that comes with the model.
pub(super) fn runs_own_code(config: &ModelConfig) -> bool {
    config.engine.value.name() == Some("python") && config.python_handler.is_user_script()
}

/// The base of the adapter that the model is, if it is one and is to be merged.
fn base_of(config: &ModelConfig, files: &ModelDir) -> Result<Option<AdapterBase>, HostError> {
    let key = "option.is_peft_model";
    let wrong =
        |value: &str, reason: String| HostError::Source { key, value: value.to_owned(), reason };
    let wanted = config.options.get("is_peft_model").map(|text| text.trim().to_ascii_lowercase());
    match wanted.as_deref() {
        Some("false") => Ok(None),
        None | Some("") => Ok(AdapterBase::find(files)?),
        Some("true") => match AdapterBase::find(files)? {
            Some(base) => Ok(Some(base)),
            None => {
                let dir = files.path().display();
                Err(wrong("true", format!("there is no adapter_config.json in {dir}")))
            }
        },
        Some(other) => Err(wrong(other, "expected true or false".to_owned())),
    }
}

/// Shows a download as a part of loading, and ends it with that.
pub(super) struct LoadWatch<'a>(pub(super) &'a Shared);

impl Watch for LoadWatch<'_> {
    fn progress(&self, stage: &str, done: u64, total: u64) {
        self.0.lifecycle.beat();
        self.0.lifecycle.progress(stage, done, total);
    }

    fn stop(&self) -> Option<Stop> {
        if self.0.stop.load(Ordering::Relaxed) {
            return Some(Stop::Cancelled);
        }
        let is_late = self.0.lifecycle.load_is_late();
        is_late.then(|| Stop::Late(self.0.lifecycle.load_limit()))
    }
}
