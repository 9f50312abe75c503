//! The families: how each is described from its config, and what its checkpoints call things.

mod bart;
mod bert;
mod gpt2;
mod llama;
mod reader;
mod rope;

use drivetrain_artifacts::ModelConfig;

use crate::architecture::Architecture;
use crate::error::TransformerError;
use reader::Reader;

/// One family.
pub(crate) struct Family {
    /// `model_type` of its configs.
    pub(crate) model_type: &'static str,
    /// Config to description.
    describe: fn(&Reader<'_>) -> Result<Architecture, TransformerError>,
    /// Prefixes that its checkpoints may put ahead of the names below, the usual one first.
    pub(crate) prefixes: &'static [&'static str],
    /// Names, without prefix, one of which is in every checkpoint: they tell which prefix it has.
    pub(crate) probes: &'static [&'static str],
    /// Canonical modules and their checkpoint names, in any number of tables.
    pub(crate) modules: &'static [&'static [ModuleNames]],
}

/// What checkpoints call one module. `{s}` stands for `encoder` and `decoder` alike, `{i}` for the
/// layer's number.
pub(crate) struct ModuleNames {
    /// The canonical path; or, with [`Form::Tensor`], a canonical tensor.
    pub(crate) canonical: &'static str,
    /// Where it may be found: the first that is there counts.
    pub(crate) found: &'static [Place],
}

/// A place in a checkpoint for a module's weight and bias.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// The module's name.
    pub(crate) module: &'static str,
    /// Whether the family's prefix precedes it.
    pub(crate) prefixed: bool,
    /// How the module's matrix lies in the tensor.
    pub(crate) form: Form,
    /// Whether this is another module's tensor, shared only if the config ties embeddings.
    pub(crate) tied: bool,
}

impl Family {
    /// Where a checkpoint may hold the canonical tensor `parameter` of `module`.
    pub(crate) fn places(&self, module: &str, parameter: &str) -> &'static [Place] {
        let pattern = pattern(module);
        let any_stack = pattern.split_once('.').map(|(_, rest)| format!("{{s}}.{rest}"));
        let tensor = format!("{pattern}.{parameter}");
        let find = |name: &str| {
            self.modules.iter().copied().flatten().find(|names| names.canonical == name)
        };
        find(&tensor)
            .or_else(|| find(&pattern))
            .or_else(|| any_stack.as_deref().and_then(find))
            .map_or(&[], |names| names.found)
    }
}

/// `decoder.layers.3.self_attention.q` as `decoder.layers.{i}.self_attention.q`.
fn pattern(module: &str) -> String {
    let parts: Vec<&str> = module
        .split('.')
        .map(|part| if part.bytes().all(|b| b.is_ascii_digit()) { "{i}" } else { part })
        .collect();
    parts.join(".")
}

impl Place {
    /// The tensor's name in a checkpoint with `prefix`, for canonical tensor `parameter` of
    /// `module`. `parameter` may also be an old name for it (`gamma`).
    pub(crate) fn tensor_name(&self, prefix: &str, module: &str, parameter: &str) -> String {
        let mut name = if self.prefixed { prefix.to_owned() } else { String::new() };
        name.push_str(self.module);
        if name.contains("{s}") {
            name = name.replace("{s}", module.split('.').next().unwrap_or_default());
        }
        if name.contains("{i}") {
            let is_number = |part: &&str| part.bytes().all(|b| b.is_ascii_digit());
            name = name.replace("{i}", module.split('.').find(is_number).unwrap_or_default());
        }
        if self.form != Form::Tensor {
            name.push('.');
            name.push_str(parameter);
        }
        name
    }
}

/// How a module lies in a checkpoint's tensor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As it is: `[out, in]`.
    Plain,
    /// As it is, under the whole name of a tensor instead of a module's.
    Tensor,
    /// `[in, out]`: GPT-2's Conv1D.
    Transposed,
    /// A third of a fused `[in, q | k | v]`.
    TransposedFused(FusedPart),
}

/// Which part of a fused q, k, v projection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum FusedPart {
    /// Query.
    Q,
    /// Key.
    K,
    /// Value.
    V,
}

impl Place {
    pub(crate) const fn new(module: &'static str) -> Self {
        Self { module, prefixed: true, form: Form::Plain, tied: false }
    }

    pub(crate) const fn top(module: &'static str) -> Self {
        Self { module, prefixed: false, form: Form::Plain, tied: false }
    }

    pub(crate) const fn form(self, form: Form) -> Self {
        Self { form, ..self }
    }

    pub(crate) const fn tied(self) -> Self {
        Self { tied: true, ..self }
    }
}

/// A module that has one place, under the family's prefix.
macro_rules! names {
    ($($canonical:literal => $module:literal),* $(,)?) => {
        [$($crate::families::ModuleNames {
            canonical: $canonical,
            found: &[$crate::families::Place::new($module)],
        }),*]
    };
}
use names;

static FAMILIES: [&Family; 4] = [&bart::FAMILY, &bert::FAMILY, &gpt2::FAMILY, &llama::FAMILY];

/// Every `model_type` with a description.
pub fn model_types() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.model_type)
}

/// The family called `model_type`.
pub(crate) fn family(model_type: &str) -> Option<&'static Family> {
    FAMILIES.iter().copied().find(|family| family.model_type == model_type)
}

pub(crate) fn describe(config: &ModelConfig) -> Result<Architecture, TransformerError> {
    let Some(family) = family(&config.model_type) else {
        return Err(TransformerError::UnknownFamily {
            file: config.json.path().to_owned(),
            found: config.model_type.chars().take(80).collect(),
            known: model_types().collect::<Vec<_>>().join(", "),
        });
    };
    let reader = Reader::new(config, family.model_type);
    reader.refuse_present("quantization_config", "weights in floating point")?;
    (family.describe)(&reader)
}

#[cfg(test)]
mod tests;
