//! The options this engine reads.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;

use drivetrain_device_map::{DeviceMapError, DeviceMapSetting, Limits, Mode};
use drivetrain_engine::{EngineError, LogLevel, Options, Services};

use crate::placing::bad_map;

/// Sequences alive at once, unless the options say otherwise.
const MAX_SEQUENCES: u32 = 32;
/// A sequence is cheap while it is short, so the bound only keeps the number sane.
const MOST_SEQUENCES: u32 = 1 << 16;

/// More virtual devices would have no threads.
const MOST_VIRTUAL_DEVICES: u32 = 64;

/// The options, parsed.
#[derive(Debug)]
pub(crate) struct LoadOptions {
    /// Where the parts of the model are placed.
    pub(crate) device_map: DeviceMapSetting,
    /// What each device may hold, if it was given.
    pub(crate) max_memory: Option<Limits>,
    /// Accelerators that are made of the CPU's memory and threads.
    pub(crate) n_virtual: u32,
    /// Where weights that no memory holds may be written.
    pub(crate) offload_folder: Option<PathBuf>,
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
        let n_virtual = options.parse("virtual_devices", "a whole number")?.unwrap_or(0);
        if n_virtual > MOST_VIRTUAL_DEVICES {
            return Err(EngineError::bad_input(format!(
                "option.virtual_devices={n_virtual}: expected at most {MOST_VIRTUAL_DEVICES}"
            )));
        }
        let device_map = setting::<DeviceMapSetting>(options, "device_map")?;
        let folder = options.get("offload_folder").map(str::trim).filter(|path| !path.is_empty());
        Ok(Self {
            device_map: device_map.unwrap_or(DeviceMapSetting::Mode(Mode::Auto)),
            max_memory: setting(options, "max_memory")?,
            n_virtual,
            offload_folder: folder.map(PathBuf::from),
            max_sequences,
            max_lora_rank,
        })
    }
}

/// A setting of device maps; absent if it is empty.
fn setting<T: FromStr<Err = DeviceMapError>>(
    options: &Options<'_>,
    key: &str,
) -> Result<Option<T>, EngineError> {
    let Some(text) = options.get(key).map(str::trim).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    // Names of modules are as they are; the words are not.
    let text = if text.starts_with('{') { text.to_owned() } else { text.to_ascii_lowercase() };
    let text = if key == "max_memory" { options.get(key).unwrap_or_default() } else { &text };
    text.parse().map(Some).map_err(bad_map)
}

/// What other engines would do otherwise, with the values that ask for nothing.
const NOT_HERE: &[(&str, &[&str])] = &[
    ("load_in_8bit", &["false"]),
    ("load_in_4bit", &["false"]),
    ("quantize", &["", "none"]),
    ("tensor_parallel_degree", &["1", "max"]),
    ("pipeline_parallel_degree", &["1"]),
    ("draft_model_id", &[""]),
];

/// Says which options ask for what this engine does not do: the model answers as without them.
fn warn_of_the_unknown(options: &Options<'_>, services: &Services) {
    for (key, neutral) in NOT_HERE {
        let Some(value) = options.get(key) else { continue };
        if !neutral.contains(&value.trim().to_ascii_lowercase().as_str()) {
            let message = format!(
                "option.{key}={value} has no effect: the accelerate engine computes in f32, from \
                 the weights as they are"
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
    fn maps_and_limits_are_read() {
        let options = parse(&[("device_map", "Balanced_Low_0"), ("max_memory", "cpu:1GiB")]);
        let options = options.unwrap();
        assert_eq!(options.device_map, DeviceMapSetting::Mode(Mode::BalancedLowZero));
        assert_eq!(options.max_memory, Some("{\"cpu\": 1073741824}".parse().unwrap()));
        let options = parse(&[("max_memory", ""), ("device_map", " ")]).unwrap();
        assert_eq!(options.device_map, DeviceMapSetting::Mode(Mode::Auto));
        assert_eq!(options.max_memory, None);
    }

    #[test]
    fn errors_name_the_option() {
        for (key, value) in [
            ("dtype", "int8"),
            ("max_rolling_batch_size", "0"),
            ("virtual_devices", "65"),
            ("virtual_devices", "-1"),
        ] {
            let error = parse(&[(key, value)]).unwrap_err();
            assert!(error.message().starts_with(&format!("option.{key}={value}: ")), "{error}");
        }
        for (key, value) in [
            ("device_map", "everywhere"),
            ("device_map", "-1"),
            ("device_map", "{\"\": \"tpu\"}"),
            ("device_map", "{"),
            ("max_memory", "cpu:much"),
            ("max_memory", "{\"tpu\": 1}"),
        ] {
            let error = parse(&[(key, value)]).unwrap_err();
            assert!(error.message().starts_with(&format!("option.{key}")), "{error}");
        }
    }
}
