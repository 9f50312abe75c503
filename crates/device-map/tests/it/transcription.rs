//! The rules of balancing and inference once more, over names, as slow as they are plain; and the crate
//! against them.

use std::collections::BTreeMap;

use drivetrain_device_map::{Device, Mode, Plan, Sizes, Warning, balanced, infer};

use crate::random::{Case, Random, case};
use crate::tree::{Leaf, Tree, join};

const N_CASES: u64 = 8000;

/// Steps after which a case has no end.
const MAX_STEPS: usize = 5000;

/// Accelerate fails here: a tied parameter is in no part of the queue, or there is no end.
#[derive(Debug)]
struct Fails;

/// A part of the queue: its name, and the module if it is one.
type Part<'a> = (String, Option<&'a Tree>);

/// A map by name, what devices without anything needed, and the buffers that don't fit.
type Outcome = (BTreeMap<String, Device>, BTreeMap<Device, u64>, Option<u64>);

struct Plain<'a> {
    case: &'a Case,
    /// Bits of modules and tensors.
    sizes: BTreeMap<String, i64>,
    /// Their names, as they first have a size.
    order: Vec<String>,
    /// Sorted.
    ties: Vec<Vec<String>>,
}

/// Every module with its path.
fn modules<'a>(tree: &'a Tree, path: &str, found: &mut Vec<(String, &'a Tree)>) {
    found.push((path.to_owned(), tree));
    for child in &tree.children {
        modules(child, &join(path, &child.name), found);
    }
}

/// What replaces a module that is split.
fn pieces<'a>(path: &str, tree: &'a Tree) -> Vec<Part<'a>> {
    let parameters = tree.parameters.iter().map(|leaf| (join(path, &leaf.name), None));
    parameters
        .chain(tree.children.iter().map(|child| (join(path, &child.name), Some(child))))
        .collect()
}

impl<'a> Plain<'a> {
    fn new(case: &'a Case) -> Self {
        let mut ties = case.ties.clone();
        ties.iter_mut().for_each(|group| group.sort());
        ties.retain(|group| group.len() > 1);
        ties.sort();
        let mut plain = Self { case, sizes: BTreeMap::new(), order: Vec::new(), ties };
        let mut all = Vec::new();
        modules(&case.tree, "", &mut all);
        let mut is_counted = vec![false; plain.ties.len()];
        for (path, module) in &all {
            for leaf in &module.parameters {
                let name = join(path, &leaf.name);
                let group = plain.ties.iter().position(|group| group.contains(&name));
                if group.is_none_or(|group| !std::mem::replace(&mut is_counted[group], true)) {
                    plain.count(&name, plain.bits(leaf, &name, &name));
                }
            }
        }
        for (path, module) in &all {
            for leaf in &module.buffers {
                let name = join(path, &leaf.name);
                plain.count(&name, plain.bits(leaf, &name, &name));
            }
        }
        plain
    }

    fn bits(&self, leaf: &Leaf, special: &str, name: &str) -> i64 {
        let own = i64::from(leaf.element.bits);
        let special = self.case.special.iter().find(|(other, _)| other == special);
        let is_kept = |part: &String| name.split('.').any(|own| own == part);
        let bits = match special {
            Some((_, element)) => i64::from(element.bits),
            None if !leaf.element.is_floating => own,
            None if self.case.keep_in_f32.iter().any(is_kept) => 32,
            None => self.case.element.map_or(own, |element| own.min(i64::from(element.bits))),
        };
        leaf.n as i64 * bits
    }

    fn count(&mut self, name: &str, bits: i64) {
        let parts: Vec<&str> = name.split('.').collect();
        for n in 0..=parts.len() {
            let prefix = parts[..n].join(".");
            if !self.sizes.contains_key(&prefix) {
                self.order.push(prefix.clone());
            }
            *self.sizes.entry(prefix).or_default() += bits;
        }
    }

    fn size(&self, name: &str) -> i64 {
        self.sizes.get(name).copied().unwrap_or(0)
    }

    fn is_whole(&self, module: &Tree) -> bool {
        module.children.is_empty() || self.case.placement.no_split_classes.contains(&module.class)
    }

    // Balancing.

    fn limits(&self) -> BTreeMap<Device, f64> {
        self.case.limits.iter().map(|(device, bytes)| (device, bytes as f64)).collect()
    }

