//! A model's tensors under their canonical names, checked against the description.

use std::collections::{HashMap, HashSet};

use drivetrain_artifacts::{Tensor, Weights};

use crate::adapter::{AdapterFiles, Merge};
use crate::architecture::{Architecture, Layer};
use crate::attention::Attention;
use crate::error::{TensorProblem, TransformerError};
use crate::families::{self, Family, Form, FusedPart, Place};
use crate::feed_forward::FeedForwardForm;
use crate::module_tree::Module;
use crate::spec::{Parameter, Presence, TensorSpec};
use crate::tensor::{CanonicalTensor, Rows, Scratch};

/// The tensors of a model under their canonical names.
///
/// Made once, ahead of reading: every tensor that the description calls for is there and has the
/// shape that the config calls for. Two canonical tensors that are tied have one source; a token
/// table and a head that are both in the files and differ are not tied, whatever the config says.
#[derive(Debug)]
pub struct CanonicalWeights<'a> {
    tensors: Vec<CanonicalTensor<'a>>,
    by_name: HashMap<String, usize>,
    by_source: HashMap<(&'a str, Rows), usize>,
    /// For each tensor, the first one with the same source; itself if it is that.
    first_of: Vec<usize>,
    /// Tensors of the files that no canonical tensor comes from.
    unused: Vec<String>,
    /// The names that token tables and heads have in checkpoints.
    aliases: Vec<String>,
    /// What an adapter does to them.
    merge: Merge,
}

impl<'a> CanonicalWeights<'a> {
    /// Finds every tensor of `architecture` in `weights`.
    ///
    /// # Errors
    /// [`TransformerError::Tensors`] with every tensor that is not as it should be.
    pub fn new(
        architecture: &Architecture,
        weights: &'a Weights,
    ) -> Result<Self, TransformerError> {
        Self::find(&Finder::new(architecture, weights)?)
    }

    /// The same with an adapter that is a part of the weights: [`Self::read_f32`] gives what it makes
    /// of them. What the adapter has in place of the model's tensors need not be in `weights`.
    ///
    /// # Errors
    /// As [`Self::new`], or the adapter does not fit.
    pub fn with_adapter(
        architecture: &Architecture,
        weights: &'a Weights,
        adapter: &'a AdapterFiles,
    ) -> Result<Self, TransformerError> {
        let mut finder = Finder::new(architecture, weights)?;
        let merge = Merge::new(adapter, finder.described)?;
        finder.merged = Some((&merge, adapter.weights()));
        let mut found = Self::find(&finder)?;
        let used: HashSet<&str> = found.tensors.iter().map(|tensor| tensor.source.name()).collect();
        let of_no_use: Vec<String> = merge
            .replaced()
            .filter(|name| !merge.replacement(name).is_some_and(|own| used.contains(own)))
            .map(str::to_owned)
            .collect();
        found.unused.extend(of_no_use);
        for (idx, tensor) in found.tensors.iter().enumerate() {
            // A changed table is no longer the one that it was tied to.
            let is_changed = merge.change(&tensor.spec.module).is_some();
            if let Some(first) = found.first_of.get_mut(idx)
                && is_changed
            {
                *first = idx;
            }
        }
        found.untie_from_changed(&merge);
        found.merge = merge;
        Ok(found)
    }

