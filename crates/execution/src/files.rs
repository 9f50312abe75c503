//! A model's files, opened and held against its architecture.

use std::path::{Path, PathBuf};

use drivetrain_artifacts::{ModelConfig, ModelDir, QuantizationMethod, UnpackOptions, Weights};
use drivetrain_engine::{EngineError, LoadRequest, LogLevel};
use drivetrain_transformer::{AdapterFiles, Architecture, CanonicalWeights};

use crate::error::model_error;

/// A model's description and its mapped weights.
#[derive(Debug)]
pub struct ModelFiles {
    /// What is to be computed.
    pub architecture: Architecture,
    weights: Weights,
    adapter: Option<AdapterFiles>,
    /// The directory, which archives were unpacked to and which lives as long as this.
    dir: ModelDir,
}

impl ModelFiles {
    /// Opens what `request` names. Headers are read, weights are mapped.
    ///
    /// # Errors
    /// A file is missing or breaks its format, there is no description of the model, or
    /// `option.quantize` names a method of packing that is not the model's.
    pub fn open(request: &LoadRequest<'_>) -> Result<Self, EngineError> {
        let dir = ModelDir::open(request.model_dir, &UnpackOptions::default())
            .map_err(|error| model_error(&error))?;
        let config = ModelConfig::read(&dir).map_err(|error| model_error(&error))?;
        let architecture =
            Architecture::from_config(&config).map_err(|error| model_error(&error))?;
        let weights = Weights::open(&dir).map_err(|error| model_error(&error))?;
        check_quantize(request, &weights)?;
        let adapter = request.adapter_dir.map(AdapterFiles::open).transpose();
        let adapter = adapter.map_err(|error| model_error(&error))?;
        Ok(Self { architecture, weights, adapter, dir })
    }

    /// The weights under their canonical names, with what the adapter of the request makes of them.
    ///
    /// # Errors
    /// A tensor is missing or has another shape; the error names each.
    pub fn canonical(&self) -> Result<CanonicalWeights<'_>, EngineError> {
        match &self.adapter {
            Some(adapter) => {
                CanonicalWeights::with_adapter(&self.architecture, &self.weights, adapter)
            }
            None => CanonicalWeights::new(&self.architecture, &self.weights),
        }
        .map_err(|error| model_error(&error))
    }

    /// The directory that has the files, or that an archive was unpacked to.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The files that weights, and their meaning, are read from; an adapter's aside.
    pub fn sources(&self) -> Vec<PathBuf> {
        let config = self.dir.path().join("config.json");
        let config = Some(config).filter(|path| path.is_file());
        self.weights.files().iter().cloned().chain(config).collect()
    }

    /// Says in the log which tensors of the files nothing is computed with.
    pub fn warn_of_unused(request: &LoadRequest<'_>, weights: &CanonicalWeights<'_>) {
        const LISTED: usize = 8;
        let unused = weights.unused();
        if unused.is_empty() {
            return;
        }
        let more = if unused.len() > LISTED { ", ..." } else { "" };
        let names = unused[..unused.len().min(LISTED)].join(", ");
        request.services.log(
            LogLevel::Warn,
            &format!(
                "model {}: {} tensors of its files are not used: {names}{more}",
                request.model_name,
                unused.len()
            ),
        );
    }
}

/// Whether `option.quantize` names a method of packing: matrices then stay as the model has them.
pub fn is_packed_form(quantize: &str) -> bool {
    let word = quantize.trim();
    [QuantizationMethod::Gptq, QuantizationMethod::Awq]
        .iter()
        .any(|method| word.eq_ignore_ascii_case(method.name()))
}

/// A method of packing must be that of the files: it takes samples to make one.
fn check_quantize(request: &LoadRequest<'_>, weights: &Weights) -> Result<(), EngineError> {
    let Some(wanted) = request.options.get("quantize").filter(|word| is_packed_form(word)) else {
        return Ok(());
    };
    let found = weights.quantization().map(|config| config.method.name());
    if found.is_some_and(|found| wanted.trim().eq_ignore_ascii_case(found)) {
        return Ok(());
    }
    let found = found.map_or_else(
        || "it has no quantization_config".to_owned(),
        |found| format!("its quantization_config says {found}"),
    );
    Err(EngineError::bad_input(format!(
        "option.quantize={wanted}: the model is not packed so, {found}; leave the option out, or take \
         q8 or q4, which are made at load"
    )))
}
