//! How much each device may hold: `max_memory`.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde_json::Value;

use crate::device::Device;
use crate::error::DeviceMapError;
use crate::json;
use crate::size_text::parse_size;
use crate::sizes::{Bits, bytes_in};

/// How much each device may hold. Devices are filled in the order accelerators by index, `mps`, `cpu`,
/// `disk`, whatever the order they were given in. The disk needs no limit, and one has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    bits: BTreeMap<Device, Bits>,
    origin: Origin,
}

/// Who said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The user, who may have it all used.
    Given,
    /// The devices, whose free memory is also needed for other things.
    Measured,
}

impl Limits {
    /// Limits that a user gave, in bytes.
    pub fn given(limits: impl IntoIterator<Item = (Device, u64)>) -> Self {
        Self::new(limits, Origin::Given)
    }

    /// Free memory of the devices, in bytes. Of a single accelerator's, a tenth is kept free.
    pub fn measured(limits: impl IntoIterator<Item = (Device, u64)>) -> Self {
        Self::new(limits, Origin::Measured)
    }

    fn new(limits: impl IntoIterator<Item = (Device, u64)>, origin: Origin) -> Self {
        let bits = limits.into_iter().map(|(device, bytes)| (device, Bits::from(bytes) * 8));
        Self { bits: bits.collect(), origin }
    }

    /// Whole bytes that the device may hold.
    pub fn get(&self, device: Device) -> Option<u64> {
        self.bits(device).map(bytes_in)
    }

    /// The devices in the order of filling, with the whole bytes that each may hold.
    pub fn iter(&self) -> impl Iterator<Item = (Device, u64)> {
        self.bits.iter().map(|(device, bits)| (*device, bytes_in(*bits)))
    }

    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    pub(crate) fn devices(&self) -> impl Iterator<Item = Device> {
        self.bits.keys().copied()
    }

    pub(crate) fn bits(&self, device: Device) -> Option<Bits> {
        self.bits.get(&device).copied()
    }

    pub(crate) fn set(&mut self, device: Device, bits: Bits) {
        self.bits.insert(device, bits);
    }

    fn add(&mut self, key: &str, bytes: u64) -> Result<(), DeviceMapError> {
        let device = match key {
            "mps" => Device::Mps,
            "cpu" => Device::Cpu,
            "disk" => Device::Disk,
            _ => Device::from_index(key)
                .ok_or_else(|| DeviceMapError::LimitDevice { key: key.to_owned() })?,
        };
        if self.bits.insert(device, Bits::from(bytes) * 8).is_some() {
            return Err(DeviceMapError::LimitTwice { key: key.to_owned() });
        }
        Ok(())
    }
}

/// Reads `{"0": "10GiB", "cpu": 4000000}` or `0:10GiB,cpu:4GiB`. A number alone is bytes; as text, in
/// JSON, it is refused.
impl FromStr for Limits {
    type Err = DeviceMapError;

