//! The engine: what it says of itself, and how it loads a model.

use drivetrain_engine::{Engine, EngineError, EngineInfo, LoadPlan, LoadRequest, LoadedModel};

use crate::devices;
use crate::error::PythonError;
use crate::interpreter;
use crate::model::Handler;
use crate::package::Package;
use crate::pool::Pool;
use crate::settings::Settings;
use crate::worker::Launch;

/// The engine: one value for the whole process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Python;

impl Engine for Python {
    fn info(&self) -> EngineInfo {
        let n_gpus = devices::n_gpus("/dev".as_ref());
        let gpus = (0..n_gpus).map(|idx| format!("cuda:{idx}"));
        EngineInfo {
            name: "python".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            description: "a model's own model.py, in worker processes".into(),
            devices: std::iter::once("cpu".into()).chain(gpus).collect(),
            ..EngineInfo::default()
        }
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        let handler = load(request).map_err(EngineError::from)?;
        Ok(LoadedModel::Request(Box::new(handler)))
    }

    fn plan(&self, request: &LoadRequest<'_>) -> Result<Option<LoadPlan>, EngineError> {
        // A model that is none of this engine's is refused as by `load`.
        Settings::read(request).map_err(EngineError::from)?;
        Ok(None)
    }
}

fn load(request: &LoadRequest<'_>) -> Result<Handler, PythonError> {
    // The workers' directory is the model's, where a relative path would mean another place.
    let model_dir =
        std::path::absolute(request.model_dir).unwrap_or_else(|_| request.model_dir.to_owned());
    let settings = Settings::read(&LoadRequest { model_dir: &model_dir, ..request.clone() })?;
    let services = request.services.clone();
    let package = Package::unpack()?;
    let prepared = interpreter::prepare(&settings, &package, &model_dir, &services)?;
    let launch = Launch {
        python: prepared.python,
        script: package.script(),
        entry: prepared.entry,
        model_dir,
        settings,
        services,
    };
    Pool::start(request.model_name, launch, package).map(Handler::new)
}
