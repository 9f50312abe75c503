//! What a model is said to take, and how much it may.

use drivetrain_engine::{DevicePlan, EngineError, LoadPlan, LoadRequest, PlannedPart, TokenModel};

use crate::fault::Fault;
use crate::reference::Reference;

/// Memory that a model takes, more than it does.
const NEEDED_BYTES: u64 = 64 << 10;
/// Memory that it may take unless the options say otherwise.
const LIMIT_BYTES: u64 = 1 << 20;

/// The limit that `option.max_memory` sets, as in `cpu:64KiB`.
pub(crate) fn limit(request: &LoadRequest<'_>) -> Result<u64, EngineError> {
    let Some(text) = request.options.get("max_memory") else { return Ok(LIMIT_BYTES) };
    let number = text.strip_prefix("cpu:").and_then(|size| size.strip_suffix("KiB"));
    number.and_then(|number| number.parse::<u32>().ok()).map(|n| u64::from(n) << 10).ok_or_else(
        || EngineError::bad_input(format!("option.max_memory={text}: expected cpu:NUMBERKiB")),
    )
}

/// Refuses the model where it may take less than it does.
pub(crate) fn check(limit: u64) -> Result<(), EngineError> {
    match limit < NEEDED_BYTES {
        true => {
            let message = format!("cpu: {NEEDED_BYTES} bytes are needed, of {limit}");
            Err(EngineError::out_of_memory(message))
        }
        false => Ok(()),
    }
}

/// What loading `model` would do.
pub(crate) fn plan(
    request: &LoadRequest<'_>,
    model: &Reference,
    fault: Fault,
) -> Result<LoadPlan, EngineError> {
    let limit = if fault == Fault::BoundlessPlan { LIMIT_BYTES } else { limit(request)? };
    check(if fault == Fault::RefusesPlan { 0 } else { limit })?;
    let bytes = match fault {
        Fault::WeightlessPlan => 0,
        Fault::OverfullPlan => LIMIT_BYTES + 1,
        _ => NEEDED_BYTES,
    };
    let info = model.info();
    let device = DevicePlan {
        name: "cpu".into(),
        limit_bytes: Some(limit),
        parts: vec![PlannedPart { what: "weights".into(), bytes }],
    };
    Ok(LoadPlan {
        devices: vec![device],
        kv_capacity_tokens: info.kv_capacity_tokens,
        cross_capacity_tokens: info.cross_capacity_tokens,
        max_batch_tokens: info.max_batch_tokens,
        max_sequences: info.max_sequences + u32::from(fault == Fault::OtherPlan),
        ..LoadPlan::default()
    })
}
