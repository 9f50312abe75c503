//! The engine: what it says of itself, and how many ranks a model is shared out to.

use drivetrain_engine::{
    Engine, EngineError, EngineInfo, LoadPlan, LoadRequest, LoadedModel, MERGES_ADAPTERS,
};
use drivetrain_fused::{LoadOptions, Settings, load, plan};

use crate::options::{DeepSpeedOptions, Degree, memory_nodes};

/// The tensor-parallel engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeepSpeed;

impl Engine for DeepSpeed {
    fn info(&self) -> EngineInfo {
        EngineInfo {
            name: "deepspeed".into(),
            aliases: Vec::new(),
            version: env!("CARGO_PKG_VERSION").into(),
            description: "transformer models on fused CPU kernels, each layer shared out to ranks"
                .into(),
            devices: vec!["cpu".into()],
            capabilities: vec![MERGES_ADAPTERS.into()],
        }
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        load(request, &settings(request)?)
    }

    fn plan(&self, request: &LoadRequest<'_>) -> Result<Option<LoadPlan>, EngineError> {
        plan(request, &settings(request)?).map(Some)
    }
}

/// How the options of `request` ask for the model.
fn settings(request: &LoadRequest<'_>) -> Result<Settings, EngineError> {
    let mut options = LoadOptions::parse(&request.options, "deepspeed")?;
    let own = DeepSpeedOptions::parse(request)?;
    options.max_positions = own.max_tokens;
    let degree = match own.degree {
        Degree::Number(degree) => degree,
        Degree::Max => memory_nodes().min(request.n_threads),
    };
    Ok(Settings { options, degree })
}
