//! The engine: what it says of itself, and its options.

use std::num::NonZeroUsize;

use drivetrain_engine::{
    Engine, EngineError, EngineInfo, LoadPlan, LoadRequest, LoadedModel, MERGES_ADAPTERS,
};
use drivetrain_fused::{LoadOptions, Settings, load, plan};

use crate::options::warn_of_the_unknown;

/// The fused-kernel engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct FasterTransformer;

impl Engine for FasterTransformer {
    fn info(&self) -> EngineInfo {
        EngineInfo {
            name: "fastertransformer".into(),
            aliases: vec!["ft".into()],
            version: env!("CARGO_PKG_VERSION").into(),
            description: "transformer models on fused CPU kernels".into(),
            devices: vec!["cpu".into()],
            capabilities: vec![MERGES_ADAPTERS.into()],
        }
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        warn_of_the_unknown(&request.options, &request.services);
        load(request, &settings(request)?)
    }

    fn plan(&self, request: &LoadRequest<'_>) -> Result<Option<LoadPlan>, EngineError> {
        plan(request, &settings(request)?).map(Some)
    }
}

/// How the options of `request` ask for the model.
fn settings(request: &LoadRequest<'_>) -> Result<Settings, EngineError> {
    let options = LoadOptions::parse(&request.options, "fastertransformer")?;
    Ok(Settings { options, degree: NonZeroUsize::MIN })
}
