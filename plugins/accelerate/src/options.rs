//! The options this engine reads.

use std::num::NonZeroU32;

use candle_core::Device;
use drivetrain_engine::{EngineError, LogLevel, Options, Services};

/// Sequences alive at once, unless the options say otherwise.
const MAX_SEQUENCES: u32 = 32;
/// A sequence is cheap while it is short, so the bound only keeps the number sane.
const MOST_SEQUENCES: u32 = 1 << 16;

/// The options, parsed.
#[derive(Debug)]
pub(crate) struct LoadOptions {
    /// Where the model is placed.
    pub(crate) device: Device,
    /// Most sequences alive at once.
    pub(crate) max_sequences: u32,
    /// Highest rank of an adapter.
    pub(crate) max_lora_rank: Option<NonZeroU32>,
}

impl LoadOptions {
    /// Reads `options`; other keys are the host's or a task's.
    pub(crate) fn parse(options: &Options<'_>, services: &Services) -> Result<Self, EngineError> {
        check_dtype(options, services)?;
        warn_of_the_unknown(options, services);
        let max_sequences = options
            .parse::<NonZeroU32>("max_rolling_batch_size", "a whole number above 0")?
            .map_or(MAX_SEQUENCES, NonZeroU32::get)
            .min(MOST_SEQUENCES);
        let max_lora_rank = options.parse("max_lora_rank", "a whole number above 0")?;
        Ok(Self { device: device(options)?, max_sequences, max_lora_rank })
    }
}

/// What other engines would do otherwise, with the values that ask for nothing.
const NOT_HERE: &[(&str, &[&str])] = &[
    ("load_in_8bit", &["false"]),
    ("load_in_4bit", &["false"]),
    ("quantize", &["", "none"]),
    ("tensor_parallel_degree", &["1", "max"]),
    ("pipeline_parallel_degree", &["1"]),
    ("draft_model_id", &[""]),
    ("max_memory", &[""]),
];

/// Says which options ask for what this engine does not do: the model answers as without them.
fn warn_of_the_unknown(options: &Options<'_>, services: &Services) {
    for (key, neutral) in NOT_HERE {
        let Some(value) = options.get(key) else { continue };
        if !neutral.contains(&value.trim().to_ascii_lowercase().as_str()) {
            let message = format!(
                "option.{key}={value} has no effect: the accelerate engine computes in f32 on one \
                 device, from the weights as they are"
            );
            services.log(LogLevel::Warn, &message);
        }
    }
}

/// Everything is computed in f32, from weights of whichever type.
fn check_dtype(options: &Options<'_>, services: &Services) -> Result<(), EngineError> {
    let Some(dtype) = options.get("dtype") else { return Ok(()) };
    match dtype.trim().to_ascii_lowercase().as_str() {
        "" | "auto" | "fp32" | "float32" | "f32" => Ok(()),
        "fp16" | "float16" | "f16" | "half" | "bf16" | "bfloat16" => {
            let message =
                format!("option.dtype={dtype}: on the CPU this engine computes in f32 instead");
            services.log(LogLevel::Info, &message);
            Ok(())
        }
        _ => Err(EngineError::unsupported(format!(
            "option.dtype={dtype}: the accelerate engine knows auto, fp32, fp16 and bf16"
        ))),
    }
}

/// The one device of the model.
fn device(options: &Options<'_>) -> Result<Device, EngineError> {
    let Some(map) = options.get("device_map") else { return default_device() };
    match map.trim().to_ascii_lowercase().as_str() {
        "" | "auto" => default_device(),
        "cpu" => Ok(Device::Cpu),
        #[cfg(feature = "cuda")]
        "cuda" | "cuda:0" | "0" => cuda(0),
        other if other.starts_with("cuda") || other.parse::<u32>().is_ok() => {
            Err(EngineError::unsupported(format!(
                "option.device_map={map}: this build of the accelerate engine has no such device; \
                 it takes auto and cpu"
            )))
        }
        _ => Err(EngineError::unsupported(format!(
            "option.device_map={map}: the accelerate engine places a model on one device; it takes \
             auto and cpu"
        ))),
    }
}

#[cfg(not(feature = "cuda"))]
fn default_device() -> Result<Device, EngineError> {
    Ok(Device::Cpu)
}

#[cfg(feature = "cuda")]
fn default_device() -> Result<Device, EngineError> {
    if candle_core::utils::cuda_is_available() { cuda(0) } else { Ok(Device::Cpu) }
}

#[cfg(feature = "cuda")]
fn cuda(ordinal: usize) -> Result<Device, EngineError> {
    Device::new_cuda(ordinal).map_err(|error| {
        let kind = drivetrain_engine::ErrorKind::Unsupported;
        EngineError::wrap(kind, format!("cuda:{ordinal} can't be used"), &error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<LoadOptions, EngineError> {
        LoadOptions::parse(&Options::new(pairs), &Services::silent())
    }

    #[test]
    fn defaults_and_known_values_pass() {
        assert_eq!(parse(&[]).unwrap().max_sequences, MAX_SEQUENCES);
        let options = [("dtype", "bf16"), ("device_map", "auto"), ("max_rolling_batch_size", "7")];
        assert_eq!(parse(&options).unwrap().max_sequences, 7);
    }

    #[test]
    fn errors_name_the_option() {
        for (key, value) in [
            ("dtype", "int8"),
            ("device_map", "cuda:7"),
            ("device_map", "{\"\": 0}"),
            ("device_map", "balanced"),
            ("max_rolling_batch_size", "0"),
        ] {
            let error = parse(&[(key, value)]).unwrap_err();
            assert!(error.message().starts_with(&format!("option.{key}={value}: ")), "{error}");
        }
    }
}
