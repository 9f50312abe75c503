//! Room for the largest module that can't be cut.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::model::NodeId;
use crate::sizes::{Bits, Sizes};

/// The largest size of what can't be cut, and who has it.
pub(super) struct Reserve {
    pub(super) bits: Bits,
    /// Those of this size that have not been in front yet.
    largest: BTreeSet<NodeId>,
}

impl Reserve {
    /// Looks through `parts`: a tensor can't be cut, nor a module that stays whole; of any other module,
    /// the modules in it are looked at, and its own parameters are not.
    pub(super) fn of(
        parts: impl Iterator<Item = NodeId>,
        sizes: &Sizes<'_>,
        stays_whole: &[bool],
    ) -> Self {
        let mut reserve = Self { bits: 0, largest: BTreeSet::new() };
        let model = sizes.model();
        for part in parts {
            let mut range = model.range(part);
            while let Some(id) = range.next() {
                let is_own_tensor = id != part && !model.node(id).is_module();
                if stays_whole[id] && !is_own_tensor {
                    reserve.add(id, sizes.of(id));
                    range.start = model.range(id).end;
                }
            }
        }
        reserve
    }

    fn add(&mut self, id: NodeId, bits: Bits) {
        if bits > self.bits {
            self.bits = bits;
            self.largest.clear();
        }
        if bits == self.bits {
            self.largest.insert(id);
        }
    }

    /// A part with all that is in it comes to the front.
    pub(super) fn leave(&mut self, part: Range<NodeId>) {
        while let Some(id) = self.largest.range(part.clone()).next().copied() {
            self.largest.remove(&id);
        }
    }

    /// Whether all of the largest have been in front.
    pub(super) fn is_stale(&self) -> bool {
        self.largest.is_empty()
    }
}
