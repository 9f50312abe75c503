//! The engine: what it says of itself, and how many ranks a model is shared out to.

use std::num::NonZeroUsize;

use drivetrain_engine::{
    Engine, EngineError, EngineInfo, LoadPlan, LoadRequest, LoadedModel, MERGES_ADAPTERS,
    RELOADS_LOST_MODELS,
};
use drivetrain_fused::{LoadOptions, Settings, check, load, plan};

use crate::options::{DeepSpeedOptions, Degree, MpiOptions, memory_nodes};
use crate::ranks;

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
            capabilities: vec![MERGES_ADAPTERS.into(), RELOADS_LOST_MODELS.into()],
        }
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        let settings = settings(request, None)?;
        match MpiOptions::parse(&request.options)? {
            Some(mpi) => {
                check(request, &settings)?;
                ranks::load(request, settings.degree, &mpi)
            }
            None => load(request, &settings),
        }
    }

    fn plan(&self, request: &LoadRequest<'_>) -> Result<Option<LoadPlan>, EngineError> {
        plan(request, &settings(request, None)?).map(Some)
    }
}

/// How the options of `request` ask for the model; `degree` is the number of ranks where it is decided.
pub(crate) fn settings(
    request: &LoadRequest<'_>,
    degree: Option<NonZeroUsize>,
) -> Result<Settings, EngineError> {
    let mut options = LoadOptions::parse(&request.options, "deepspeed")?;
    let own = DeepSpeedOptions::parse(request)?;
    options.max_positions = own.max_tokens;
    let degree = degree.unwrap_or_else(|| match own.degree {
        Degree::Number(degree) => degree,
        Degree::Max => memory_nodes().min(request.n_threads),
    });
    Ok(Settings { options, degree })
}