    fn balanced(&self, is_low: bool) -> Result<BTreeMap<Device, f64>, Fails> {
        let mut limits = self.limits();
        let gpu = Device::Accelerator;
        let gpus: Vec<Device> = limits
            .keys()
            .copied()
            .filter(|device| matches!(device, Device::Accelerator(_)))
            .collect();
        let used: Vec<Device> =
            gpus.iter().copied().filter(|device| limits[device] > 0.0).collect();
        if used.is_empty() {
            return Ok(limits);
        }
        if used.len() == 1 {
            if self.case.is_measured {
                *limits.get_mut(&gpus[0]).unwrap() *= 0.9;
            }
            return Ok(limits);
        }
        let n = if is_low { used.len() - 1 } else { used.len() } as f64;
        let total = self.size("") as f64 / 8.0;
        let block = self.block();
        let share = (total / n).floor() + (1.25 * block.max(self.leaf())).floor();
        for device in &used[..used.len() - 1] {
            if !(is_low && *device == gpu(0)) {
                let limit = limits.get_mut(device).unwrap();
                *limit = limit.min(share);
            }
        }
        if is_low {
            let mut rest = total;
            for index in 1..used.len() as u32 {
                rest -= limits.get(&gpu(index)).ok_or(Fails)?;
            }
            let limit = limits.get_mut(&gpu(0)).ok_or(Fails)?;
            *limit = limit.min(rest.max(0.0));
        }
        Ok(limits)
    }

    /// Largest of the first modules of the classes that stay whole.
    fn block(&self) -> f64 {
        let mut all = Vec::new();
        modules(&self.case.tree, "", &mut all);
        let class =
            |name: &String| all.iter().find(|(path, _)| path == name).map(|(_, m)| &m.class);
        let sizes = self.case.placement.no_split_classes.iter().filter_map(|wanted| {
            let first =
                self.order.iter().find(|name| !name.is_empty() && class(name) == Some(wanted));
            Some(self.size(first?) as f64 / 8.0)
        });
        sizes.fold(0.0, f64::max)
    }

    /// Mean of the modules with tensors and without modules with tensors.
    fn leaf(&self) -> f64 {
        let has_part = |name: &String, names: &[String]| {
            names
                .iter()
                .any(|other| other.rsplit_once('.').is_some_and(|(parent, _)| parent == name))
        };
        let is_leaf = |name: &&String, names: &[String]| !name.is_empty() && !has_part(name, names);
        let is_module = |name: &&String| !is_leaf(name, &self.order);
        let named: Vec<String> = self.order.iter().filter(is_module).cloned().collect();
        let leaves: Vec<&String> = named.iter().filter(|name| is_leaf(name, &named)).collect();
        let sum: f64 = leaves.iter().map(|name| self.size(name) as f64 / 8.0).sum();
        (sum / leaves.len().max(1) as f64).floor()
    }

    // Inference.

    fn infer(&self, limits: &BTreeMap<Device, f64>) -> Result<Outcome, Fails> {
        let limits: BTreeMap<Device, i64> =
            limits.iter().map(|(device, bytes)| (*device, (bytes * 8.0).floor() as i64)).collect();
        let mut devices: Vec<Device> = limits.keys().copied().collect();
        devices.push(Device::Disk);
        let gpus: Vec<Device> =
            devices.iter().copied().filter(|device| device.is_accelerator()).collect();
        let main = if gpus.contains(&Device::Mps) {
            vec![Device::Mps]
        } else {
            gpus.first().copied().into_iter().chain([Device::Cpu]).collect()
        };
        let root = &self.case.tree;
        let mut queue = pieces("", root);
        queue.extend(root.buffers.iter().map(|leaf| (leaf.name.clone(), None)));
        let mut used: BTreeMap<Device, i64> = devices.iter().map(|device| (*device, 0)).collect();
        let (mut reserve, mut largest) = self.reserve(&queue, false);
        let mut map: BTreeMap<String, Device> = BTreeMap::new();
        let mut short = BTreeMap::new();
        let mut buffers: BTreeMap<Device, i64> = BTreeMap::new();
        let mut current = 0;
        for _ in 0..MAX_STEPS {
            if queue.is_empty() {
                let buffers = self.buffers_left(&buffers, &gpus, &limits, &used);
                return Ok((clean(map), short, buffers));
            }
            let (name, module) = queue.remove(0);
            largest.retain(|other| other != &name && !other.starts_with(&format!("{name}.")));
            if largest.is_empty() {
                (reserve, largest) = self.reserve(&queue, true);
            }
            let device = devices[current];
            let kept = if main.contains(&device) { reserve } else { 0 };
            let room = limits.get(&device).filter(|_| device != Device::Disk);
            let room = room.map(|limit| limit - kept - used[&device]);
            let tied = self.tied(&name, &queue)?;
            let own = self.size(&name);
            let all =
                own + tied.iter().map(|(p, part)| self.size(&part.0) - self.size(p)).sum::<i64>();
            let Some(room) = room.filter(|room| all > *room) else {
                *used.get_mut(&device).unwrap() += all;
                map.insert(name.clone(), device);
                for (_, (tied, _)) in tied {
                    queue.retain(|(other, _)| *other != tied);
                    map.insert(tied, device);
                }
                let module = module.map_or(0, |module| self.buffers(module, ("", &name)));
                *buffers.entry(device).or_default() += module;
                continue;
            };
            let cut =
                tied.iter().find(|(_, (_, tied))| tied.is_some_and(|tied| !self.is_whole(tied)));
            if let Some((_, (cut, Some(tied)))) = cut.filter(|_| own <= room) {
                let place = queue.iter().position(|(other, _)| other == cut).unwrap();
                queue.splice(place..=place, pieces(cut, tied));
                queue.insert(0, (name, module));
                (reserve, largest) = self.reserve(&queue, true);
                continue;
            }
            if let Some(module) = module.filter(|module| own >= room && !self.is_whole(module)) {
                queue.splice(0..0, pieces(&name, module));
                (reserve, largest) = self.reserve(&queue, true);
                continue;
            }
            if used[&device] == 0 && self.case.placement.fallback_allocation {
                let room = limits[&device] - reserve.max(all);
                if let Some(found) = self.fallback(&mut queue, room)? {
                    queue.insert(0, (name, module));
                    queue.insert(0, found);
                    continue;
                }
            }
            if used[&device] == 0 {
                short.insert(device, bytes(all + kept));
            }
            *used.get_mut(&device).unwrap() += kept;
            current += 1;
            queue.insert(0, (name, module));
        }
        Err(Fails)
    }