    fn find(finder: &Finder<'a, '_>) -> Result<Self, TransformerError> {
        let (architecture, weights) = (finder.described.architecture, finder.weights);
        let mut found = Self {
            tensors: Vec::new(),
            by_name: HashMap::new(),
            by_source: HashMap::new(),
            first_of: Vec::new(),
            unused: Vec::new(),
            aliases: finder.aliases().collect(),
            merge: Merge::default(),
        };
        let mut problems = Vec::new();
        let mut missing_modules = HashSet::new();
        for spec in architecture.tensors() {
            let weight = format!("{}.weight", spec.module);
            let has_weight = found.contains(&weight) || missing_modules.contains(&spec.module);
            if spec.presence == Presence::WithWeight && !has_weight {
                continue;
            }
            let module = spec.module.clone();
            match finder.find(spec) {
                Ok(Some(mut tensor)) => {
                    found.tie(&mut tensor);
                    found.push(tensor);
                }
                Ok(None) => {}
                Err(problem) => {
                    missing_modules.insert(module);
                    problems.push(problem);
                }
            }
        }
        let used: HashSet<&str> = found.tensors.iter().map(|tensor| tensor.source.name()).collect();
        let is_alias = |name: &str| found.aliases.iter().any(|alias| alias == name);
        let is_unused = |name: &&str| !used.contains(name) && !is_alias(name);
        found.unused = weights.names().filter(is_unused).map(str::to_owned).collect();
        if problems.is_empty() {
            return Ok(found);
        }
        Err(TransformerError::Tensors {
            files: finder.files(),
            problems,
            unused: std::mem::take(&mut found.unused),
        })
    }

    /// Names of the checkpoint's tensors that the description has no use for.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// The names that token tables and heads have in checkpoints, whether or not this one has a tensor
    /// under each: tied ones are in the files once.
    pub fn aliases(&self) -> &[String] {
        &self.aliases
    }

    /// The tensor of this canonical name, if the model has it.
    pub fn get(&self, name: &str) -> Option<&CanonicalTensor<'a>> {
        self.by_name.get(name).and_then(|idx| self.tensors.get(*idx))
    }

    /// Whether the model has a tensor of this canonical name.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// All tensors in the order of the modules; tied ones come again under each name.
    pub fn iter(&self) -> impl Iterator<Item = &CanonicalTensor<'a>> {
        self.tensors.iter()
    }

    /// The tensors that are not tied to an earlier one.
    pub fn distinct(&self) -> impl Iterator<Item = &CanonicalTensor<'a>> {
        let firsts = self.first_of.iter().enumerate().filter(|(idx, first)| idx == *first);
        firsts.filter_map(|(idx, _)| self.tensors.get(idx))
    }

    /// The first canonical name of the tensor that `name` stands for: another one than `name` if
    /// it is tied.
    pub fn first_name(&self, name: &str) -> Option<String> {
        let first = *self.first_of.get(*self.by_name.get(name)?)?;
        Some(self.tensors.get(first)?.name())
    }

    /// Writes the tensor `name` to `out`, row-major, with what an adapter makes of it.
    ///
    /// # Errors
    /// [`TransformerError::NoSuchTensor`], or as [`CanonicalTensor::read_f32`].
    pub fn read_f32(&self, name: &str, out: &mut [f32]) -> Result<(), TransformerError> {
        let Some(tensor) = self.get(name) else {
            return Err(TransformerError::NoSuchTensor { name: name.to_owned() });
        };
        tensor.read_f32(out)?;
        self.apply_change(tensor, out);
        Ok(())
    }

    /// As [`Self::read_f32`], but by system calls instead of the mapping: a file that became shorter, or
    /// a disk that fails, is an error and no fault.
    ///
    /// # Errors
    /// As [`Self::read_f32`], or the file can't be read.
    pub fn fetch_f32(
        &self,
        name: &str,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) -> Result<(), TransformerError> {
        let Some(tensor) = self.get(name) else {
            return Err(TransformerError::NoSuchTensor { name: name.to_owned() });
        };
        tensor.fetch_rows_f32(0, scratch, out)?;
        self.apply_change(tensor, out);
        Ok(())
    }

    /// Makes of a whole tensor what an adapter makes of it.
    fn apply_change(&self, tensor: &CanonicalTensor<'_>, out: &mut [f32]) {
        if let Some(change) = self.merge.change(&tensor.spec.module)
            && tensor.spec.parameter == Parameter::Weight
        {
            change.apply(out);
        }
    }

    /// Whether an adapter changes the tensor `name`: what the checkpoint holds is then not all of it.
    pub fn is_changed(&self, name: &str) -> bool {
        let change = |tensor: &CanonicalTensor<'_>| {
            tensor.spec.parameter == Parameter::Weight
                && self.merge.change(&tensor.spec.module).is_some()
        };
        self.get(name).is_some_and(change)
    }

    /// Ties those that were tied to a changed tensor to the first of them instead.
    fn untie_from_changed(&mut self, merge: &Merge) {
        let is_changed: Vec<bool> =
            self.tensors.iter().map(|tensor| merge.change(&tensor.spec.module).is_some()).collect();
        let mut heirs: HashMap<usize, usize> = HashMap::new();
        for (idx, first) in self.first_of.iter_mut().enumerate() {
            if *first != idx && is_changed.get(*first).copied().unwrap_or_default() {
                *first = *heirs.entry(*first).or_insert(idx);
            }
        }
    }

    /// Elements of all tensors, tied ones once.
    pub fn n_parameters(&self) -> u64 {
        self.distinct().map(|tensor| tensor.n_elements() as u64).sum()
    }

    /// Bytes of all tensors in the checkpoint's data types, tied ones once.
    pub fn total_bytes(&self) -> u64 {
        self.distinct().map(CanonicalTensor::bytes).sum()
    }

    /// The modules as a tree with sizes, as device maps are made from.
    pub fn modules(&self) -> Module {
        Module::tree(self.tensors.iter().enumerate().map(|(idx, tensor)| {
            let tied = self.first_of.get(idx).is_some_and(|first| *first != idx);
            (tensor, tied)
        }))
    }

    fn push(&mut self, tensor: CanonicalTensor<'a>) {
        let idx = self.tensors.len();
        let source = (tensor.source.name(), tensor.rows);
        let first = *self.by_source.entry(source).or_insert(idx);
        self.by_name.insert(tensor.name(), idx);
        self.first_of.push(first);
        self.tensors.push(tensor);
    }

    /// Gives a token table or head the source of an earlier one that holds the same numbers:
    /// `.bin` files have tied tensors under all their names.
    fn tie(&self, tensor: &mut CanonicalTensor<'a>) {
        let may_tie = |module: &str| module == "head" || module.ends_with(".embedding.tokens");
        if tensor.spec.shape.len() != 2 || !may_tie(&tensor.spec.module) {
            return;
        }
        let earlier = self.tensors.iter().find(|earlier| {
            may_tie(&earlier.spec.module)
                && earlier.spec.shape == tensor.spec.shape
                && is_same_data(earlier.source, tensor.source)
        });
        if let Some(earlier) = earlier {
            tensor.source = earlier.source;
        }
    }
}

