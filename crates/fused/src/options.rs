//! The options of a model that every engine on these kernels reads.

use std::num::NonZeroU32;

use drivetrain_engine::{EngineError, Options};
use drivetrain_execution::is_packed_form;
use drivetrain_kernels::{BlockFormat, KvPrecision, Precision};

/// Sequences alive at once unless the options say otherwise.
const MAX_SEQUENCES: u32 = 32;
/// A sequence is cheap while it is short, so the bound only keeps the number sane.
const MOST_SEQUENCES: u32 = 1 << 16;

/// How weights are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightForm {
    /// As the checkpoint holds them; what the kernels don't know, as f32.
    AsStored,
    /// All in one form.
    Packed(Precision),
    /// In blocks that are made at load.
    Encoded(BlockFormat),
}

/// The options, parsed.
#[derive(Debug)]
pub struct LoadOptions {
    /// How matrices are held.
    pub weights: WeightForm,
    /// How keys and values are held.
    pub kv: KvPrecision,
    /// Most sequences alive at once.
    pub max_sequences: u32,
    /// Highest rank of an adapter.
    pub max_lora_rank: Option<NonZeroU32>,
    /// Longest sequence, if it is to be shorter than the model's.
    pub max_positions: Option<NonZeroU32>,
    /// Whether packed weights are kept in a file of the model's directory.
    pub packed_cache: bool,
}

impl LoadOptions {
    /// Reads `options`; other keys are the host's, a task's, or of `engine`'s own.
    ///
    /// # Errors
    /// A value is not one that is known; the message names the option and the engine.
    pub fn parse(options: &Options<'_>, engine: &str) -> Result<Self, EngineError> {
        let dtype = dtype(options, engine)?;
        let weights = quantize(options, engine)?.unwrap_or(dtype);
        check_device(options, engine)?;
        if let Some(value) = options.get("deterministic") {
            let _: Option<bool> = match value.trim().to_ascii_lowercase().as_str() {
                "" => None,
                _ => options.parse("deterministic", "true or false")?,
            };
        }
        let max_sequences = options
            .parse::<NonZeroU32>("max_rolling_batch_size", "a whole number above 0")?
            .map_or(MAX_SEQUENCES, NonZeroU32::get)
            .min(MOST_SEQUENCES);
        let max_lora_rank = options.parse("max_lora_rank", "a whole number above 0")?;
        let kv = kv_precision(options, engine)?;
        let packed_cache = options.parse("packed_cache", "true or false")?.unwrap_or(false);
        Ok(Self { weights, kv, max_sequences, max_lora_rank, max_positions: None, packed_cache })
    }
}

/// `option.key=value: what`.
fn unsupported(key: &str, value: &str, what: &str) -> EngineError {
    EngineError::unsupported(format!("option.{key}={value}: {what}"))
}

fn lower(value: &str) -> String {
    value.trim().to_ascii_lowercase()
}

fn dtype(options: &Options<'_>, engine: &str) -> Result<WeightForm, EngineError> {
    let Some(dtype) = options.get("dtype") else { return Ok(WeightForm::AsStored) };
    Ok(match lower(dtype).as_str() {
        "" | "auto" => WeightForm::AsStored,
        "fp32" | "float32" | "f32" => WeightForm::Packed(Precision::F32),
        "fp16" | "float16" | "f16" | "half" => WeightForm::Packed(Precision::F16),
        "bf16" | "bfloat16" => WeightForm::Packed(Precision::Bf16),
        "int8" => WeightForm::Packed(Precision::Int8),
        _ => {
            let known = format!("the {engine} engine knows auto, fp32, fp16, bf16 and int8");
            return Err(unsupported("dtype", dtype, &known));
        }
    })
}

