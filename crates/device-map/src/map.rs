//! A device map: names of modules and tensors with their devices.

use std::collections::{BTreeMap, HashMap};

use crate::device::Device;
use crate::error::DeviceMapError;
use crate::model::Model;
use crate::sizes::{Bits, Sizes, bytes_for};
use crate::warning::Warning;

/// Names of modules and tensors with their devices. A name covers everything under it, `""` the whole
/// model; the longest name that covers a tensor decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceMap {
    entries: Vec<(String, Device)>,
    places: HashMap<String, Device>,
}

impl DeviceMap {
    /// A map of these entries.
    ///
    /// # Errors
    /// [`DeviceMapError::MapTwice`].
    pub fn new(entries: Vec<(String, Device)>) -> Result<Self, DeviceMapError> {
        let mut places = HashMap::with_capacity(entries.len());
        for (name, device) in &entries {
            if places.insert(name.clone(), *device).is_some() {
                return Err(DeviceMapError::MapTwice { key: name.clone() });
            }
        }
        Ok(Self { entries, places })
    }

    /// The map that gives a whole model one device.
    pub fn whole(device: Device) -> Self {
        let places = HashMap::from([(String::new(), device)]);
        Self { entries: vec![(String::new(), device)], places }
    }

    /// A map of entries whose names differ.
    pub(crate) fn of_distinct(entries: Vec<(String, Device)>) -> Self {
        let places = entries.iter().cloned().collect();
        Self { entries, places }
    }

