//! How large each part of a model is once it is loaded.

use std::collections::HashMap;

use crate::model::{Model, Node, NodeId};
use crate::module::{Dtype, Elements, Numbers};

/// Sizes are counted in bits, since a boolean is one; also differences, which may be negative.
pub(crate) type Bits = i128;

/// Whole bytes that `bits` need.
pub(crate) fn bytes_for(bits: Bits) -> u64 {
    u64::try_from(bits.max(0).saturating_add(7) / 8).unwrap_or(u64::MAX)
}

/// Whole bytes that are in `bits`.
pub(crate) fn bytes_in(bits: Bits) -> u64 {
    u64::try_from(bits.max(0) / 8).unwrap_or(u64::MAX)
}

/// How tensors are stored once they are loaded.
#[derive(Clone, Debug, Default)]
pub struct Sizing {
    /// Type that floating point numbers are converted to, unless theirs is smaller; without one all
    /// stays as it is.
    pub dtype: Option<Dtype>,
    /// Types of some tensors, by full name, whatever their own.
    pub special_dtypes: HashMap<String, Dtype>,
    /// Names of modules, at any place in the tree, whose floating point numbers are 32 bits each; T5's
    /// is `wo`.
    pub keep_in_f32: Vec<String>,
}

impl Sizing {
    /// Size of a tensor which is `name` to the special types and `full_name` in the model.
    fn bits(&self, elements: &Elements, name: &str, full_name: &str) -> Bits {
        if let Some(dtype) = self.special_dtypes.get(name) {
            return dtype.bits(elements.n);
        }
        if elements.numbers == Numbers::Whole {
            return elements.bits;
        }
        if self.keep_in_f32.iter().any(|kept| has_part(full_name, kept)) {
            return Dtype::F32.bits(elements.n);
        }
        self.dtype.map_or(elements.bits, |dtype| dtype.bits(elements.n).min(elements.bits))
    }
}

/// Whether `part`, one or several names, is in the path `name`.
fn has_part(name: &str, part: &str) -> bool {
    format!(".{name}.").contains(&format!(".{part}."))
}

/// How large each part of a model is: the sum of the tensors in it, a tied one under its first name.
#[derive(Clone, Debug)]
pub struct Sizes<'m> {
    model: &'m Model,
    sizing: Sizing,
    /// For each node.
    bits: Vec<Bits>,
}

impl<'m> Sizes<'m> {
    /// The sizes of the parts of `model`.
    pub fn new(model: &'m Model, sizing: Sizing) -> Self {
        let mut bits = vec![0; model.n_nodes()];
        // What is in a module comes after it.
        for id in (0..model.n_nodes()).rev() {
            let node = model.node(id);
            if let Some(elements) = node.elements()
                && model.is_counted(id)
            {
                bits[id] = sizing.bits(elements, &node.name, &node.name);
            }
            if let Some(parent) = node.parent {
                bits[parent] += bits[id];
            }
        }
        Self { model, sizing, bits }
    }

    /// The model.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// Bytes of the module or tensor of this name.
    pub fn bytes_of(&self, name: &str) -> Option<u64> {
        self.model.find(name).map(|id| bytes_for(self.of(id)))
    }

    /// Bytes of the whole model.
    pub fn total_bytes(&self) -> u64 {
        bytes_for(self.total())
    }

    pub(crate) fn of(&self, id: NodeId) -> Bits {
        self.bits[id]
    }

    pub(crate) fn total(&self) -> Bits {
        self.bits.first().copied().unwrap_or(0)
    }

