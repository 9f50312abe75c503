//! Maps and limits that Accelerate computed for random models: `tests/accelerate/make_cases.py`.

use std::collections::BTreeMap;

use drivetrain_device_map::{
    Device, Limits, Mode, Model, Placement, Sizes, Sizing, Warning, balanced, infer,
};
use serde_json::Value;

use crate::tree::{Element, Leaf, Tree};

const CASES: &str = include_str!("../accelerate/cases.json");

fn element(name: &str) -> Element {
    match name {
        "f64" => Element::new(64, true),
        "f32" => Element::new(32, true),
        "f16" | "bf16" => Element::new(16, true),
        "i64" => Element::new(64, false),
        "i8" => Element::new(8, false),
        "bool" => Element::new(1, false),
        other => panic!("{other}"),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(text).collect()
}

fn tree(name: &str, value: &Value) -> Tree {
    let leaves = |key: &str| {
        let leaf = |leaf: &Value| Leaf {
            name: text(&leaf[0]),
            n: leaf[1].as_u64().unwrap(),
            element: element(leaf[2].as_str().unwrap()),
        };
        value[key].as_array().unwrap().iter().map(leaf).collect()
    };
    let child = |child: &Value| tree(child[0].as_str().unwrap(), &child[1]);
    Tree {
        name: name.to_owned(),
        class: text(&value["c"]),
        parameters: leaves("p"),
        buffers: leaves("b"),
        children: value["m"].as_array().unwrap().iter().map(child).collect(),
    }
}

/// Sizes by device; whole bytes, rounded by `round`.
fn sizes_by_device(value: &Value, round: fn(f64) -> f64) -> BTreeMap<Device, u64> {
    let Some(object) = value.as_object() else { return BTreeMap::new() };
    let size = |(device, bytes): (&String, &Value)| {
        (Device::from_name(device).unwrap(), round(bytes.as_f64().unwrap()) as u64)
    };
    object.iter().map(size).collect()
}

struct Case {
    seed: u64,
    model: Model,
    sizing: Sizing,
    limits: Limits,
    placement: Placement,
}

impl Case {
    fn new(value: &Value) -> Self {
        let ties = value["ties"].as_array().unwrap().iter().map(texts).collect();
        let special = value["special"].as_object().unwrap().iter();
        let special =
            special.map(|(name, dtype)| (name.clone(), element(dtype.as_str().unwrap()).dtype()));
        let limits = sizes_by_device(&value["limits"], f64::floor);
        let is_measured = value["measured"].as_bool().unwrap();
        Self {
            seed: value["seed"].as_u64().unwrap(),
            model: Model::new(tree("", &value["model"]).module(), ties).unwrap(),
            sizing: Sizing {
                dtype: value["dtype"].as_str().map(|name| element(name).dtype()),
                special_dtypes: special.collect(),
                keep_in_f32: Vec::new(),
            },
            limits: if is_measured { Limits::measured(limits) } else { Limits::given(limits) },
            placement: Placement {
                no_split_classes: texts(&value["whole"]),
                fallback_allocation: value["fallback"].as_bool().unwrap(),
                offload_buffers: value["offload_buffers"].as_bool().unwrap(),
            },
        }
    }

    /// Compares limits and map of a mode, and says whether there was a map. Where Accelerate failed,
    /// there has to be a map for all parameters.
    fn check(&self, mode: Mode, expect: &Value) -> bool {
        let place = format!("seed {}, {mode:?}", self.seed);
        let sizes = Sizes::new(&self.model, self.sizing.clone());
        let limits = balanced(&sizes, &self.limits, &self.placement.no_split_classes, mode);
        for (device, bytes) in sizes_by_device(&expect["limits"], f64::floor) {
            assert_eq!(limits.get(device), Some(bytes), "{place}: limit of {device}");
        }
        let plan = infer(&sizes, &limits, &self.placement);
        let Some(map) = expect["map"].as_object() else {
            let is_buffer = |name: &&str| ["mean", "var", "mask"].iter().any(|b| name.ends_with(b));
            let parameters = self.model.tensors().filter(|name| !is_buffer(name));
            let lost: Vec<_> =
                parameters.filter(|name| plan.map.device_of(name).is_none()).collect();
            assert!(lost.is_empty(), "{place}: {lost:?}");
            return false;
        };
        let map = map.iter().map(|(name, device)| (name.as_str(), text(device)));
        let map: BTreeMap<&str, String> = map.collect();
        let found = plan.map.iter().map(|(name, device)| (name, device.to_string()));
        assert_eq!(found.collect::<BTreeMap<_, _>>(), map, "{place}");
        let (mut short, mut buffers) = (BTreeMap::new(), None);
        for warning in &plan.warnings {
            match warning {
                Warning::InsufficientMemory { device, needed_bytes } => {
                    short.insert(*device, *needed_bytes);
                }
                Warning::BuffersDontFit { buffer_bytes } => buffers = Some(*buffer_bytes),
                other => panic!("{place}: {other}"),
            }
        }
        assert_eq!(short, sizes_by_device(&expect["short"], f64::ceil), "{place}");
        assert_eq!(buffers, expect["buffers"].as_f64().map(|bytes| bytes.ceil() as u64), "{place}");
        true
    }
}

#[test]
fn maps_and_limits_are_accelerates() {
    let cases: Value = serde_json::from_str(CASES).unwrap();
    assert_eq!(cases["accelerate"], "1.15.0");
    let mut n_maps = 0;
    for value in cases["cases"].as_array().unwrap() {
        let case = Case::new(value);
        for (mode, name) in [
            (Mode::Sequential, "sequential"),
            (Mode::Balanced, "balanced"),
            (Mode::BalancedLowZero, "balanced_low_0"),
        ] {
            n_maps += usize::from(case.check(mode, &value[name]));
        }
    }
    assert!(n_maps > 500, "{n_maps} maps were compared");
}
