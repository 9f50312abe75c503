//! What GGUF calls the parts of each family, and what its metadata say in words of `config.json`.
//!
//! A family is data: tables of module names, each with the form in which the file has it, and a
//! function that writes the config.

mod bert;
mod falcon;
mod gemma;
mod gpt2;
mod gpt_neox;
mod llama;
mod phi;
mod qwen;
mod t5;

use serde_json::{Map, Value as Json};

use super::config::Meta;
use super::header::Header;
use crate::error::{ArtifactError, shorten};

/// A family.
pub(super) struct Architecture {
    /// `general.architecture`.
    name: &'static str,
    /// Metadata to the keys of `config.json`.
    pub(super) config: fn(&Meta<'_, '_>) -> Result<Config, ArtifactError>,
    /// The names of the modules in this file, in any number of tables.
    pub(super) modules: fn(&Header<'_>) -> &'static [&'static [Module]],
}

/// The keys of a `config.json`.
pub(super) type Config = Map<String, Json>;

/// One module: its name in the file, its name in a checkpoint, and how its tensors lie. `{i}` stands
/// for the layer's number, `{e}` for the expert's, `{p}` for `q`, `k` and `v`.
pub(super) struct Module {
    pub(super) file: &'static str,
    pub(super) checkpoint: &'static str,
    pub(super) form: Form,
}

/// How a module's tensors lie in the file, beside what a checkpoint has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The same.
    Plain,
    /// Rotary pairs of query heads side by side.
    RotaryQuery,
    /// Rotary pairs of key heads side by side.
    RotaryKey,
    /// A fused projection sorted by query, key and value.
    Grouped,
    /// A fused projection that checkpoints have in three.
    Fused,
    /// The matrix the other way round, the bias the same.
    Transposed,
    /// One more than in the checkpoint.
    PlusOne,
    /// All experts in one.
    Experts,
}

/// A table of modules, by form: `names!(Form: "in the file" => "in the checkpoint", ...)`.
macro_rules! names {
    ($($form:ident: $($file:literal => $checkpoint:literal),* $(,)?);* $(;)?) => {
        [$($($crate::gguf::architectures::Module {
            file: $file,
            checkpoint: $checkpoint,
            form: $crate::gguf::architectures::Form::$form,
        }),*),*]
    };
}
use names;

static ALL: [&Architecture; 14] = [
    &bert::BERT,
    &falcon::FALCON,
    &gemma::GEMMA,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &gpt2::GPT2,
    &gpt_neox::BLOOM,
    &gpt_neox::GPT_NEOX,
    &llama::LLAMA,
    &phi::PHI2,
    &phi::PHI3,
    &qwen::QWEN2,
    &qwen::QWEN3,
    &t5::T5,
];

/// The family of a file.
pub(super) fn of(header: &Header<'_>) -> Result<&'static Architecture, ArtifactError> {
    if let Some(found) = ALL.iter().find(|known| known.name == header.architecture) {
        return Ok(found);
    }
    let names: Vec<_> = ALL.iter().map(|known| known.name).collect();
    Err(header.invalid("general.architecture", &format!("one of {}", names.join(", "))))
}

/// A module of the file and the numbers in its name.
pub(super) struct Found {
    pub(super) module: &'static Module,
    /// `weight` or `bias`.
    pub(super) parameter: String,
    layer: String,
    expert: String,
}

impl Architecture {
    /// Which module a tensor of the file belongs to, if the family has one of this name.
    pub(super) fn find(&self, header: &Header<'_>, tensor: &str) -> Option<Found> {
        let (name, parameter) = tensor.rsplit_once('.')?;
        let mut numbers = Vec::new();
        let pattern: Vec<&str> = name
            .split('.')
            .map(|part| {
                if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
                    return part;
                }
                numbers.push(part);
                if numbers.len() == 1 { "{i}" } else { "{e}" }
            })
            .collect();
        let pattern = pattern.join(".");
        let mut modules = (self.modules)(header).iter().copied().flatten();
        let module = modules.find(|module| module.file == pattern)?;
        let number = |idx: usize| numbers.get(idx).map_or_else(String::new, |n| shorten(n));
        Some(Found { module, parameter: parameter.to_owned(), layer: number(0), expert: number(1) })
    }
}

impl Found {
    /// The tensor's name in a checkpoint.
    pub(super) fn name(&self) -> String {
        self.name_of_expert(&self.expert)
    }

    /// The same for another expert.
    pub(super) fn name_of_expert(&self, expert: &str) -> String {
        let name = self.module.checkpoint.replace("{i}", &self.layer).replace("{e}", expert);
        format!("{name}.{}", self.parameter)
    }

    /// The same for a part of a fused projection.
    pub(super) fn name_of_part(&self, part: &str) -> String {
        self.name().replace("{p}", part)
    }
}