/// The prefix under which one of the family's probes is there; the usual one if none is.
fn prefix(family: &Family, weights: &Weights) -> &'static str {
    let has_probe = |prefix: &str| {
        family.probes.iter().any(|probe| weights.contains(&format!("{prefix}{probe}")))
    };
    // The classes for question answering that transformers makes of any decoder say this one.
    let prefixes = family.prefixes.iter().copied().chain(["transformer."]);
    let found = prefixes.into_iter().find(|prefix| has_probe(prefix));
    found.or(family.prefixes.first().copied()).unwrap_or_default()
}

/// Whether two tensors of one shape hold the same numbers.
fn is_same_data(a: Tensor<'_>, b: Tensor<'_>) -> bool {
    if a.name() == b.name() {
        return true;
    }
    if a.dtype() == b.dtype() && a.strides() == b.strides() {
        return std::ptr::eq(a.bytes(), b.bytes()) || a.bytes() == b.bytes();
    }
    match (a.to_f32_vec(), b.to_f32_vec()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

/// A description with the names that its family's checkpoints have.
#[derive(Clone, Copy)]
pub(crate) struct Described<'b> {
    pub(crate) architecture: &'b Architecture,
    pub(crate) family: &'static Family,
}

impl<'b> Described<'b> {
    pub(crate) fn new(architecture: &'b Architecture) -> Result<Self, TransformerError> {
        let family = families::family(architecture.family).ok_or_else(|| {
            TransformerError::NoSuchTensor { name: architecture.family.to_owned() }
        })?;
        Ok(Self { architecture, family })
    }

    /// Prefixes that names of the family's modules may have, none included.
    pub(crate) fn prefixes(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.family.prefixes.iter().copied().chain(["", "transformer."])
    }

    /// Which rows of a tensor of this form are those of `spec`; and the number of experts, if the
    /// tensor is one of all of them.
    pub(crate) fn rows(&self, spec: &TensorSpec, form: Form) -> (Rows, Option<usize>) {
        let out = spec.shape.first().copied().unwrap_or_default();
        let all = (Rows::all(out), None);
        match form {
            Form::Plain | Form::Tensor | Form::Transposed => all,
            Form::TransposedFused(part) | Form::Fused(part) => {
                let Some(layer) = self.layer(&spec.module) else { return all };
                (fused_rows(&layer.self_attention, part), None)
            }
            Form::FusedByGroup(part) => {
                let Some(layer) = self.layer(&spec.module) else { return all };
                (grouped_rows(&layer.self_attention, part), None)
            }
            Form::Half(half) => (Rows::run(half * out, out, 2 * out), None),
            Form::Experts { part, n_parts } => {
                let form = self.layer(&spec.module).map(|layer| layer.feed_forward.form);
                let Some(FeedForwardForm::Experts { n_experts, .. }) = form else { return all };
                let n_experts = n_experts as usize;
                let mut numbers =
                    spec.module.rsplit('.').filter_map(|part| part.parse::<usize>().ok());
                let expert = numbers.next().unwrap_or_default();
                let start = (expert * n_parts + part) * out;
                (Rows::run(start, out, n_experts * n_parts * out), Some(n_experts))
            }
        }
    }

    /// The layer that `module` is in.
    fn layer(&self, module: &str) -> Option<&Layer> {
        let mut path = module.split('.');
        let stack = path.next();
        let layer_idx = path.nth(1).and_then(|idx| idx.parse::<usize>().ok())?;
        let stack = self.architecture.stacks().find(|s| Some(s.name) == stack)?;
        stack.layers.get(layer_idx)
    }
}

/// Finds the tensors of a description in a checkpoint.
struct Finder<'a, 'b> {
    described: Described<'b>,
    weights: &'a Weights,
    prefix: &'static str,
    /// An adapter whose tensors go before the checkpoint's.
    merged: Option<(&'b Merge, &'a Weights)>,
}

impl<'a, 'b> Finder<'a, 'b> {
    fn new(architecture: &'b Architecture, weights: &'a Weights) -> Result<Self, TransformerError> {
        let described = Described::new(architecture)?;
        let prefix = prefix(described.family, weights);
        Ok(Self { described, weights, prefix, merged: None })
    }

    /// A tensor that an adapter has in place of the one at `place`.
    fn replaced(&self, place: &Place, module: &str, parameter: &str) -> Option<Tensor<'a>> {
        let (merge, weights) = self.merged?;
        let names =
            self.described.prefixes().map(|prefix| place.tensor_name(prefix, module, parameter));
        let own = names.into_iter().find_map(|name| merge.replacement(&name))?;
        weights.get(own)
    }

    /// The tensor that `spec` calls for; `None` if it is optional and absent.
    fn find(&self, spec: TensorSpec) -> Result<Option<CanonicalTensor<'a>>, TensorProblem> {
        let parameter = spec.parameter.name();
        let Described { architecture, family } = self.described;
        let head = architecture.head.as_ref().map(|head| head.tied);
        let may_tie = head.or(architecture.task_head.map(|head| head.tied)).unwrap_or(false);
        let places = family.places(architecture, &spec.module, parameter);
        let mut tried = Vec::new();
        for place in places.iter().filter(|place| may_tie || !place.tied) {
            let old_name = if parameter == "weight" { "gamma" } else { "beta" };
            for parameter in [Some(parameter), spec.norm.then_some(old_name)].into_iter().flatten()
            {
                let name = place.tensor_name(self.prefix, &spec.module, parameter);
                let replaced = self.replaced(place, &spec.module, parameter);
                if let Some(source) = replaced.or_else(|| self.weights.get(&name)) {
                    return self.check(spec, place, source).map(Some);
                }
                tried.push(name);
            }
        }
        if spec.presence == Presence::Optional {
            return Ok(None);
        }
        Err(TensorProblem::Missing {
            name: tried.join(" or "),
            shape: spec.shape.clone(),
            keys: spec.keys.join(", "),
        })
    }

    /// The files, as far as a message names them.
    fn files(&self) -> String {
        let files = self.weights.files();
        let mut names: Vec<_> = files.iter().take(2).map(|f| f.display().to_string()).collect();
        if files.len() > 2 {
            names.push(format!("and {} more", files.len() - 2));
        }
        names.join(", ")
    }

    /// The names of token tables and heads, which files may hold once under each.
    fn aliases(&self) -> impl Iterator<Item = String> {
        let modules = ["encoder.embedding.tokens", "decoder.embedding.tokens", "head"];
        let Described { architecture, family } = self.described;
        modules.into_iter().flat_map(move |module| {
            let places = family.places(architecture, module, "weight");
            places.iter().map(move |p| p.tensor_name(self.prefix, module, "weight"))
        })
    }

    /// Holds `source` against the shape that it must have in the checkpoint.
    fn check(
        &self,
        spec: TensorSpec,
        place: &Place,
        source: Tensor<'a>,
    ) -> Result<CanonicalTensor<'a>, TensorProblem> {
        let (rows, n_experts) = self.described.rows(&spec, place.form);
        // What GPTQ and AWQ pack is turned to `[out, in]` first.
        let transposed = matches!(place.form, Form::Transposed | Form::TransposedFused(_))
            && source.groups().is_none();
        let mut expected = spec.shape.clone();
        if let Some(first) = expected.first_mut() {
            *first = rows.total / n_experts.unwrap_or(1);
        }
        if let Some(n_experts) = n_experts {
            expected.insert(0, n_experts);
        }
        if transposed {
            expected.reverse();
        }
        let mut found = source.shape();
        // A vector may be stored as one row of a matrix: BART's final_logits_bias.
        if expected.len() == 1 && found.len() == 2 && found.first() == Some(&1) {
            found = found.get(1..).unwrap_or_default();
        }
        if found != expected {
            return Err(TensorProblem::Shape {
                name: source.name().to_owned(),
                found: source.shape().to_vec(),
                expected,
                keys: spec.keys.join(", "),
            });
        }
        if !source.dtype().is_float() {
            return Err(TensorProblem::NotFloat {
                name: source.name().to_owned(),
                found: source.dtype().to_string(),
            });
        }
        Ok(CanonicalTensor { transposed: transposed && spec.shape.len() == 2, spec, source, rows })
    }
}

/// Rows of one part of a fused `q | k | v` projection.
fn fused_rows(attention: &Attention, part: FusedPart) -> Rows {
    let (q, kv) = (attention.q_width(), attention.kv_width());
    let (start, len) = match part {
        FusedPart::Q => (0, q),
        FusedPart::K => (q, kv),
        FusedPart::V => (q + kv, kv),
    };
    Rows::run(start, len, q + 2 * kv)
}

/// Rows of one part of a projection that is fused by groups: for each key head its query heads, the
/// key head, the value head.
fn grouped_rows(attention: &Attention, part: FusedPart) -> Rows {
    let (n_groups, head) = (attention.n_kv_heads as usize, attention.head_dim as usize);
    let queries = attention.q_width() / n_groups;
    let (start, block) = match part {
        FusedPart::Q => (0, queries),
        FusedPart::K => (queries, head),
        FusedPart::V => (queries + head, head),
    };
    let stride = queries + 2 * head;
    Rows { start, block, stride, n_blocks: n_groups, total: stride * n_groups }
}

#[cfg(test)]
mod tests;