    /// Parameters tied to one in `name` and outside of it, each with the part that it is in.
    fn tied(&self, name: &str, queue: &[Part<'a>]) -> Result<Vec<(String, Part<'a>)>, Fails> {
        let dotted = format!("{name}.");
        let is_inside = |parameter: &&String| format!("{parameter}.").contains(&dotted);
        let mut tied = Vec::new();
        for group in self.ties.iter().filter(|group| group.iter().any(|p| is_inside(&p))) {
            for parameter in group.iter().filter(|parameter| !is_inside(parameter)) {
                let holds = |(part, _): &&Part<'a>| parameter.starts_with(&format!("{part}."));
                tied.push((parameter.clone(), queue.iter().find(holds).ok_or(Fails)?.clone()));
            }
        }
        Ok(tied)
    }

    /// The largest size of what can't be split, and who has it.
    fn reserve(&self, queue: &[Part<'a>], modules_only: bool) -> (i64, Vec<String>) {
        let mut layers = Vec::new();
        for (name, module) in queue {
            match module {
                Some(module) => self.layers(name, module, &mut layers),
                None if !modules_only => layers.push(name.clone()),
                None => {}
            }
        }
        let most = layers.iter().map(|name| self.size(name)).max().unwrap_or(0);
        layers.retain(|name| self.size(name) == most);
        (most, layers)
    }

    fn layers(&self, name: &str, module: &Tree, layers: &mut Vec<String>) {
        if self.is_whole(module) {
            layers.push(name.to_owned());
        } else {
            module
                .children
                .iter()
                .for_each(|child| self.layers(&join(name, &child.name), child, layers));
        }
    }

    /// Takes a part that fits out of the queue.
    fn fallback(&self, queue: &mut Vec<Part<'a>>, room: i64) -> Result<Option<Part<'a>>, Fails> {
        if room < 0 {
            return Ok(None);
        }
        let mut search = queue.clone();
        let found = loop {
            if search.is_empty() {
                return Ok(None);
            }
            let (name, module) = search.remove(0);
            let ties = self.tied(&name, &search)?.into_iter();
            let ties: i64 = ties.map(|(p, (part, _))| self.size(&part) - self.size(&p)).sum();
            if self.size(&name) + ties <= room {
                break (name, module);
            }
            if let Some(module) = module.filter(|module| !self.is_whole(module)) {
                search.splice(0..0, pieces(&name, module));
            }
        };
        loop {
            if let Some(place) = queue.iter().position(|(name, _)| *name == found.0) {
                queue.remove(place);
                return Ok(Some(found));
            }
            let around = |(name, _): &Part<'a>| found.0.starts_with(&format!("{name}."));
            let place = queue.iter().position(around).unwrap();
            let (name, module) = queue[place].clone();
            queue.splice(place..=place, pieces(&name, module.unwrap()));
        }
    }

    /// Buffers in a module, which is `path` to its own tensors and `full` in the model.
    fn buffers(&self, module: &Tree, (path, full): (&str, &str)) -> i64 {
        let own = module.buffers.iter();
        let own = own.map(|leaf| self.bits(leaf, &join(path, &leaf.name), &join(full, &leaf.name)));
        let inner = module
            .children
            .iter()
            .map(|child| self.buffers(child, (&join(path, &child.name), &join(full, &child.name))));
        own.sum::<i64>() + inner.sum::<i64>()
    }

    /// Buffers of offloaded modules, if they are to stay on accelerators and none has room.
    fn buffers_left(
        &self,
        buffers: &BTreeMap<Device, i64>,
        gpus: &[Device],
        limits: &BTreeMap<Device, i64>,
        used: &BTreeMap<Device, i64>,
    ) -> Option<u64> {
        let on = |device| buffers.get(&device).copied().unwrap_or(0);
        let left = on(Device::Cpu) + on(Device::Disk);
        let has_room = gpus.iter().any(|gpu| limits[gpu] >= left + used[gpu]);
        let is_bad = left > 0 && !gpus.is_empty() && !has_room;
        (is_bad && !self.case.placement.offload_buffers).then(|| bytes(left))
    }
}

fn bytes(bits: i64) -> u64 {
    (bits.max(0) as u64).div_ceil(8)
}

/// Groups what is under one prefix and on one device.
fn clean(mut map: BTreeMap<String, Device>) -> BTreeMap<String, Device> {
    clean_under(&mut map, "");
    map
}

fn clean_under(map: &mut BTreeMap<String, Device>, path: &str) {
    let prefix = if path.is_empty() { String::new() } else { format!("{path}.") };
    let under: Vec<String> = map.keys().filter(|name| name.starts_with(&prefix)).cloned().collect();
    if under.len() > 1 && under.iter().all(|name| map[name] == map[&under[0]]) {
        let device = map[&under[0]];
        under.iter().for_each(|name| _ = map.remove(name));
        map.insert(path.to_owned(), device);
        return;
    }
    let n = prefix.matches('.').count();
    let mut children: Vec<String> = under
        .iter()
        .filter(|name| name.len() > path.len())
        .map(|name| name.split('.').take(n + 1).collect::<Vec<_>>().join("."))
        .collect();
    children.dedup();
    for child in children {
        clean_under(map, &child);
    }
}

/// What the crate planned, in the same form.
fn outcome(plan: &Plan) -> Outcome {
    let map = plan.map.iter().map(|(name, device)| (name.to_owned(), device)).collect();
    let (mut short, mut buffers) = (BTreeMap::new(), None);
    for warning in &plan.warnings {
        match warning {
            Warning::InsufficientMemory { device, needed_bytes } => {
                short.insert(*device, *needed_bytes);
            }
            Warning::BuffersDontFit { buffer_bytes } => buffers = Some(*buffer_bytes),
            other => panic!("{other}"),
        }
    }
    (map, short, buffers)
}

#[test]
fn the_crate_does_as_the_transcription() {
    let (mut n_same, mut n_fails) = (0, 0);
    for seed in 0..N_CASES {
        let case = case(&mut Random::new(seed), 1 + seed as usize % 3);
        let (plain, model) = (Plain::new(&case), case.model());
        let sizes = Sizes::new(&model, case.sizing());
        for (mode, is_low) in [
            (Mode::Sequential, None),
            (Mode::Balanced, Some(false)),
            (Mode::BalancedLowZero, Some(true)),
        ] {
            let limits = balanced(&sizes, &case.limits, &case.placement.no_split_classes, mode);
            let found = outcome(&infer(&sizes, &limits, &case.placement));
            let expect = is_low.map_or_else(|| Ok(plain.limits()), |is_low| plain.balanced(is_low));
            let Ok(expect) = expect else {
                n_fails += 1;
                continue;
            };
            let whole: Vec<(Device, u64)> =
                expect.iter().map(|(device, bytes)| (*device, bytes.floor() as u64)).collect();
            let found_limits: Vec<_> = limits.iter().collect();
            assert_eq!(found_limits, whole, "seed {seed}, {mode:?}: {case:#?}");
            match plain.infer(&expect) {
                Ok(expect) => {
                    assert_eq!(found, expect, "seed {seed}, {mode:?}: {case:#?}");
                    n_same += 1;
                }
                Err(Fails) => n_fails += 1,
            }
        }
    }
    // Most cases have a result to compare with.
    assert!(n_same > 5 * n_fails, "{n_same} compared, {n_fails} without a result");
}
