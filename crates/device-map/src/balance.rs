//! Limits under which accelerators get about the same.
//!
//! Filling devices in order puts all on the first ones. So each accelerator but the last may hold no more
//! than its share of the model, and somewhat more than the largest piece that can't be cut, since pieces
//! don't end where shares do. The last keeps its whole limit, so that nothing is left over for the CPU:
//!
//! ```text
//! share = model / accelerators + 1.25 max(largest no-split module, mean module without modules in it)
//! ```
//!
//! Where the first accelerator is to be spared, the others share the model, and it may hold what they
//! can't.

use std::collections::HashSet;

use crate::device::Device;
use crate::limits::{Limits, Origin};
use crate::model::{Model, NodeId, NodeKind};
use crate::setting::Mode;
use crate::sizes::{Bits, Sizes};

/// The limits under which filling devices in order is what `mode` says. `no_split_classes` are modules
/// that stay whole.
pub fn balanced(
    sizes: &Sizes<'_>,
    limits: &Limits,
    no_split_classes: &[String],
    mode: Mode,
) -> Limits {
    let mut limits = limits.clone();
    let is_numbered = |device: &Device| matches!(device, Device::Accelerator(_));
    let accelerators: Vec<Device> = limits.devices().filter(is_numbered).collect();
    let in_use = accelerators.iter().copied();
    let in_use: Vec<Device> =
        in_use.filter(|device| limits.bits(*device).is_some_and(|bits| bits > 0)).collect();
    let (Some(first), Some((_, all_but_last))) = (accelerators.first(), in_use.split_last()) else {
        return limits;
    };
    if mode == Mode::Sequential {
        return limits;
    }
    if all_but_last.is_empty() {
        if limits.origin() == Origin::Measured {
            limits.set(*first, limits.bits(*first).unwrap_or(0) * 9 / 10);
        }
        return limits;
    }
    let is_first_spared = mode == Mode::BalancedLowZero;
    let n_shares = in_use.len() - usize::from(is_first_spared);
    let share = share(sizes, n_shares, no_split_classes);
    for device in all_but_last.iter().filter(|device| !(is_first_spared && *device == first)) {
        limits.set(*device, limits.bits(*device).unwrap_or(0).min(share));
    }
    if is_first_spared {
        let rest = (sizes.total() - others(&limits, &accelerators, in_use.len())).max(0);
        limits.set(*first, limits.bits(*first).unwrap_or(0).min(rest));
    }
    limits
}

/// What all accelerators but the first may hold: those with numbers from 1 to below `n`, or where one of
/// these is missing, those that there are.
fn others(limits: &Limits, accelerators: &[Device], n: usize) -> Bits {
    let numbered =
        (1..n).map(|index| Device::Accelerator(u32::try_from(index).unwrap_or(u32::MAX)));
    let numbered: Option<Bits> = numbered.map(|device| limits.bits(device)).sum();
    let there = accelerators.iter().skip(1).filter_map(|device| limits.bits(*device));
    let starts_at_zero = accelerators.first() == Some(&Device::Accelerator(0));
    numbered.filter(|_| starts_at_zero).unwrap_or_else(|| there.sum())
}

/// What each of `n` accelerators may hold; whole bytes.
fn share(sizes: &Sizes<'_>, n: usize, no_split_classes: &[String]) -> Bits {
    let n = Bits::try_from(n).unwrap_or(1).max(1);
    let block = largest_block(sizes, no_split_classes);
    let piece = block.max(mean_leaf(sizes));
    // A quarter more than the piece, in whole bytes.
    (sizes.total() / (8 * n) + piece * 5 / 32) * 8
}

/// The largest of the modules that are the first of their class, of the classes that stay whole. First is
/// whose parameters come first; modules of buffers alone come last.
fn largest_block(sizes: &Sizes<'_>, no_split_classes: &[String]) -> Bits {
    let model = sizes.model();
    let mut wanted: HashSet<&str> = no_split_classes.iter().map(String::as_str).collect();
    let mut seen = vec![false; model.n_nodes()];
    let mut largest = 0;
    let counted = (0..model.n_nodes()).filter(|id| model.is_counted(*id));
    let (buffers, parameters): (Vec<NodeId>, Vec<NodeId>) =
        counted.partition(|id| model.node(*id).is_buffer());
    for tensor in parameters.into_iter().chain(buffers) {
        if wanted.is_empty() {
            break;
        }
        for module in around(model, tensor) {
            let NodeKind::Module { class } = &model.node(module).kind else { continue };
            if !std::mem::replace(&mut seen[module], true) && wanted.remove(class.as_str()) {
                largest = largest.max(sizes.of(module));
            }
        }
    }
    largest
}

/// Mean size, in whole bytes, of modules with tensors whose modules have none.
fn mean_leaf(sizes: &Sizes<'_>) -> Bits {
    let model = sizes.model();
    let mut has_tensors = vec![false; model.n_nodes()];
    let mut has_modules = vec![false; model.n_nodes()];
    for tensor in (0..model.n_nodes()).filter(|id| model.is_counted(*id)) {
        let around = around(model, tensor);
        for module in &around {
            has_tensors[*module] = true;
        }
        for module in around.iter().rev().skip(1) {
            has_modules[*module] = true;
        }
    }
    let leaves = (0..model.n_nodes()).filter(|id| has_tensors[*id] && !has_modules[*id]);
    let (mut sum, mut n) = (0, 0);
    for leaf in leaves {
        sum += sizes.of(leaf);
        n += 1;
    }
    sum / (8 * n.max(1)) * 8
}

/// The modules that a tensor is in, the outermost first; the model itself is none of them.
fn around(model: &Model, tensor: NodeId) -> Vec<NodeId> {
    let parents = std::iter::successors(model.node(tensor).parent, |id| model.node(*id).parent);
    let mut modules: Vec<NodeId> = parents.filter(|id| model.node(*id).parent.is_some()).collect();
    modules.reverse();
    modules
}
