//! A library whose engine can't be made.

use drivetrain_engine::{Engine, EngineError, EngineInfo, LoadRequest, LoadedModel};

drivetrain_engine::export_engine!(make());

struct Unborn;

fn make() -> Unborn {
    panic!("no device {} on this machine", 7);
}

impl Engine for Unborn {
    fn info(&self) -> EngineInfo {
        EngineInfo::default()
    }

    fn load(&self, _: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        Err(EngineError::unsupported("nothing to load"))
    }
}
