//! A model's tensors under their canonical names, checked against the description.

use std::collections::HashMap;

use drivetrain_artifacts::{Tensor, Weights};

use crate::architecture::Architecture;
use crate::error::TransformerError;
use crate::families::{self, Family, Form, FusedPart, Place};
use crate::module_tree::Module;
use crate::spec::{Presence, TensorSpec};
use crate::tensor::{CanonicalTensor, Rows};

/// The tensors of a model under their canonical names.
///
/// Made once, ahead of reading: every tensor that the description calls for is there and has the
/// shape that the config calls for. Two canonical tensors that are tied have one source; a token
/// table and a head that are both in the files and differ are not tied, whatever the config says.
#[derive(Debug)]
pub struct CanonicalWeights<'a> {
    tensors: Vec<CanonicalTensor<'a>>,
    by_name: HashMap<String, usize>,
    by_source: HashMap<(&'a str, usize, usize), usize>,
    /// For each tensor, the first one with the same source; itself if it is that.
    first_of: Vec<usize>,
}

impl<'a> CanonicalWeights<'a> {
    /// Finds every tensor of `architecture` in `weights`.
    ///
    /// # Errors
    /// [`TransformerError::MissingTensor`], [`TransformerError::ShapeMismatch`] or
    /// [`TransformerError::NotFloat`] for the first tensor that is not as it should be.
    pub fn new(
        architecture: &Architecture,
        weights: &'a Weights,
    ) -> Result<Self, TransformerError> {
        let family = families::family(architecture.family).ok_or_else(|| {
            TransformerError::NoSuchTensor { name: architecture.family.to_owned() }
        })?;
        let finder = Finder { architecture, weights, family, prefix: prefix(family, weights) };
        let mut found = Self {
            tensors: Vec::new(),
            by_name: HashMap::new(),
            by_source: HashMap::new(),
            first_of: Vec::new(),
        };
        for spec in architecture.tensors() {
            let weight = format!("{}.weight", spec.module);
            if spec.presence == Presence::WithWeight && !found.contains(&weight) {
                continue;
            }
            if let Some(mut tensor) = finder.find(spec)? {
                found.tie(&mut tensor);
                found.push(tensor);
            }
        }
        Ok(found)
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

    /// Writes the tensor `name` to `out`, row-major.
    ///
    /// # Errors
    /// [`TransformerError::NoSuchTensor`], or as [`CanonicalTensor::read_f32`].
    pub fn read_f32(&self, name: &str, out: &mut [f32]) -> Result<(), TransformerError> {
        match self.get(name) {
            Some(tensor) => tensor.read_f32(out),
            None => Err(TransformerError::NoSuchTensor { name: name.to_owned() }),
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
        let source = (tensor.source.name(), tensor.rows.start, tensor.rows.len);
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
    let found = family.prefixes.iter().copied().find(|prefix| has_probe(prefix));
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

struct Finder<'a, 'b> {
    architecture: &'b Architecture,
    weights: &'a Weights,
    family: &'static Family,
    prefix: &'static str,
}

impl<'a> Finder<'a, '_> {
    /// The tensor that `spec` calls for; `None` if it is optional and absent.
    fn find(&self, spec: TensorSpec) -> Result<Option<CanonicalTensor<'a>>, TransformerError> {
        let parameter = spec.parameter.name();
        let may_tie = self.architecture.head.as_ref().is_some_and(|head| head.tied);
        let places = self.family.places(&spec.module, parameter);
        let mut tried = Vec::new();
        for place in places.iter().filter(|place| may_tie || !place.tied) {
            let old_name = if parameter == "weight" { "gamma" } else { "beta" };
            for parameter in [Some(parameter), spec.norm.then_some(old_name)].into_iter().flatten()
            {
                let name = place.tensor_name(self.prefix, &spec.module, parameter);
                if let Some(source) = self.weights.get(&name) {
                    return self.check(spec, place, source).map(Some);
                }
                tried.push(name);
            }
        }
        if spec.presence == Presence::Optional {
            return Ok(None);
        }
        Err(self.missing(&spec, &tried))
    }

    fn missing(&self, spec: &TensorSpec, tried: &[String]) -> TransformerError {
        let files = self.weights.files();
        let mut names: Vec<_> = files.iter().take(2).map(|f| f.display().to_string()).collect();
        if files.len() > 2 {
            names.push(format!("and {} more", files.len() - 2));
        }
        TransformerError::MissingTensor {
            files: names.join(", "),
            name: tried.join(" or "),
            shape: spec.shape.clone(),
            keys: spec.keys.join(", "),
        }
    }

    /// Holds `source` against the shape that it must have in the checkpoint.
    fn check(
        &self,
        spec: TensorSpec,
        place: &Place,
        source: Tensor<'a>,
    ) -> Result<CanonicalTensor<'a>, TransformerError> {
        let out = spec.shape.first().copied().unwrap_or_default();
        let all = Rows { start: 0, len: out, total: out };
        let (transposed, rows) = match place.form {
            Form::Plain | Form::Tensor => (false, all),
            Form::Transposed => (true, all),
            Form::TransposedFused(part) => (true, self.fused_rows(&spec.module, part, all)),
        };
        let mut expected = spec.shape.clone();
        if let Some(first) = expected.first_mut() {
            *first = rows.total;
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
            return Err(TransformerError::ShapeMismatch {
                file: source.file().to_owned(),
                name: source.name().to_owned(),
                found: source.shape().to_vec(),
                expected,
                keys: spec.keys.join(", "),
            });
        }
        if !source.dtype().is_float() {
            return Err(TransformerError::NotFloat {
                file: source.file().to_owned(),
                name: source.name().to_owned(),
                found: source.dtype().to_string(),
            });
        }
        Ok(CanonicalTensor { transposed: transposed && spec.shape.len() == 2, spec, source, rows })
    }

    /// Rows of one part of a fused `q | k | v` projection; `all` if `module` is in no layer.
    fn fused_rows(&self, module: &str, part: FusedPart, all: Rows) -> Rows {
        let mut path = module.split('.');
        let stack = path.next();
        let layer_idx = path.nth(1).and_then(|idx| idx.parse::<usize>().ok());
        let stack = self.architecture.stacks().find(|s| Some(s.name) == stack);
        let layer = stack.and_then(|stack| stack.layers.get(layer_idx?));
        let Some(attention) = layer.map(|layer| &layer.self_attention) else { return all };
        let (q, kv) = (attention.q_width(), attention.kv_width());
        let (start, len) = match part {
            FusedPart::Q => (0, q),
            FusedPart::K => (q, kv),
            FusedPart::V => (q + kv, kv),
        };
        Rows { start, len, total: q + 2 * kv }
    }
}

#[cfg(test)]
mod tests;
