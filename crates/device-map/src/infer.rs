//! The map itself: modules in order onto devices in order.
//!
//! A queue holds the parts of the model that have no device yet, at first what is directly in it. The
//! part in front goes onto the current device together with whatever holds a parameter tied to one in it,
//! if they fit. If not, what is too large is cut: a module it is tied to, or else the part itself, whose
//! parameters and modules then take its place. What can't be cut waits for the next device; with
//! `fallback_allocation`, a device that is still empty first takes any part that fits.
//!
//! The first accelerator and the CPU keep room for the largest module that can't be cut and is still to
//! come: a module that is offloaded is brought there when it is its turn.
//!
//! ```text
//! while a part is in front:
//!     room = limit - (reserve, on the first accelerator and the CPU) - used
//!     part and ties fit in room       -> placed, all of them
//!     part fits, a tied module is cut -> the same part again
//!     part needs room or more, is cut -> its pieces in front
//!     nothing here yet, fallback      -> a part that fits goes in front of this one
//!     otherwise                       -> the next device, the same part again
//! ```
//!
//! The disk is the last device and has room for all, so this ends.

mod fallback;
mod reserve;
mod ties;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use crate::collapse::collapse;
use crate::device::Device;
use crate::limits::Limits;
use crate::map::DeviceMap;
use crate::model::{Model, NodeId, NodeKind};
use crate::sizes::{Bits, Sizes, bytes_for};
use crate::warning::Warning;
use reserve::Reserve;
use ties::Need;

/// How parts may be placed.
#[derive(Clone, Debug, Default)]
pub struct Placement {
    /// Classes of modules that stay whole, such as a layer with a residual connection.
    pub no_split_classes: Vec<String>,
    /// Where the next part doesn't fit onto an empty device, look for another one that does.
    pub fallback_allocation: bool,
    /// Buffers of offloaded modules are offloaded with them; otherwise they need room on an accelerator.
    pub offload_buffers: bool,
}

/// A map, and what it was made with.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The map.
    pub map: DeviceMap,
    /// The limits that it keeps to.
    pub limits: Limits,
    /// What is odd about it.
    pub warnings: Vec<Warning>,
}

/// The map that fills devices in order. It may leave buffers that are directly a module's own without
/// a device, where that module is on several: see [`DeviceMap::check`]. Warnings are logged, too.
pub fn infer(sizes: &Sizes<'_>, limits: &Limits, placement: &Placement) -> Plan {
    let mut inference = Inference::new(sizes, limits, placement);
    while let Some(part) = inference.queue.pop_front() {
        inference.treat(part);
    }
    let warnings = inference.warnings();
    warnings.iter().for_each(Warning::log);
    let name = |(id, device): &(NodeId, Device)| (sizes.model().name(*id).to_owned(), *device);
    let entries: Vec<_> = inference.placed.iter().map(name).collect();
    let map = DeviceMap::of_distinct(collapse(&entries));
    Plan { map, limits: limits.clone(), warnings }
}

/// The work on one map.
struct Inference<'a> {
    sizes: &'a Sizes<'a>,
    model: &'a Model,
    limits: &'a Limits,
    placement: &'a Placement,
    /// For each node, whether it stays whole.
    stays_whole: Vec<bool>,
    /// In the order of filling, the disk last.
    devices: Vec<Device>,
    /// Which of them is filled now.
    current: usize,
    /// What each holds and keeps free.
    used: BTreeMap<Device, Bits>,
    /// Parts without a device.
    queue: VecDeque<NodeId>,
    reserve: Reserve,
    placed: Vec<(NodeId, Device)>,
    /// Buffers that stay behind when what each device holds is offloaded.
    buffers: BTreeMap<Device, Bits>,
    /// Devices that got nothing, with what they would have needed.
    short: Vec<(Device, Bits)>,
    /// What fallback took since something was last placed, cut or left to the next device.
    taken: BTreeSet<NodeId>,
}

impl<'a> Inference<'a> {
    fn new(sizes: &'a Sizes<'a>, limits: &'a Limits, placement: &'a Placement) -> Self {
        let model = sizes.model();
        let classes: HashSet<&str> =
            placement.no_split_classes.iter().map(String::as_str).collect();
        let stays_whole = (0..model.n_nodes()).map(|id| {
            let node = model.node(id);
            let named = matches!(&node.kind, NodeKind::Module { class } if classes.contains(class.as_str()));
            named || node.children.is_empty()
        });
        let stays_whole: Vec<bool> = stays_whole.collect();
        let mut devices: Vec<Device> = limits.devices().collect();
        if devices.last() != Some(&Device::Disk) {
            devices.push(Device::Disk);
        }
        let queue: VecDeque<NodeId> = model.parts(0).chain(model.own_buffers(0)).collect();
        let reserve = Reserve::of(queue.iter().copied(), sizes, &stays_whole);
        Self {
            sizes,
            model,
            limits,
            placement,
            stays_whole,
            devices,
            current: 0,
            used: BTreeMap::new(),
            queue,
            reserve,
            placed: Vec::new(),
            buffers: BTreeMap::new(),
            short: Vec::new(),
            taken: BTreeSet::new(),
        }
    }

