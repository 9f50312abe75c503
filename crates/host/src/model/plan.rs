//! What loading a model would do, asked of the engine that would load it.

use drivetrain_engine::{EngineError, LoadPlan};
use drivetrain_sources::Watch;

use super::ModelHandle;
use super::load::{LoadInputs, ask_engines};
use super::open::open;
use crate::{HostError, memory};

/// What is said of an engine that states no plan.
const NO_PLAN: &str = "this engine states no plan: choose one that does with option.engine, \
                                  or load the model and read its figures in the log";

/// What loading a model would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The engine that would load it.
    pub engine: String,
    /// What that engine says.
    pub plan: LoadPlan,
}

/// Goes the way of a load as far as the engine, and asks it for a plan instead of a model.
pub(crate) fn plan(
    handle: &ModelHandle,
    inputs: &LoadInputs,
    watch: &dyn Watch,
) -> Result<Planned, HostError> {
    let shared = handle.shared();
    let opened = open(shared, inputs, watch)?;
    memory::check(handle.name(), &opened.config.memory)?;
    let candidates = inputs.engines.candidates(&opened.config.engine.value)?;
    let n_threads = inputs.env.n_threads();
    let plan = ask_engines(shared, &opened, &candidates, n_threads, |engine, request| {
        engine.plan(request)
    })?;
    let engine = handle.engine_name().unwrap_or_default().to_owned();
    // It may be the one that would load the model, so the next one's plan would be another.
    let plan =
        plan.ok_or_else(|| EngineError::unsupported(format!("engine {engine}: {NO_PLAN}")))?;
    Ok(Planned { engine, plan })
}
