//! Models as plain trees, from which the crate's and the transcription's are made.

use drivetrain_device_map::{Dtype, Module, Tensor};

/// A type of elements: its bits, and whether they are floating point numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Element {
    pub(crate) bits: u32,
    pub(crate) is_floating: bool,
}

impl Element {
    pub(crate) fn new(bits: u32, is_floating: bool) -> Self {
        Self { bits, is_floating }
    }

    pub(crate) fn dtype(self) -> Dtype {
        if self.is_floating { Dtype::floating(self.bits) } else { Dtype::whole(self.bits) }
    }
}

/// A tensor.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    pub(crate) name: String,
    pub(crate) n: u64,
    pub(crate) element: Element,
}

/// A module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    pub(crate) name: String,
    pub(crate) class: String,
    pub(crate) parameters: Vec<Leaf>,
    pub(crate) buffers: Vec<Leaf>,
    pub(crate) children: Vec<Tree>,
}

impl Tree {
    pub(crate) fn module(&self) -> Module {
        let tensors = |leaves: &[Leaf]| {
            let tensor = |leaf: &Leaf| Tensor::new(&leaf.name, leaf.n, leaf.element.dtype());
            leaves.iter().map(tensor).collect::<Vec<_>>()
        };
        Module {
            name: self.name.clone(),
            class: self.class.clone(),
            parameters: tensors(&self.parameters),
            buffers: tensors(&self.buffers),
            children: self.children.iter().map(Tree::module).collect(),
        }
    }
}

/// The full name of what is `name` in the module `path`.
pub(crate) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
