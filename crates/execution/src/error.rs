//! Errors in a model's files as the engine's.

use drivetrain_engine::{EngineError, ErrorKind};
use drivetrain_transformer::TransformerError;

/// An error in the model's files, whose text names file and key or tensor. `Unsupported` is for models
/// that are fine but for another engine.
pub fn model_error(error: &(dyn std::error::Error + 'static)) -> EngineError {
    let unsupported = matches!(
        error.downcast_ref::<TransformerError>(),
        Some(
            TransformerError::UnknownFamily { .. }
                | TransformerError::ConfigUnsupported { .. }
                | TransformerError::AdapterUnsupported { .. }
        )
    );
    let kind = if unsupported { ErrorKind::Unsupported } else { ErrorKind::BadInput };
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    EngineError::with_causes(kind, error.to_string(), causes)
}
