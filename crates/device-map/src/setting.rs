//! What the user asked for: `device_map`.

use std::str::FromStr;

use serde_json::Value;

use crate::balance::balanced;
use crate::device::Device;
use crate::error::DeviceMapError;
use crate::infer::{Placement, Plan, infer};
use crate::json;
use crate::limits::Limits;
use crate::map::DeviceMap;
use crate::sizes::Sizes;

/// How devices are filled where no map says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As is best; that is balanced.
    Auto,
    /// All accelerators about the same.
    Balanced,
    /// The same, with as little as possible on the first one, which then has room for other things.
    BalancedLowZero,
    /// One after another.
    Sequential,
}

/// What the user asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceMapSetting {
    /// The map is made.
    Mode(Mode),
    /// The map is this one.
    Map(DeviceMap),
}

impl DeviceMapSetting {
    /// The map for a model. Warnings are logged, too.
    ///
    /// # Errors
    /// [`DeviceMapError::Uncovered`]: tensors have no device.
    pub fn plan(
        &self,
        sizes: &Sizes<'_>,
        limits: &Limits,
        placement: &Placement,
    ) -> Result<Plan, DeviceMapError> {
        let mut plan = match self {
            Self::Mode(mode) => infer(
                sizes,
                &balanced(sizes, limits, &placement.no_split_classes, *mode),
                placement,
            ),
            Self::Map(map) => {
                Plan { map: map.clone(), limits: limits.clone(), warnings: Vec::new() }
            }
        };
        plan.warnings.extend(plan.map.check(sizes.model())?);
        Ok(plan)
    }
}

/// Reads `auto`, `balanced`, `balanced_low_0`, `sequential`, a device for the whole model, or a JSON
/// object of modules and devices.
impl FromStr for DeviceMapSetting {
    type Err = DeviceMapError;

    fn from_str(text: &str) -> Result<Self, DeviceMapError> {
        let text = text.trim();
        match text {
            "auto" => return Ok(Self::Mode(Mode::Auto)),
            "balanced" => return Ok(Self::Mode(Mode::Balanced)),
            "balanced_low_0" => return Ok(Self::Mode(Mode::BalancedLowZero)),
            "sequential" => return Ok(Self::Mode(Mode::Sequential)),
            _ => {}
        }
        if text.starts_with('{') {
            return explicit(text).map(Self::Map);
        }
        if let Some(device) = Device::from_name(text) {
            return Ok(Self::Map(DeviceMap::whole(device)));
        }
        let index = text.strip_prefix("cuda:").unwrap_or(text).strip_prefix('-');
        let is_negative = index.is_some_and(|index| Device::from_index(index).is_some());
        let found = text.to_owned();
        Err(if is_negative {
            DeviceMapError::NegativeIndex { found }
        } else {
            DeviceMapError::Setting { found }
        })
    }
}

