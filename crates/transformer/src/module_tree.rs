//! A model's modules as a tree with sizes: what a device map is made from.

use crate::tensor::CanonicalTensor;

/// A module, its tensors and the modules in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Module {
    /// Canonical path; empty for the whole model.
    pub path: String,
    /// Bytes of everything under it in the checkpoint's data types. A tensor that is tied to an
    /// earlier one counts there only.
    pub bytes: u64,
    /// Elements of everything under it, counted likewise.
    pub n_parameters: u64,
    /// Canonical names of the tensors that are directly its own.
    pub tensors: Vec<String>,
    /// The modules in it, in order.
    pub children: Vec<Module>,
}

impl Module {
    /// Whether it is a layer of a stack: what a device map doesn't split.
    pub fn is_layer(&self) -> bool {
        let mut parts = self.path.split('.').skip(1);
        parts.next() == Some("layers") && parts.next().is_some() && parts.next().is_none()
    }

    /// The module with this path in the tree.
    pub fn find(&self, path: &str) -> Option<&Module> {
        if self.path == path {
            return Some(self);
        }
        self.children.iter().find_map(|child| {
            let on_the_way = path == child.path
                || path.strip_prefix(&child.path).is_some_and(|rest| rest.starts_with('.'));
            if on_the_way { child.find(path) } else { None }
        })
    }

    /// The tree over `tensors`, each with whether it is tied to an earlier one.
    pub(crate) fn tree<'t, 'a: 't>(
        tensors: impl Iterator<Item = (&'t CanonicalTensor<'a>, bool)>,
    ) -> Self {
        let mut root = Self::default();
        for (tensor, tied) in tensors {
            let (bytes, n) =
                if tied { (0, 0) } else { (tensor.bytes(), tensor.n_elements() as u64) };
            let mut at = &mut root;
            at.bytes += bytes;
            at.n_parameters += n;
            for part in tensor.spec.module.split('.') {
                let path = if at.path.is_empty() {
                    part.to_owned()
                } else {
                    format!("{}.{part}", at.path)
                };
                // Tensors come in module order, so a module that exists is the last child.
                if at.children.last().is_none_or(|last| last.path != path) {
                    at.children.push(Self { path, ..Self::default() });
                }
                let Some(child) = at.children.last_mut() else { break };
                at = child;
                at.bytes += bytes;
                at.n_parameters += n;
            }
            at.tensors.push(tensor.name());
        }
        root
    }
}
