//! A whole model: its modules and tensors in one row, and which parameters are tied.

use std::collections::HashMap;
use std::ops::Range;

use crate::error::DeviceMapError;
use crate::module::{Elements, Module, Tensor};

/// Where a node is in the model's row.
pub(crate) type NodeId = usize;

/// Modules in modules in modules; real models have less than ten.
const MAX_DEPTH: usize = 128;

/// A whole model: its modules and tensors, and which parameters are tied.
#[derive(Clone, Debug)]
pub struct Model {
    /// Each module is followed by its parameters, its buffers, and the modules in it with all of theirs.
    nodes: Vec<Node>,
    by_name: HashMap<String, NodeId>,
    /// Groups of tied parameters, names in order, groups by their names.
    ties: Vec<Vec<NodeId>>,
    /// Whether a tensor's bytes count: not if it is tied to an earlier one.
    counts: Vec<bool>,
}

/// A module or tensor.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Path from the model, empty for the model itself.
    pub(crate) name: String,
    pub(crate) kind: NodeKind,
    pub(crate) parent: Option<NodeId>,
    /// The modules directly in it.
    pub(crate) children: Vec<NodeId>,
    /// Parameters directly its own.
    parameters: Range<NodeId>,
    /// Where what is in it ends.
    end: NodeId,
}

#[derive(Clone, Debug)]
pub(crate) enum NodeKind {
    Module { class: String },
    Parameter(Elements),
    Buffer(Elements),
}

impl Node {
    pub(crate) fn is_module(&self) -> bool {
        matches!(self.kind, NodeKind::Module { .. })
    }

    pub(crate) fn is_buffer(&self) -> bool {
        matches!(self.kind, NodeKind::Buffer(_))
    }

    /// Its elements, if it is a tensor.
    pub(crate) fn elements(&self) -> Option<&Elements> {
        match &self.kind {
            NodeKind::Module { .. } => None,
            NodeKind::Parameter(elements) | NodeKind::Buffer(elements) => Some(elements),
        }
    }
}

impl Model {
    /// A model with groups of full names of tied parameters, `decoder.embed.weight` and `head.weight`.
    ///
    /// # Errors
    /// A name is empty, has a dot or is there twice; modules are nested too deeply; a tied name is no
    /// parameter, is in two groups, or has another number of elements than the rest of its group.
    pub fn new(root: Module, ties: Vec<Vec<String>>) -> Result<Self, DeviceMapError> {
        let mut model = Self {
            nodes: Vec::new(),
            by_name: HashMap::new(),
            ties: Vec::new(),
            counts: Vec::new(),
        };
        model.add_module(root, String::new(), None, 0)?;
        model.counts = vec![true; model.nodes.len()];
        model.tie(ties)?;
        Ok(model)
    }

