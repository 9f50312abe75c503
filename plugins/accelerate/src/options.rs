//! The options this engine reads.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;

use drivetrain_device_map::{DeviceMapError, DeviceMapSetting, Limits, Mode};
use drivetrain_engine::{EngineError, LogLevel, Options, Services};
use drivetrain_execution::is_packed_form;
use drivetrain_kernels::BlockFormat;

use crate::forms::WeightForm;
use crate::matrix::HalfType;
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
    /// How matrices are held.
    pub(crate) weights: WeightForm,
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
        let weights = quantize(options)?.map_or_else(|| dtype(options), Ok)?;
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
            weights,
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
                "option.{key}={value} has no effect: the accelerate engine places layers on devices \
                 instead"
            );
            services.log(LogLevel::Warn, &message);
        }
    }
}

/// The form that `dtype` asks for.
fn dtype(options: &Options<'_>) -> Result<WeightForm, EngineError> {
    let Some(dtype) = options.get("dtype") else { return Ok(WeightForm::AsStored) };
    Ok(match dtype.trim().to_ascii_lowercase().as_str() {
        "" | "auto" => WeightForm::AsStored,
        "fp32" | "float32" | "f32" => WeightForm::Full,
        "fp16" | "float16" | "f16" | "half" => WeightForm::Half(HalfType::F16),
        "bf16" | "bfloat16" => WeightForm::Half(HalfType::Bf16),
        "int8" => WeightForm::Encoded(BlockFormat::Q8Zero),
        _ => {
            return Err(EngineError::unsupported(format!(
                "option.dtype={dtype}: the accelerate engine knows auto, fp32, fp16, bf16 and int8"
            )));
        }
    })
}

/// The blocks that `quantize` asks for, or one of Accelerate's two flags.
fn quantize(options: &Options<'_>) -> Result<Option<WeightForm>, EngineError> {
    let of_flag = |key: &str| -> Result<bool, EngineError> {
        Ok(options.parse::<bool>(key, "true or false")?.unwrap_or(false))
    };
    let (q8, q4) =
        (WeightForm::Encoded(BlockFormat::Q8Zero), WeightForm::Encoded(BlockFormat::Q4One));
    let Some(quantize) = options.get("quantize") else {
        return match (of_flag("load_in_8bit")?, of_flag("load_in_4bit")?) {
            (true, true) => Err(EngineError::bad_input(
                "option.load_in_8bit=true: option.load_in_4bit is true, too; give one of them",
            )),
            (true, false) => Ok(Some(q8)),
            (false, four) => Ok(four.then_some(q4)),
        };
    };
    Ok(match quantize.trim().to_ascii_lowercase().replace('_', "-").as_str() {
        "" | "none" => None,
        // The files have to be so.
        word if is_packed_form(word) => None,
        "bitsandbytes8" | "int8" | "int8-weight-only" | "q8" | "q8-0" => Some(q8),
        "bitsandbytes" | "bitsandbytes4" | "bitsandbytes-nf4" | "q4" | "q4-1" => Some(q4),
        _ => {
            return Err(EngineError::unsupported(format!(
                "option.quantize={quantize}: the accelerate engine knows bitsandbytes8 (or q8) and \
                 bitsandbytes4 (or q4), and gptq and awq of models packed so; for other forms, serve a \
                 GGUF file"
            )));
        }
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
    fn forms_are_read() {
        let (q8, q4) = (BlockFormat::Q8Zero, BlockFormat::Q4One);
        for (key, value, expect) in [
            ("dtype", "auto", WeightForm::AsStored),
            ("dtype", "Float32", WeightForm::Full),
            ("dtype", "half", WeightForm::Half(HalfType::F16)),
            ("dtype", "bf16", WeightForm::Half(HalfType::Bf16)),
            ("quantize", "bitsandbytes8", WeightForm::Encoded(q8)),
            ("quantize", "BitsAndBytes4", WeightForm::Encoded(q4)),
            ("load_in_8bit", "true", WeightForm::Encoded(q8)),
            ("load_in_4bit", "true", WeightForm::Encoded(q4)),
            ("load_in_4bit", "false", WeightForm::AsStored),
            ("quantize", "gptq", WeightForm::AsStored),
            ("quantize", "Awq", WeightForm::AsStored),
        ] {
            assert_eq!(parse(&[(key, value)]).unwrap().weights, expect, "{key}={value}");
        }
        let both = parse(&[("load_in_8bit", "true"), ("load_in_4bit", "true")]).unwrap_err();
        assert!(both.message().contains("give one of them"), "{both}");
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
            ("dtype", "fp8"),
            ("quantize", "fp8"),
            ("load_in_8bit", "yes please"),
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
