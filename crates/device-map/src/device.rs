//! Places that weights can be in.

use std::fmt;

/// A place that weights can be in. The order is the one in which devices are filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Device {
    /// The accelerator with this index.
    Accelerator(u32),
    /// An Apple GPU, which shares the machine's memory.
    Mps,
    /// The machine's memory.
    Cpu,
    /// Files.
    Disk,
}

impl Device {
    /// Reads `cpu`, `disk`, `mps`, `cuda` (the first one), `cuda:1` or an index.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "cpu" => Some(Self::Cpu),
            "disk" => Some(Self::Disk),
            "mps" => Some(Self::Mps),
            "cuda" => Some(Self::Accelerator(0)),
            _ => Self::from_index(name.strip_prefix("cuda:").unwrap_or(name)),
        }
    }

    /// Reads an index, digits alone.
    pub(crate) fn from_index(text: &str) -> Option<Self> {
        let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
        if is_digits { text.parse().ok().map(Self::Accelerator) } else { None }
    }

    /// Whether it computes: neither the CPU nor the disk.
    pub fn is_accelerator(self) -> bool {
        matches!(self, Self::Accelerator(_) | Self::Mps)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accelerator(index) => write!(f, "{index}"),
            Self::Mps => f.write_str("mps"),
            Self::Cpu => f.write_str("cpu"),
            Self::Disk => f.write_str("disk"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        for (name, device) in [
            ("cpu", Some(Device::Cpu)),
            ("disk", Some(Device::Disk)),
            ("mps", Some(Device::Mps)),
            ("cuda", Some(Device::Accelerator(0))),
            ("cuda:3", Some(Device::Accelerator(3))),
            ("0", Some(Device::Accelerator(0))),
            ("17", Some(Device::Accelerator(17))),
            ("", None),
            ("cuda:", None),
            ("cuda:cpu", None),
            ("+1", None),
            ("-1", None),
            ("1.0", None),
            ("4294967296", None),
            ("CPU", None),
        ] {
            assert_eq!(Device::from_name(name), device, "{name:?}");
        }
    }

    #[test]
    fn devices_are_filled_in_order() {
        let mut devices = [
            Device::Disk,
            Device::Cpu,
            Device::Accelerator(10),
            Device::Mps,
            Device::Accelerator(2),
        ];
        devices.sort_unstable();
        let names: Vec<String> = devices.iter().map(Device::to_string).collect();
        assert_eq!(names, ["2", "10", "mps", "cpu", "disk"]);
    }
}
