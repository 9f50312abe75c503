//! Errors of candle as the engine's.

use drivetrain_engine::{EngineError, ErrorKind};

/// An error of candle while computing: shapes are checked at load, so it is a fault of this engine.
pub(crate) fn compute(error: candle_core::Error) -> EngineError {
    EngineError::wrap(ErrorKind::Internal, "the computation failed", &error)
}