    /// Places the part, cuts something, or goes on to the next device.
    fn treat(&mut self, part: NodeId) {
        self.reserve.leave(self.model.range(part));
        if self.reserve.is_stale() {
            self.renew_reserve();
        }
        let need = self.need(part);
        let device = self.device();
        let used = self.used(device);
        let kept_free = if self.is_main(device) { self.reserve.bits } else { 0 };
        let limit = match device {
            Device::Disk => None,
            _ => self.limits.bits(device).map(|limit| limit - kept_free),
        };
        let Some(limit) = limit.filter(|limit| used + need.with_ties > *limit) else {
            return self.place(part, &need, device);
        };
        let is_tied = !need.tied.is_empty();
        if is_tied && used + need.own <= limit && self.cut_tied(part, &need) {
            return;
        }
        if used + need.own >= limit && !self.stays_whole[part] {
            return self.cut(part);
        }
        if used == 0 && self.placement.fallback_allocation && self.fall_back(part, &need) {
            return;
        }
        if used == 0 {
            self.short.push((device, need.with_ties + kept_free));
        }
        *self.used.entry(device).or_default() += kept_free;
        self.current += 1;
        self.taken.clear();
        self.queue.push_front(part);
    }

    fn device(&self) -> Device {
        self.devices.get(self.current).copied().unwrap_or(Device::Disk)
    }

    fn used(&self, device: Device) -> Bits {
        self.used.get(&device).copied().unwrap_or(0)
    }

    /// Whether offloaded modules are brought to it.
    fn is_main(&self, device: Device) -> bool {
        if self.devices.contains(&Device::Mps) {
            return device == Device::Mps;
        }
        device == Device::Cpu || device.is_accelerator() && self.devices.first() == Some(&device)
    }

    fn place(&mut self, part: NodeId, need: &Need, device: Device) {
        *self.used.entry(device).or_default() += need.with_ties;
        self.placed.push((part, device));
        let mut tied: Vec<NodeId> = Vec::new();
        for (_, holder) in &need.tied {
            if !tied.contains(holder) {
                tied.push(*holder);
            }
        }
        if !tied.is_empty() {
            self.queue.retain(|id| !tied.contains(id));
        }
        self.placed.extend(tied.into_iter().map(|id| (id, device)));
        if self.model.node(part).is_module() {
            *self.buffers.entry(device).or_default() += self.sizes.buffers(part);
        }
        self.taken.clear();
    }

    /// Cuts the first module tied to `part` that may be; `part` stays in front. Whether there is one.
    fn cut_tied(&mut self, part: NodeId, need: &Need) -> bool {
        let cut = need.tied.iter().find(|(_, holder)| !self.stays_whole[*holder]);
        let Some((_, holder)) = cut.copied() else { return false };
        replace(&mut self.queue, holder, self.model);
        self.queue.push_front(part);
        self.renew_reserve();
        self.taken.clear();
        true
    }

    /// Puts the pieces of `part` in front.
    fn cut(&mut self, part: NodeId) {
        for piece in self.model.parts(part).rev() {
            self.queue.push_front(piece);
        }
        self.renew_reserve();
        self.taken.clear();
    }

    fn renew_reserve(&mut self) {
        let modules = self.queue.iter().copied().filter(|id| self.model.node(*id).is_module());
        self.reserve = Reserve::of(modules, self.sizes, &self.stays_whole);
    }

    fn warnings(&self) -> Vec<Warning> {
        let short = self.short.iter().map(|(device, bits)| Warning::InsufficientMemory {
            device: *device,
            needed_bytes: bytes_for(*bits),
        });
        let mut warnings: Vec<Warning> = short.collect();
        let offloaded = [Device::Cpu, Device::Disk];
        let buffers: Bits = offloaded.iter().filter_map(|device| self.buffers.get(device)).sum();
        let mut accelerators =
            self.devices.iter().filter(|device| device.is_accelerator()).peekable();
        let has_accelerators = accelerators.peek().is_some();
        let has_room = accelerators.any(|device| {
            let limit = self.limits.bits(*device).unwrap_or(0);
            limit >= buffers + self.used(*device)
        });
        let stays = !self.placement.offload_buffers && buffers > 0;
        if stays && has_accelerators && !has_room {
            warnings.push(Warning::BuffersDontFit { buffer_bytes: bytes_for(buffers) });
        }
        warnings
    }
}

/// Replaces a module in the queue by its parameters and the modules in it.
fn replace(queue: &mut VecDeque<NodeId>, module: NodeId, model: &Model) {
    let Some(place) = queue.iter().position(|id| *id == module) else { return };
    let rest = queue.split_off(place);
    queue.extend(model.parts(module));
    queue.extend(rest.into_iter().skip(1));
}
