//! A library whose engine can't say its name.

use drivetrain_engine::{Engine, EngineError, EngineInfo, LoadRequest, LoadedModel};

drivetrain_engine::export_engine!(Nameless);

struct Nameless;

impl Engine for Nameless {
    fn info(&self) -> EngineInfo {
        panic!("no name");
    }

    fn load(&self, _: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        Err(EngineError::unsupported("nothing to load"))
    }
}