/// Reads a map.
fn explicit(text: &str) -> Result<DeviceMap, DeviceMapError> {
    let pairs = json::pairs(text).map_err(|source| DeviceMapError::MapJson { source })?;
    let mut entries = Vec::with_capacity(pairs.len());
    for (key, value) in pairs {
        let device = match &value {
            Value::Number(index) => index.as_u64().and_then(|index| u32::try_from(index).ok()),
            _ => None,
        };
        let device = device.map(Device::Accelerator);
        let device = device.or_else(|| value.as_str().and_then(Device::from_name));
        match device {
            Some(device) => entries.push((key, device)),
            None => return Err(DeviceMapError::MapDevice { key, found: value.to_string() }),
        }
    }
    DeviceMap::new(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;
    use crate::module::{Dtype, Module, Tensor};
    use crate::sizes::Sizing;

    fn parse(text: &str) -> DeviceMapSetting {
        text.parse().unwrap()
    }

    fn entries(text: &str) -> Vec<(String, String)> {
        let DeviceMapSetting::Map(map) = parse(text) else { panic!("{text} is no map") };
        map.iter().map(|(name, device)| (name.to_owned(), device.to_string())).collect()
    }

    #[test]
    fn words_devices_and_maps_are_read() {
        for (text, mode) in [
            ("auto", Mode::Auto),
            (" balanced ", Mode::Balanced),
            ("balanced_low_0", Mode::BalancedLowZero),
            ("sequential", Mode::Sequential),
        ] {
            assert_eq!(parse(text), DeviceMapSetting::Mode(mode));
        }
        for (text, device) in [
            ("cpu", "cpu"),
            ("disk", "disk"),
            ("mps", "mps"),
            ("cuda", "0"),
            ("cuda:1", "1"),
            ("0", "0"),
            (" 3 ", "3"),
        ] {
            assert_eq!(entries(text), [(String::new(), device.to_owned())], "{text}");
        }
        let map = r#"{"layers.1": 0, "layers": "cuda:1", "head": "2", "": "disk", "x": "cpu"}"#;
        let expect =
            [("layers.1", "0"), ("layers", "1"), ("head", "2"), ("", "disk"), ("x", "cpu")];
        assert_eq!(entries(map), expect.map(|(name, device)| (name.to_owned(), device.to_owned())));
        assert_eq!(entries("{}"), []);
    }

    #[test]
    fn what_is_no_setting_is_refused() {
        let device = "expected an index of 0 or more, cuda:0, mps, cpu or disk";
        for (text, expect) in [
            (
                "fast",
                "device_map = \"fast\": expected auto, balanced, balanced_low_0, sequential, a device \
                 (an index, cuda:0, mps, cpu or disk), or a JSON object of modules and devices"
                    .to_owned(),
            ),
            ("-1", "device_map = -1: an index is 0 or more; for the CPU write cpu".to_owned()),
            (
                "cuda:-2",
                "device_map = cuda:-2: an index is 0 or more; for the CPU write cpu".to_owned(),
            ),
            (r#"{"a": -1}"#, format!("device_map: \"a\": -1: {device}")),
            (r#"{"a": 1.0}"#, format!("device_map: \"a\": 1.0: {device}")),
            (r#"{"a": 4294967296}"#, format!("device_map: \"a\": 4294967296: {device}")),
            (r#"{"a": "auto"}"#, format!("device_map: \"a\": \"auto\": {device}")),
            (r#"{"a": "-1"}"#, format!("device_map: \"a\": \"-1\": {device}")),
            (r#"{"a": {"b": 0}}"#, format!("device_map: \"a\": {{\"b\":0}}: {device}")),
            (r#"{"a": null}"#, format!("device_map: \"a\": null: {device}")),
            (
                r#"{"a": 0, "a": 1}"#,
                "device_map: \"a\" is there twice; a module has one device".to_owned(),
            ),
            (
                "{0: 1}",
                "device_map: expected a JSON object of modules and devices, such as {\"\": 0}".to_owned(),
            ),
        ] {
            let found = text.parse::<DeviceMapSetting>().unwrap_err().to_string();
            assert_eq!(found, expect, "{text}");
        }
        for text in ["", "Auto", "--1", "-", "1.5", "[0]", "xpu:0", "balanced_low_1", "cuda:x"] {
            let error = text.parse::<DeviceMapSetting>().unwrap_err();
            assert!(matches!(error, DeviceMapError::Setting { .. }), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_setting_makes_a_plan() {
        let layer =
            |name| Module::new(name, "Layer").with_parameter(Tensor::new("w", 25, Dtype::F32));
        let names = ["a", "b", "c", "d"];
        let root = names.map(layer).into_iter().fold(Module::new("", "M"), Module::with_child);
        let model = Model::new(root, Vec::new()).unwrap();
        let sizes = Sizes::new(&model, Sizing::default());
        let limits: Limits = "0:1KB,1:1KB".parse().unwrap();
        let plan = |setting: &str| {
            let plan = parse(setting).plan(&sizes, &limits, &Placement::default())?;
            let on = |index| plan.map.bytes(&sizes).remove(&Device::Accelerator(index));
            Ok::<_, DeviceMapError>((on(0), on(1)))
        };
        assert_eq!(plan("sequential").unwrap(), (Some(400), None));
        // The share is 200 and a quarter more than a layer; of it, a layer is kept free.
        assert_eq!(plan("balanced").unwrap(), (Some(200), Some(200)));
        assert_eq!(plan("auto").unwrap(), plan("balanced").unwrap());
        assert_eq!(plan("balanced_low_0").unwrap(), (None, Some(400)));
        assert_eq!(plan("1").unwrap(), (None, Some(400)));
        assert_eq!(plan(r#"{"": 1, "c": 0}"#).unwrap(), (Some(100), Some(300)));
        let error = plan(r#"{"a": 1, "c": 0}"#).unwrap_err();
        assert!(
            matches!(error, DeviceMapError::Uncovered { tensors } if tensors == ["b.w", "d.w"])
        );
    }
}
