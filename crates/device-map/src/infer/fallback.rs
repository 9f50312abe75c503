//! A part that fits where the one in front doesn't.

use std::collections::VecDeque;

use crate::model::NodeId;
use crate::sizes::Bits;

use super::ties::{Need, holder};
use super::{Inference, replace};

impl Inference<'_> {
    /// Puts a part that fits onto the current device in front of `part`, which doesn't. Whether there is
    /// one. The device is empty.
    pub(super) fn fall_back(&mut self, part: NodeId, need: &Need) -> bool {
        let Some(limit) = self.limits.bits(self.device()) else { return false };
        let room = limit - self.reserve.bits.max(need.with_ties);
        let Some(found) = self.find_fitting(part, room) else { return false };
        if !self.taken.insert(found) {
            return false;
        }
        // Cut what it is in, down to itself.
        while let Some(around) = holder(self.model, self.queue.iter(), found) {
            if around == found {
                break;
            }
            replace(&mut self.queue, around, self.model);
        }
        self.queue.retain(|id| *id != found);
        self.queue.push_front(part);
        self.queue.push_front(found);
        true
    }

    /// The first part that fits into `room` with its ties. A module that doesn't is cut.
    fn find_fitting(&self, part: NodeId, room: Bits) -> Option<NodeId> {
        if room < 0 {
            return None;
        }
        let mut search: VecDeque<NodeId> = self.queue.clone();
        while let Some(id) = search.pop_front() {
            let need = self.need_among(id, |parameter| {
                let unplaced = || std::iter::once(&part).chain(&self.queue);
                holder(self.model, search.iter(), parameter)
                    .or_else(|| holder(self.model, unplaced(), parameter))
            });
            if need.with_ties <= room {
                return Some(id);
            }
            if !self.stays_whole[id] {
                for piece in self.model.parts(id).rev() {
                    search.push_front(piece);
                }
            }
        }
        None
    }
}