    /// The entries, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Device)> {
        self.entries.iter().map(|(name, device)| (name.as_str(), *device))
    }

    /// Where the module or tensor of this full name is.
    pub fn device_of(&self, name: &str) -> Option<Device> {
        let mut at = name;
        loop {
            if let Some(device) = self.places.get(at) {
                return Some(*device);
            }
            if at.is_empty() {
                return None;
            }
            at = at.rfind('.').and_then(|dot| at.get(..dot)).unwrap_or_default();
        }
    }

    /// Bytes of the model's tensors on each device; a tied one where its first name is.
    pub fn bytes(&self, sizes: &Sizes<'_>) -> BTreeMap<Device, u64> {
        let model = sizes.model();
        let mut bits: BTreeMap<Device, Bits> = BTreeMap::new();
        for id in (0..model.n_nodes()).filter(|id| model.is_counted(*id)) {
            if let Some(device) = self.device_of(model.name(id)) {
                *bits.entry(device).or_default() += sizes.of(id);
            }
        }
        bits.into_iter().map(|(device, bits)| (device, bytes_for(bits))).collect()
    }

    /// Whether the map gives each of the model's tensors a device. What is odd about it is logged and
    /// returned: keys that name nothing, tied parameters apart.
    ///
    /// # Errors
    /// [`DeviceMapError::Uncovered`] with every tensor that has no device.
    pub fn check(&self, model: &Model) -> Result<Vec<Warning>, DeviceMapError> {
        let uncovered = model.tensors().filter(|name| self.device_of(name).is_none());
        let tensors: Vec<String> = uncovered.map(str::to_owned).collect();
        if !tensors.is_empty() {
            return Err(DeviceMapError::Uncovered { tensors });
        }
        let unknown = self.entries.iter().filter(|(name, _)| !model.contains(name));
        let mut warnings: Vec<Warning> =
            unknown.map(|(name, _)| Warning::UnknownKey { key: name.clone() }).collect();
        for group in model.ties() {
            let place = |name: &str| Some((name.to_owned(), self.device_of(name)?));
            let places: Vec<_> = group.into_iter().filter_map(place).collect();
            if places.windows(2).any(|pair| matches!(pair, [a, b] if a.1 != b.1)) {
                warnings.push(Warning::TiedApart { places });
            }
        }
        warnings.iter().for_each(Warning::log);
        Ok(warnings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::module::{Dtype, Module, Tensor};
    use crate::sizes::Sizing;

    const GPU: Device = Device::Accelerator(0);

    fn map(entries: &[(&str, Device)]) -> DeviceMap {
        let entry = |(name, device): &(&str, Device)| ((*name).to_owned(), *device);
        DeviceMap::new(entries.iter().map(entry).collect()).unwrap()
    }

    fn model() -> Model {
        let weight = |n| Tensor::new("weight", n, Dtype::F32);
        let layers = Module::new("layers", "List")
            .with_child(Module::new("1", "Layer").with_parameter(weight(1)))
            .with_child(Module::new("10", "Layer").with_parameter(weight(10)));
        let root = Module::new("", "Model")
            .with_parameter(Tensor::new("scale", 1, Dtype::F32))
            .with_child(Module::new("embed", "Embedding").with_parameter(weight(100)))
            .with_child(layers)
            .with_child(Module::new("head", "Linear").with_parameter(weight(100)));
        let ties = vec!["head.weight".to_owned(), "embed.weight".to_owned()];
        Model::new(root, vec![ties]).unwrap()
    }

    #[test]
    fn the_longest_name_decides() {
        let map = map(&[("", Device::Disk), ("layers", GPU), ("layers.1", Device::Cpu)]);
        for (name, device) in [
            ("layers.1.weight", Device::Cpu),
            ("layers.1", Device::Cpu),
            ("layers.10.weight", GPU),
            ("layers", GPU),
            ("layersx", Device::Disk),
            ("embed.weight", Device::Disk),
            ("", Device::Disk),
        ] {
            assert_eq!(map.device_of(name), Some(device), "{name:?}");
        }
        let part = self::map(&[("layers.1", GPU)]);
        assert_eq!((part.device_of("layers.10.weight"), part.device_of("")), (None, None));
        assert_eq!(DeviceMap::whole(GPU).device_of("anything.at.all"), Some(GPU));
    }

    #[test]
    fn a_map_that_covers_all_passes() {
        assert_eq!(DeviceMap::whole(Device::Disk).check(&model()).unwrap(), []);
        let parts = [("scale", GPU), ("embed", GPU), ("layers", Device::Cpu), ("head.weight", GPU)];
        assert_eq!(map(&parts).check(&model()).unwrap(), []);
    }

    #[test]
    fn what_is_not_covered_is_listed() {
        let error = map(&[("embed", GPU), ("layers.1", GPU), ("nothing", GPU)]).check(&model());
        let expect = "device_map: no device for scale, layers.10.weight, head.weight; add an entry for \
                      each, for a module around it, or for \"\"";
        assert_eq!(error.unwrap_err().to_string(), expect);
        assert!(map(&[]).check(&model()).unwrap_err().to_string().contains("embed.weight"));
    }

    #[test]
    fn oddities_are_warnings() {
        let odd = map(&[("", GPU), ("layers.2", GPU), ("head", Device::Cpu), ("layer", GPU)]);
        let found: Vec<String> =
            odd.check(&model()).unwrap().iter().map(Warning::to_string).collect();
        let unknown =
            |key: &str| format!("device_map: {key:?} names no module and no tensor of the model");
        let apart = "device_map: tied parameters are on different devices: embed.weight on 0, \
                     head.weight on cpu; give them one, or set device_map=auto";
        assert_eq!(found, [unknown("layers.2"), unknown("layer"), apart.to_owned()]);
    }

    #[test]
    fn bytes_are_where_the_tensors_are() {
        let model = model();
        let sizes = Sizes::new(&model, Sizing::default());
        let bytes =
            map(&[("", GPU), ("layers.10", Device::Disk), ("head", Device::Cpu)]).bytes(&sizes);
        assert_eq!(bytes, BTreeMap::from([(GPU, 408), (Device::Disk, 40)]));
    }

    #[test]
    fn a_name_has_one_device() {
        let twice = vec![("a".to_owned(), GPU), ("a".to_owned(), GPU)];
        let expect = "device_map: \"a\" is there twice; a module has one device";
        assert_eq!(DeviceMap::new(twice).unwrap_err().to_string(), expect);
    }
}