    fn from_str(text: &str) -> Result<Self, DeviceMapError> {
        let text = text.trim();
        let mut limits = Self::given([]);
        if text.starts_with('{') {
            let pairs =
                json::pairs(text).map_err(|source| DeviceMapError::LimitsJson { source })?;
            for (key, value) in pairs {
                let size = match &value {
                    Value::Number(bytes) => bytes.as_u64(),
                    Value::String(size) => parse_size(size),
                    _ => None,
                };
                let error =
                    || DeviceMapError::LimitSize { key: key.clone(), found: value.to_string() };
                limits.add(&key, size.ok_or_else(error)?)?;
            }
            return Ok(limits);
        }
        for part in text.split(',') {
            let Some((key, size)) = part.split_once(':') else {
                return Err(DeviceMapError::LimitForm { found: part.trim().to_owned() });
            };
            let (key, size) = (key.trim(), size.trim());
            let is_bytes = size.bytes().all(|byte| byte.is_ascii_digit());
            let bytes = if is_bytes { size.parse().ok() } else { parse_size(size) };
            let error =
                || DeviceMapError::LimitSize { key: key.to_owned(), found: format!("{size:?}") };
            limits.add(key, bytes.ok_or_else(error)?)?;
        }
        Ok(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Vec<(String, u64)> {
        let limits: Limits = text.parse().unwrap();
        limits.iter().map(|(device, bytes)| (device.to_string(), bytes)).collect()
    }

    #[test]
    fn both_forms_are_read_and_put_in_order() {
        for (text, expect) in [
            (r#"{"0": "10GiB", "cpu": 4000000}"#, vec![("0", 10 << 30), ("cpu", 4_000_000)]),
            ("0:10GiB,cpu:4GiB", vec![("0", 10 << 30), ("cpu", 4 << 30)]),
            (
                r#" {"disk": 5, "cpu": "16Gb", "mps": 7, "10": 1, "2": "0KB"} "#,
                vec![("2", 0), ("10", 1), ("mps", 7), ("cpu", 2_000_000_000), ("disk", 5)],
            ),
            (" cpu : 1000 , 1 : 2 MB ", vec![("1", 2_000_000), ("cpu", 1000)]),
            ("{}", vec![]),
        ] {
            let expect: Vec<_> =
                expect.into_iter().map(|(d, bytes)| (d.to_owned(), bytes)).collect();
            assert_eq!(parse(text), expect, "{text}");
        }
    }

    #[test]
    fn what_is_no_limit_is_refused_by_key_and_value() {
        let size = "expected whole bytes, or a number with GiB, MiB, KiB, GB, MB or KB, such as 10GiB \
                    (Gb, Mb and Kb are bits)";
        let device = "is no device; expected an accelerator's index, mps, cpu or disk";
        let form = "expected DEVICE:SIZE, such as 0:10GiB,cpu:4GiB, or a JSON object";
        for (text, expect) in [
            (r#"{"0": "10"}"#, format!(r#"max_memory: 0: "10": {size}"#)),
            (r#"{"0": "ten GiB"}"#, format!(r#"max_memory: 0: "ten GiB": {size}"#)),
            (r#"{"cpu": -1}"#, format!("max_memory: cpu: -1: {size}")),
            (r#"{"cpu": 1.5}"#, format!("max_memory: cpu: 1.5: {size}")),
            (r#"{"cpu": true}"#, format!("max_memory: cpu: true: {size}")),
            (r#"{"cpu": {"0": 1}}"#, format!(r#"max_memory: cpu: {{"0":1}}: {size}"#)),
            (r#"{"gpu": 1}"#, format!(r#"max_memory: "gpu" {device}"#)),
            (r#"{"-1": 1}"#, format!(r#"max_memory: "-1" {device}"#)),
            (r#"{"cuda:0": 1}"#, format!(r#"max_memory: "cuda:0" {device}"#)),
            ("cuda:0", format!(r#"max_memory: "cuda" {device}"#)),
            ("0:10GiB,cpu:lots", format!(r#"max_memory: cpu: "lots": {size}"#)),
            ("0:-5GB", format!(r#"max_memory: 0: "-5GB": {size}"#)),
            ("0:", format!(r#"max_memory: 0: "": {size}"#)),
            ("0:99999999999999999999", format!(r#"max_memory: 0: "99999999999999999999": {size}"#)),
            ("10GiB", format!(r#"max_memory: "10GiB": {form}"#)),
            ("0:1GB,", format!(r#"max_memory: "": {form}"#)),
            ("", format!(r#"max_memory: "": {form}"#)),
            (
                r#"{"0": 1, "cpu": 2, "0": 3}"#,
                r#"max_memory: "0" is there twice; a device has one limit"#.to_owned(),
            ),
            (
                "1:1GB,01:2GB",
                r#"max_memory: "01" is there twice; a device has one limit"#.to_owned(),
            ),
            (
                r#"{"0": 1"#,
                r#"max_memory: expected a JSON object of devices and sizes, such as {"0": "10GiB", "cpu": "4GiB"}"#
                    .to_owned(),
            ),
        ] {
            let found = text.parse::<Limits>().unwrap_err().to_string();
            assert_eq!(found, expect, "{text}");
        }
    }
}
