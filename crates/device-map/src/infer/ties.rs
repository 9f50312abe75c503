//! What has to be on the same device as a part, because parameters are tied.

use crate::model::{Model, NodeId};
use crate::sizes::Bits;

use super::Inference;

/// What placing a part takes.
pub(super) struct Need {
    /// Size of the part.
    pub(super) own: Bits,
    /// Size with everything that comes along.
    pub(super) with_ties: Bits,
    /// Parameters tied to one in the part and not in it themselves, each with the part of the queue that
    /// holds it. A part with several of them is there several times, and counts so.
    pub(super) tied: Vec<(NodeId, NodeId)>,
}

impl Inference<'_> {
    /// What placing `part` takes.
    pub(super) fn need(&self, part: NodeId) -> Need {
        self.need_among(part, |parameter| holder(self.model, self.queue.iter(), parameter))
    }

    /// The same with another queue, in which `find` finds who holds a parameter.
    pub(super) fn need_among(&self, part: NodeId, find: impl Fn(NodeId) -> Option<NodeId>) -> Need {
        let own = self.sizes.of(part);
        let tied = self.tied_to(part).into_iter();
        let tied: Vec<_> =
            tied.filter_map(|parameter| Some((parameter, find(parameter)?))).collect();
        let size = |(parameter, holder): &(NodeId, NodeId)| {
            self.sizes.of(*holder) - self.sizes.of(*parameter)
        };
        let with_ties = own + tied.iter().map(size).sum::<Bits>();
        Need { own, with_ties, tied }
    }

    /// Parameters that are tied to one inside `part` and are outside themselves. Inside is whose name,
    /// with a dot after it, has the part's name with a dot anywhere: `0` is taken to hold `10.weight`.
    fn tied_to(&self, part: NodeId) -> Vec<NodeId> {
        let name = self.model.name(part);
        let with_dot = format!("{name}.");
        let is_inside = |id: &NodeId| {
            let parameter = self.model.name(*id);
            parameter.contains(&with_dot) || parameter.ends_with(name)
        };
        let mut tied = Vec::new();
        for group in self.model.tied() {
            let outside = group.iter().copied().filter(|id| !is_inside(id));
            let outside: Vec<NodeId> = outside.collect();
            if outside.len() < group.len() {
                tied.extend(outside);
            }
        }
        tied
    }
}

/// The part of a queue that is or holds `parameter`.
pub(super) fn holder<'q>(
    model: &Model,
    mut queue: impl Iterator<Item = &'q NodeId>,
    parameter: NodeId,
) -> Option<NodeId> {
    queue.find(|part| model.range(**part).contains(&parameter)).copied()
}
