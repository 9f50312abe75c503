//! `quantization_config` of `config.json`: how a checkpoint's matrices are packed.

use std::fmt;

use crate::error::ArtifactError;
use crate::json::JsonFile;

const SECTION: &str = "quantization_config";

/// What a checkpoint's matrices were packed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuantizationMethod {
    /// Frantar et al. 2022, arXiv:2210.17323.
    Gptq,
    /// Lin et al. 2023, arXiv:2306.00978.
    Awq,
}

impl QuantizationMethod {
    /// The name in `config.json`, which is that of the option `quantize`, too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gptq => "gptq",
            Self::Awq => "awq",
        }
    }
}

impl fmt::Display for QuantizationMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a checkpoint's matrices are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantizationConfig {
    /// By what.
    pub method: QuantizationMethod,
    /// Bits of a number: 4 or 8.
    pub bits: usize,
    /// Inputs that share a scale and a zero; `None` if it is all of an output.
    pub group_size: Option<usize>,
    /// Whether 1 was taken from each zero.
    pub(super) zeros_are_less: bool,
}

impl QuantizationConfig {
    /// What `config.json` says; `None` if it has no `quantization_config`.
    ///
    /// # Errors
    /// It names a method, a number of bits, a group size or a format that can't be read; the error has
    /// the key, the value and what can be.
    pub fn read(json: &JsonFile) -> Result<Option<Self>, ArtifactError> {
        if !json.contains(SECTION) {
            return Ok(None);
        }
        let section = Section { json };
        let method = match section.word(&["quant_method"])?.as_deref() {
            Some("gptq") => QuantizationMethod::Gptq,
            Some("awq") => QuantizationMethod::Awq,
            _ => return Err(section.invalid("quant_method", "\"gptq\" or \"awq\"")),
        };
        match method {
            QuantizationMethod::Gptq => section.gptq(),
            QuantizationMethod::Awq => section.awq(),
        }
        .map(Some)
    }
}

/// The object in the file.
struct Section<'a> {
    json: &'a JsonFile,
}

impl Section<'_> {
    fn gptq(&self) -> Result<QuantizationConfig, ArtifactError> {
        let bits = match self.number(&["bits"])? {
            Some(4) => 4,
            Some(8) => 8,
            _ => return Err(self.invalid("bits", "4 or 8")),
        };
        let zeros_are_less = match self.word(&["checkpoint_format"])?.as_deref() {
            None | Some("gptq") => true,
            Some("gptq_v2") => false,
            Some(_) => return Err(self.invalid("checkpoint_format", "\"gptq\" or \"gptq_v2\"")),
        };
        let dynamic = self.json.get(&key("dynamic"))?;
        if dynamic.and_then(|value| value.as_object()).is_some_and(|object| !object.is_empty()) {
            return Err(self.invalid("dynamic", "nothing: all modules packed in one way"));
        }
        // The files say which inputs are in which group, and each group's zeros.
        for (name, wanted) in [("desc_act", "true or false"), ("sym", "true or false")] {
            self.flag(name, wanted)?;
        }
        let group_size = self.group_size(&["group_size"])?;
        Ok(QuantizationConfig {
            method: QuantizationMethod::Gptq,
            bits,
            group_size,
            zeros_are_less,
        })
    }

    fn awq(&self) -> Result<QuantizationConfig, ArtifactError> {
        if self.number(&["bits", "w_bit"])? != Some(4) {
            return Err(self.invalid("bits", "4"));
        }
        let version = self.word(&["version"])?;
        if version.is_some_and(|version| version != "gemm") {
            return Err(self.invalid("version", "\"gemm\""));
        }
        if self.flag("zero_point", "true: AWQ with zeros")? == Some(false) {
            return Err(self.invalid("zero_point", "true: AWQ with zeros"));
        }
        let group_size = self.group_size(&["group_size", "q_group_size"])?;
        let method = QuantizationMethod::Awq;
        Ok(QuantizationConfig { method, bits: 4, group_size, zeros_are_less: false })
    }

    fn group_size(&self, names: &[&str]) -> Result<Option<usize>, ArtifactError> {
        match self.number(names)? {
            Some(-1) => Ok(None),
            Some(32) => Ok(Some(32)),
            Some(64) => Ok(Some(64)),
            None | Some(128) => Ok(Some(128)),
            Some(_) => Err(self.invalid(self.present(names)?, "-1, 32, 64 or 128")),
        }
    }

    /// The first of `names` that is there.
    fn present<'n>(&self, names: &[&'n str]) -> Result<&'n str, ArtifactError> {
        for name in names {
            if self.json.get(&key(name))?.is_some() {
                return Ok(name);
            }
        }
        Ok(names.first().copied().unwrap_or_default())
    }

    fn number(&self, names: &[&str]) -> Result<Option<i64>, ArtifactError> {
        let name = self.present(names)?;
        let Some(value) = self.json.get(&key(name))? else { return Ok(None) };
        value.as_i64().map(Some).ok_or_else(|| self.invalid(name, "a whole number"))
    }

    /// A word in lower case.
    fn word(&self, names: &[&str]) -> Result<Option<String>, ArtifactError> {
        let name = self.present(names)?;
        let Some(value) = self.json.get(&key(name))? else { return Ok(None) };
        let word = value.as_str().map(str::to_ascii_lowercase);
        word.map(Some).ok_or_else(|| self.invalid(name, "a word"))
    }

    fn flag(&self, name: &str, wanted: &str) -> Result<Option<bool>, ArtifactError> {
        let Some(value) = self.json.get(&key(name))? else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.invalid(name, wanted))
    }

    fn invalid(&self, name: &str, wanted: &str) -> ArtifactError {
        self.json.invalid(&key(name), wanted)
    }
}

fn key(name: &str) -> String {
    format!("{SECTION}.{name}")
}
