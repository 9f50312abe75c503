//! A library whose engine loads nothing: the second one in a process.

use drivetrain_engine::{Engine, EngineError, EngineInfo, LoadRequest, LoadedModel};

drivetrain_engine::export_engine!(Plain);

struct Plain;

impl Engine for Plain {
    fn info(&self) -> EngineInfo {
        EngineInfo { name: "plain".into(), version: "3.2.1".into(), ..EngineInfo::default() }
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        Err(EngineError::unsupported(format!("{}: plain loads nothing", request.model_name)))
    }
}
