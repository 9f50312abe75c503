//! What holds for every map, whatever the model.

use std::collections::BTreeSet;

use drivetrain_device_map::{Device, Mode, Sizes, balanced, infer};

use crate::random::{Random, case};
use crate::tree::Tree;

const N_CASES: u64 = 4000;
const MODES: [Mode; 3] = [Mode::Sequential, Mode::Balanced, Mode::BalancedLowZero];

#[test]
fn every_parameter_has_a_device_that_there_is() {
    for seed in 0..N_CASES {
        let case = case(&mut Random::new(seed), 1 + seed as usize % 3);
        let model = case.model();
        let sizes = Sizes::new(&model, case.sizing());
        let is_buffer = |name: &str| name.ends_with("mean") || name.ends_with("mask");
        for mode in MODES {
            let limits = balanced(&sizes, &case.limits, &case.placement.no_split_classes, mode);
            let plan = infer(&sizes, &limits, &case.placement);
            let devices: BTreeSet<Device> =
                limits.iter().map(|(device, _)| device).chain([Device::Disk]).collect();
            for name in model.tensors() {
                let device = plan.map.device_of(name);
                let is_placed = device.is_some_and(|device| devices.contains(&device));
                assert!(is_placed || is_buffer(name), "seed {seed}, {mode:?}: {name}: {plan:#?}");
            }
            let names: BTreeSet<&str> = plan.map.iter().map(|(name, _)| name).collect();
            assert_eq!(names.len(), plan.map.iter().count(), "seed {seed}, {mode:?}");
            assert!(names.iter().all(|name| model.contains(name)), "seed {seed}, {mode:?}");
        }
    }
}

#[test]
fn no_device_holds_more_than_its_limit() {
    for seed in 0..N_CASES {
        let mut case = case(&mut Random::new(seed), 1 + seed as usize % 3);
        // A tied module may be counted on one device while its bytes are on another, and the buffers of
        // a module that is split are not counted at all.
        case.ties.clear();
        case.tree.children.iter_mut().for_each(drop_buffers);
        let model = case.model();
        let sizes = Sizes::new(&model, case.sizing());
        for mode in MODES {
            let limits = balanced(&sizes, &case.limits, &case.placement.no_split_classes, mode);
            let plan = infer(&sizes, &limits, &case.placement);
            for (device, bytes) in plan.map.bytes(&sizes) {
                // Both are rounded, since booleans are bits.
                let fits = limits.get(device).is_some_and(|most| bytes <= most + 1);
                let fits = fits || device == Device::Disk;
                assert!(fits, "seed {seed}, {mode:?}: {bytes} on {device}: {plan:#?}");
            }
        }
    }
}

/// Takes the buffers out of modules that may be split.
fn drop_buffers(tree: &mut Tree) {
    if !tree.children.is_empty() {
        tree.buffers.clear();
    }
    tree.children.iter_mut().for_each(drop_buffers);
}

#[test]
fn no_module_that_stays_whole_is_split() {
    for seed in 0..N_CASES {
        let case = case(&mut Random::new(seed), 1 + seed as usize % 3);
        let model = case.model();
        let sizes = Sizes::new(&model, case.sizing());
        let plan = infer(&sizes, &case.limits, &case.placement);
        for (name, _) in plan.map.iter() {
            // The modules around it, and their classes.
            let mut module = &case.tree;
            for part in name.split('.') {
                let is_whole = case.placement.no_split_classes.contains(&module.class);
                let is_root = std::ptr::eq(module, &case.tree);
                assert!(is_root || !is_whole, "seed {seed}: {name} in {}", module.class);
                let Some(child) = module.children.iter().find(|child| child.name == part) else {
                    break;
                };
                module = child;
            }
        }
    }
}