    /// Buffers in a module. Accelerate looks special types up by names within the module here.
    pub(crate) fn buffers(&self, module: NodeId) -> Bits {
        let prefix = self.model.name(module).len() + 1;
        let buffers = self.model.range(module).filter(|id| *id != module);
        let buffers = buffers.map(|id| self.model.node(id)).filter(|node| node.is_buffer());
        let size = |node: &Node| {
            let elements = node.elements()?;
            let name = node.name.get(prefix..).unwrap_or_default();
            Some(self.sizing.bits(elements, name, &node.name))
        };
        buffers.filter_map(size).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::module::{Module, Tensor};

    fn model() -> Model {
        let norm = Module::new("norm", "BatchNorm")
            .with_parameter(Tensor::new("weight", 4, Dtype::F32))
            .with_buffer(Tensor::new("mean", 4, Dtype::F32))
            .with_buffer(Tensor::new("count", 1, Dtype::I64))
            .with_buffer(Tensor::new("seen", 9, Dtype::BOOL));
        let wo = Module::new("wo", "Linear")
            .with_parameter(Tensor::new("weight", 6, Dtype::F16))
            .with_parameter(Tensor::new("q", 6, Dtype::I8));
        let two = Module::new("two", "Linear")
            .with_parameter(Tensor::new("weight", 32, Dtype::F32))
            .with_parameter(Tensor::packed("blocks", 32, 18));
        let root = Module::new("", "M").with_child(norm).with_child(wo).with_child(two);
        Model::new(root, Vec::new()).unwrap()
    }

    fn check(sizing: &Sizing, expect: &[(&str, u64)]) {
        let model = model();
        let sizes = Sizes::new(&model, sizing.clone());
        for (name, bytes) in expect {
            assert_eq!(sizes.bytes_of(name), Some(*bytes), "{name:?}");
        }
        assert_eq!(sizes.bytes_of("other"), None);
        assert_eq!(sizes.total_bytes(), sizes.bytes_of("").unwrap());
    }

    #[test]
    fn sizes_are_sums() {
        // Nine booleans are nine bits.
        let own = [("norm", 42), ("norm.seen", 2), ("wo", 18), ("two", 146), ("", 206)];
        check(&Sizing::default(), &own);
        let f16 = Sizing { dtype: Some(Dtype::F16), ..Sizing::default() };
        check(&f16, &[("norm.weight", 8), ("norm.count", 8), ("wo", 18), ("two", 64 + 18)]);
        let f64 = Sizing { dtype: Some(Dtype::F64), ..Sizing::default() };
        check(&f64, &own);
    }

    #[test]
    fn some_tensors_have_types_of_their_own() {
        let special = [("wo.weight", Dtype::F32), ("norm.count", Dtype::I8), ("weight", Dtype::I2)];
        let sizing = Sizing {
            dtype: Some(Dtype::F16),
            special_dtypes: special.map(|(name, dtype)| (name.to_owned(), dtype)).into(),
            keep_in_f32: vec!["wo".to_owned(), "norm.weight".to_owned(), "wei".to_owned()],
        };
        check(&sizing, &[("wo.weight", 24), ("wo.q", 6), ("norm.count", 1), ("norm.weight", 16)]);
        check(&sizing, &[("two.weight", 64), ("two.blocks", 18), ("norm.mean", 8)]);
    }

    #[test]
    fn buffers_have_special_types_by_their_names_in_the_module() {
        let special = [("mean", Dtype::I8), ("norm.count", Dtype::I8)];
        let special_dtypes = special.map(|(name, dtype)| (name.to_owned(), dtype)).into();
        let model = model();
        let sizes = Sizes::new(&model, Sizing { special_dtypes, ..Sizing::default() });
        let norm = model.find("norm").unwrap();
        assert_eq!(sizes.buffers(norm), (4 + 8) * 8 + 9);
        assert_eq!(sizes.bytes_of("norm.count"), Some(1));
    }

    #[test]
    fn sizes_beyond_all_memory_do_not_wrap() {
        let huge = |name| Tensor::new(name, u64::MAX, Dtype::F64);
        let root = Module::new("", "M").with_parameter(huge("a")).with_parameter(huge("b"));
        let model = Model::new(root, Vec::new()).unwrap();
        assert_eq!(Sizes::new(&model, Sizing::default()).total_bytes(), u64::MAX);
    }
}