    /// Full names of all tensors; tied ones under each of theirs.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        let tensors = self.nodes.iter().filter(|node| !node.is_module());
        tensors.map(|node| node.name.as_str())
    }

    /// Whether the model has a module or tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// Groups of the full names of tied parameters.
    pub fn ties(&self) -> impl Iterator<Item = Vec<&str>> {
        self.ties.iter().map(|group| group.iter().map(|id| self.name(*id)).collect())
    }

    pub(crate) fn n_nodes(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    pub(crate) fn name(&self, id: NodeId) -> &str {
        &self.nodes[id].name
    }

    pub(crate) fn find(&self, name: &str) -> Option<NodeId> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn tied(&self) -> &[Vec<NodeId>] {
        &self.ties
    }

    /// Whether it is a tensor whose bytes count, which a tied one's do under its first name only.
    pub(crate) fn is_counted(&self, id: NodeId) -> bool {
        self.counts[id] && !self.nodes[id].is_module()
    }

    /// The node and everything in it.
    pub(crate) fn range(&self, id: NodeId) -> Range<NodeId> {
        id..self.nodes[id].end
    }

    /// What a module is replaced by when it is split: its parameters and the modules in it.
    pub(crate) fn parts(&self, id: NodeId) -> impl DoubleEndedIterator<Item = NodeId> {
        let node = &self.nodes[id];
        node.parameters.clone().chain(node.children.iter().copied())
    }

    /// Buffers that are directly the module's own.
    pub(crate) fn own_buffers(&self, id: NodeId) -> Range<NodeId> {
        let node = &self.nodes[id];
        node.parameters.end..node.children.first().copied().unwrap_or(node.end)
    }

    fn add_module(
        &mut self,
        module: Module,
        name: String,
        parent: Option<NodeId>,
        depth: usize,
    ) -> Result<NodeId, DeviceMapError> {
        if depth > MAX_DEPTH {
            return Err(DeviceMapError::TooDeep { name, most: MAX_DEPTH });
        }
        let id = self.add(name, NodeKind::Module { class: module.class }, parent)?;
        for parameter in module.parameters {
            self.add_tensor(parameter, id, NodeKind::Parameter)?;
        }
        self.nodes[id].parameters = id + 1..self.nodes.len();
        for buffer in module.buffers {
            self.add_tensor(buffer, id, NodeKind::Buffer)?;
        }
        let mut children = Vec::with_capacity(module.children.len());
        for child in module.children {
            let name = self.path(id, &child.name)?;
            children.push(self.add_module(child, name, Some(id), depth + 1)?);
        }
        self.nodes[id].children = children;
        self.nodes[id].end = self.nodes.len();
        Ok(id)
    }

    fn add_tensor(
        &mut self,
        tensor: Tensor,
        parent: NodeId,
        kind: fn(Elements) -> NodeKind,
    ) -> Result<(), DeviceMapError> {
        let name = self.path(parent, &tensor.name)?;
        self.add(name, kind(tensor.elements), Some(parent)).map(|_| ())
    }

    /// Adds a node without anything in it.
    fn add(
        &mut self,
        name: String,
        kind: NodeKind,
        parent: Option<NodeId>,
    ) -> Result<NodeId, DeviceMapError> {
        let id = self.nodes.len();
        if self.by_name.insert(name.clone(), id).is_some() {
            return Err(DeviceMapError::PartTwice { name });
        }
        let (children, parameters) = (Vec::new(), id + 1..id + 1);
        self.nodes.push(Node { name, kind, parent, children, parameters, end: id + 1 });
        Ok(id)
    }

    fn path(&self, parent: NodeId, name: &str) -> Result<String, DeviceMapError> {
        let parent = self.name(parent);
        if name.is_empty() || name.contains('.') {
            let (parent, name) = (parent.to_owned(), name.to_owned());
            return Err(DeviceMapError::PartName { parent, name });
        }
        Ok(if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") })
    }

    fn tie(&mut self, groups: Vec<Vec<String>>) -> Result<(), DeviceMapError> {
        let mut is_tied = vec![false; self.nodes.len()];
        for mut names in groups {
            names.sort_unstable();
            let mut group = Vec::with_capacity(names.len());
            for name in names {
                let Some(id) = self.find(&name) else {
                    return Err(DeviceMapError::TiedUnknown { name });
                };
                if std::mem::replace(&mut is_tied[id], true) {
                    return Err(DeviceMapError::TiedTwice { name });
                }
                self.check_like(group.first().copied().unwrap_or(id), id)?;
                group.push(id);
            }
            let first = group.iter().copied().min();
            for id in group.iter().filter(|id| Some(**id) != first) {
                self.counts[*id] = false;
            }
            self.ties.push(group);
        }
        self.ties.retain(|group| group.len() > 1);
        let (nodes, ties) = (&self.nodes, &mut self.ties);
        ties.sort_by_key(|group| group.first().map(|id| nodes[*id].name.as_str()));
        Ok(())
    }

    /// Whether `id` may be tied to `first`.
    fn check_like(&self, first: NodeId, id: NodeId) -> Result<(), DeviceMapError> {
        let name = self.name(id).to_owned();
        let (NodeKind::Parameter(expected), NodeKind::Parameter(found)) =
            (&self.nodes[first].kind, &self.nodes[id].kind)
        else {
            return Err(DeviceMapError::TiedUnknown { name });
        };
        if expected.n == found.n {
            return Ok(());
        }
        let first = self.name(first).to_owned();
        Err(DeviceMapError::TiedUnlike { name, found: found.n, first, expected: expected.n })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::module::Dtype;

    fn tensor(name: &str) -> Tensor {
        Tensor::new(name, 4, Dtype::F32)
    }

    fn linear(name: &str) -> Module {
        Module::new(name, "Linear")
            .with_parameter(tensor("weight"))
            .with_parameter(Tensor::new("bias", 2, Dtype::F32))
            .with_buffer(tensor("mask"))
    }

    fn pair() -> Module {
        Module::new("", "Pair").with_child(linear("a")).with_child(linear("b"))
    }

    fn error(root: Module, ties: &[&[&str]]) -> String {
        let ties = ties.iter().map(|group| group.iter().map(|&name| name.into()).collect());
        Model::new(root, ties.collect()).unwrap_err().to_string()
    }

    #[test]
    fn names_are_paths() {
        let model = Model::new(pair(), Vec::new()).unwrap();
        let names: Vec<&str> = model.tensors().collect();
        assert_eq!(names, ["a.weight", "a.bias", "a.mask", "b.weight", "b.bias", "b.mask"]);
        assert!(model.contains("") && model.contains("b") && !model.contains("c"));
        let a = model.find("a").unwrap();
        assert_eq!(
            model.parts(a).map(|id| model.name(id)).collect::<Vec<_>>(),
            ["a.weight", "a.bias"]
        );
        assert_eq!(model.own_buffers(a).map(|id| model.name(id)).collect::<Vec<_>>(), ["a.mask"]);
    }

    #[test]
    fn a_tied_tensor_counts_under_its_first_name() {
        let ties =
            vec![vec!["b.weight".to_owned(), "a.weight".to_owned()], vec!["a.bias".to_owned()]];
        let model = Model::new(pair(), ties).unwrap();
        let counts = |name: &str| model.is_counted(model.find(name).unwrap());
        assert!(counts("a.weight") && !counts("b.weight") && counts("a.bias") && !counts("a"));
        assert_eq!(model.ties().collect::<Vec<_>>(), [["a.weight", "b.weight"]]);
    }

    #[test]
    fn what_is_no_model_is_refused() {
        let twice = pair().with_child(linear("b"));
        assert_eq!(error(twice, &[]), r#"the model has two parts named "b""#);
        let twice = linear("").with_child(linear("bias"));
        assert_eq!(error(twice, &[]), r#"the model has two parts named "bias""#);
        let dotted = pair().with_child(Module::new("c", "C").with_child(linear("d.e")));
        let expect = r#""c" has a part named "d.e"; a name is not empty and has no dot"#;
        assert_eq!(error(dotted, &[]), expect);
        assert!(error(pair().with_parameter(tensor("")), &[]).contains("a part named \"\""));
        let mut deep = linear("x");
        for _ in 0..=MAX_DEPTH {
            deep = Module::new("x", "X").with_child(deep);
        }
        assert!(error(deep, &[]).ends_with("modules are nested deeper than 128"));
    }

    #[test]
    fn what_can_not_be_tied_is_refused() {
        for name in ["c.weight", "a", "a.mask"] {
            let expect = format!("{name:?} is tied to others, and is no parameter of the model");
            assert_eq!(error(pair(), &[&[name, "b.weight"]]), expect);
        }
        let expect =
            r#""a.weight" is in two groups of tied parameters; groups with a common name are one"#;
        assert_eq!(error(pair(), &[&["a.weight", "b.weight"], &["a.weight", "b.bias"]]), expect);
        assert!(error(pair(), &[&["a.weight", "a.weight"]]).contains("two groups"));
        let expect = r#""b.weight" has 4 elements and is tied to "a.bias", which has 2"#;
        assert_eq!(error(pair(), &[&["b.weight", "a.bias"]]), expect);
    }
}