/// The form that `quantize` asks for, if it does.
fn quantize(options: &Options<'_>, engine: &str) -> Result<Option<WeightForm>, EngineError> {
    let of_flag = |key: &str| -> Result<bool, EngineError> {
        Ok(options.parse::<bool>(key, "true or false")?.unwrap_or(false))
    };
    let int8 = WeightForm::Packed(Precision::Int8);
    let q4 = WeightForm::Encoded(BlockFormat::Q4One);
    let Some(quantize) = options.get("quantize") else {
        if of_flag("load_in_4bit")? {
            return Ok(Some(q4));
        }
        return Ok(of_flag("load_in_8bit")?.then_some(int8));
    };
    Ok(Some(match lower(quantize).replace('_', "-").as_str() {
        "" | "none" => return Ok(None),
        // The files have to be so.
        word if is_packed_form(word) => return Ok(None),
        "int8" | "dynamic-int8" | "bitsandbytes8" => int8,
        "int8-weight-only" => WeightForm::Packed(Precision::Int8Weights),
        "q8" | "q8-0" => WeightForm::Encoded(BlockFormat::Q8Zero),
        "q4" | "q4-1" | "bitsandbytes4" => q4,
        _ => {
            let known = format!(
                "the {engine} engine knows int8, int8-weight-only, q8 and q4, and gptq and awq of models \
                 packed so; for other forms, serve a GGUF file"
            );
            return Err(unsupported("quantize", quantize, &known));
        }
    }))
}

fn kv_precision(options: &Options<'_>, engine: &str) -> Result<KvPrecision, EngineError> {
    let Some(dtype) = options.get("kv_cache_dtype") else { return Ok(KvPrecision::F32) };
    Ok(match lower(dtype).as_str() {
        "" | "auto" | "fp32" | "float32" | "f32" => KvPrecision::F32,
        "fp16" | "float16" | "f16" | "half" => KvPrecision::F16,
        "bf16" | "bfloat16" => KvPrecision::Bf16,
        "int8" => KvPrecision::Int8,
        _ => {
            let known =
                format!("the {engine} engine holds keys and values in fp32, fp16, bf16 or int8");
            return Err(unsupported("kv_cache_dtype", dtype, &known));
        }
    })
}

/// This engine computes on the CPU.
fn check_device(options: &Options<'_>, engine: &str) -> Result<(), EngineError> {
    match options.get("device_map") {
        Some(map) if !matches!(lower(map).as_str(), "" | "auto" | "cpu") => {
            let what = format!("the {engine} engine computes on the CPU; it takes auto and cpu");
            Err(unsupported("device_map", map, &what))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<LoadOptions, EngineError> {
        LoadOptions::parse(&Options::new(pairs), "tested")
    }

    #[test]
    fn defaults_and_known_values_pass() {
        let defaults = parse(&[]).unwrap();
        assert_eq!(defaults.max_sequences, MAX_SEQUENCES);
        assert_eq!((defaults.weights, defaults.kv), (WeightForm::AsStored, KvPrecision::F32));
        let options = [("dtype", "BF16"), ("kv_cache_dtype", "fp16"), ("deterministic", "true")];
        let parsed = parse(&options).unwrap();
        assert_eq!(parsed.weights, WeightForm::Packed(Precision::Bf16));
        assert_eq!(parsed.kv, KvPrecision::F16);
        let parsed = parse(&[("dtype", "fp16"), ("quantize", "int8")]).unwrap();
        assert_eq!(parsed.weights, WeightForm::Packed(Precision::Int8));
        let parsed = parse(&[("load_in_8bit", "true")]).unwrap();
        assert_eq!(parsed.weights, WeightForm::Packed(Precision::Int8));
        let quantize = |value| parse(&[("quantize", value)]).unwrap().weights;
        assert_eq!(quantize("int8_weight_only"), WeightForm::Packed(Precision::Int8Weights));
        assert_eq!(quantize("Q8"), WeightForm::Encoded(BlockFormat::Q8Zero));
        let parsed = parse(&[("load_in_4bit", "true")]).unwrap();
        assert_eq!((quantize("q4"), quantize("none")), (parsed.weights, WeightForm::AsStored));
        assert_eq!(
            (quantize("AWQ"), quantize("gptq")),
            (WeightForm::AsStored, WeightForm::AsStored)
        );
    }

    #[test]
    fn errors_name_the_option() {
        for (key, value) in [
            ("dtype", "fp8"),
            ("quantize", "fp8"),
            ("load_in_4bit", "perhaps"),
            ("load_in_8bit", "perhaps"),
            ("kv_cache_dtype", "fp8"),
            ("device_map", "cuda:0"),
            ("deterministic", "sometimes"),
            ("packed_cache", "elsewhere"),
            ("max_rolling_batch_size", "0"),
        ] {
            let error = parse(&[(key, value)]).unwrap_err();
            assert!(error.message().starts_with(&format!("option.{key}={value}: ")), "{error}");
        }
    }
}
