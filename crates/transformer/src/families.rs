//! The families: how each is described from its config, and what its checkpoints call things.

mod bart;
mod bert;
mod bloom;
mod deberta_v2;
mod distilbert;
mod electra;
mod falcon;
mod gemma;
mod gpt2;
mod gpt_neo;
mod gpt_neox;
mod gptj;
pub(crate) mod heads;
mod llama;
mod mistral;
mod mixtral;
mod mpnet;
mod opt;
mod phi;
mod phi3;
mod qwen2;
mod qwen3;
mod reader;
mod roberta;
mod rope;
mod shapes;
mod t5;

use drivetrain_artifacts::{ModelConfig, QuantizationConfig};

use crate::architecture::Architecture;
use crate::error::TransformerError;
use reader::Reader;

/// One family.
pub(crate) struct Family {
    /// `model_type` of its configs.
    pub(crate) model_type: &'static str,
    /// Other names of config keys, and the names that the description reads: what transformers
    /// calls an attribute map.
    pub(crate) aliases: &'static [(&'static str, &'static str)],
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
/// layer's number, `{e}` for the expert's.
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
    pub(crate) fn places(
        &self,
        architecture: &Architecture,
        module: &str,
        parameter: &str,
    ) -> &'static [Place] {
        let is_head = module == "head" || module.starts_with("head.");
        let own = if is_head { heads::modules(architecture) } else { None };
        let pattern = pattern(module);
        let any_stack = pattern.split_once('.').map(|(_, rest)| format!("{{s}}.{rest}"));
        let tensor = format!("{pattern}.{parameter}");
        let find = |name: &str| {
            let tables = self.modules.iter().copied().filter(|_| own.is_none()).chain(own);
            tables.flatten().find(|names| names.canonical == name)
        };
        find(&tensor)
            .or_else(|| find(&pattern))
            .or_else(|| any_stack.as_deref().and_then(find))
            .map_or(&[], |names| names.found)
    }
}

/// `decoder.layers.3.self_attention.q` as `decoder.layers.{i}.self_attention.q`; a second number is
/// an expert's: `{e}`.
fn pattern(module: &str) -> String {
    let mut marks = ["{i}", "{e}"].into_iter();
    let parts: Vec<&str> = module
        .split('.')
        .map(|part| if is_number(part) { marks.next().unwrap_or(part) } else { part })
        .collect();
    parts.join(".")
}

fn is_number(part: &str) -> bool {
    part.bytes().all(|b| b.is_ascii_digit())
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
        let mut numbers = module.split('.').filter(|part| is_number(part));
        for mark in ["{i}", "{e}"] {
            let number = numbers.next().unwrap_or_default();
            if name.contains(mark) {
                name = name.replace(mark, number);
            }
        }
        // A tensor of all experts is a parameter of its own, not a module's.
        if !matches!(self.form, Form::Tensor | Form::Experts { .. }) {
            name.push('.');
            name.push_str(parameter);
        }
        name
    }
}

/// How a module lies in a checkpoint's tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As it is: `[out, in]`.
    Plain,
    /// As it is, under the whole name of a tensor instead of a module's.
    Tensor,
    /// `[in, out]`: GPT-2's Conv1D.
    Transposed,
    /// A part of a fused `[in, q | k | v]`: GPT-2.
    TransposedFused(FusedPart),
    /// A part of a fused `[q | k | v, in]`: Phi-3.
    Fused(FusedPart),
    /// A part of a fused projection whose rows come by groups of heads: the query heads that share
    /// a key head, this key head, its value head. BLOOM, GPT-NeoX, Falcon.
    FusedByGroup(FusedPart),
    /// The first (0) or the second (1) half of the rows of a fused `[gate | up, in]`: Phi-3.
    Half(usize),
    /// A part of one expert's rows in a tensor `[n_experts, rows, in]` of all.
    Experts {
        /// Which of the parts.
        part: usize,
        /// How many parts an expert's rows have.
        n_parts: usize,
    },
}

/// Which part of a fused q, k, v projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

static FAMILIES: [&Family; 32] = [
    &bart::BART,
    &bert::FAMILY,
    &bloom::FAMILY,
    &roberta::CAMEMBERT,
    &deberta_v2::FAMILY,
    &distilbert::FAMILY,
    &electra::FAMILY,
    &falcon::FAMILY,
    &gemma::GEMMA,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &gpt2::FAMILY,
    &gpt_neo::FAMILY,
    &gpt_neox::FAMILY,
    &gptj::FAMILY,
    &llama::FAMILY,
    &bart::MARIAN,
    &bart::MBART,
    &mistral::FAMILY,
    &mixtral::FAMILY,
    &mpnet::FAMILY,
    &t5::MT5,
    &opt::FAMILY,
    &bart::PEGASUS,
    &phi::FAMILY,
    &phi3::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &roberta::FAMILY,
    &t5::T5,
    &t5::UMT5,
    &roberta::XLM,
];

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
            nearest: nearest(&config.model_type),
            known: model_types().collect::<Vec<_>>().join(", "),
        });
    };
    let renamed = renamed(config, family.aliases);
    let reader = Reader::new(renamed.as_ref().unwrap_or(config), family.model_type);
    // Those that the weights are read by; others are refused.
    QuantizationConfig::read(&config.json)?;
    let mut architecture = (family.describe)(&reader)?;
    heads::add(&mut architecture, &reader)?;
    Ok(architecture)
}

/// The config with other names of keys replaced, if it has any.
fn renamed(config: &ModelConfig, aliases: &[(&str, &str)]) -> Option<ModelConfig> {
    let json = &config.json;
    let mut object = json.value().as_object()?.clone();
    for (alias, key) in aliases {
        if json.contains(alias) && !json.contains(key) {
            object.insert((*key).to_owned(), object.get(*alias).cloned()?);
        }
    }
    let names = aliases.iter().map(|(alias, key)| (*key, *alias));
    Some(ModelConfig { json: json.renamed(object.into(), names), ..config.clone() })
}

/// The known family whose name is most like `model_type`.
fn nearest(model_type: &str) -> &'static str {
    let model_type: String = model_type.chars().take(80).collect::<String>().to_lowercase();
    let likeness = |name: &&'static str| (strsim::jaro_winkler(name, &model_type) * 1e6) as u64;
    model_types().max_by_key(likeness).unwrap_or_default()
}

#[cfg(test)]
mod tests;
