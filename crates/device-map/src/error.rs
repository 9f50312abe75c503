//! Why a setting can't be read, or a map doesn't fit.

/// What a size may look like.
const SIZE: &str = "whole bytes, or a number with GiB, MiB, KiB, GB, MB or KB, such as 10GiB \
                    (Gb, Mb and Kb are bits)";

/// What `device_map` may be.
const SETTING: &str = "auto, balanced, balanced_low_0, sequential, a device (an index, cuda:0, mps, cpu \
                       or disk), or a JSON object of modules and devices";

/// Why a setting can't be read, or a map doesn't fit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceMapError {
    /// `device_map` is nothing that it may be.
    #[error("device_map = {found:?}: expected {SETTING}")]
    Setting {
        /// What was found.
        found: String,
    },
    /// `device_map` is an index below 0.
    #[error("device_map = {found}: an index is 0 or more; for the CPU write cpu")]
    NegativeIndex {
        /// What was found.
        found: String,
    },
    /// `device_map` begins as a JSON object and isn't one.
    #[error("device_map: expected a JSON object of modules and devices, such as {{\"\": 0}}")]
    MapJson {
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A value of the map is no device.
    #[error(
        "device_map: {key:?}: {found}: expected an index of 0 or more, cuda:0, mps, cpu or disk"
    )]
    MapDevice {
        /// The module.
        key: String,
        /// What was found, as JSON.
        found: String,
    },
    /// A module is in the map twice.
    #[error("device_map: {key:?} is there twice; a module has one device")]
    MapTwice {
        /// The module.
        key: String,
    },
    /// `max_memory` begins as a JSON object and isn't one.
    #[error(
        "max_memory: expected a JSON object of devices and sizes, such as \
         {{\"0\": \"10GiB\", \"cpu\": \"4GiB\"}}"
    )]
    LimitsJson {
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A part of `max_memory` is not `DEVICE:SIZE`.
    #[error(
        "max_memory: {found:?}: expected DEVICE:SIZE, such as 0:10GiB,cpu:4GiB, or a JSON object"
    )]
    LimitForm {
        /// What was found.
        found: String,
    },
    /// A key of `max_memory` is no device.
    #[error("max_memory: {key:?} is no device; expected an accelerator's index, mps, cpu or disk")]
    LimitDevice {
        /// What was found.
        key: String,
    },
    /// A value of `max_memory` is no size.
    #[error("max_memory: {key}: {found}: expected {SIZE}")]
    LimitSize {
        /// The device.
        key: String,
        /// What was found, as JSON.
        found: String,
    },
    /// A device is in `max_memory` twice.
    #[error("max_memory: {key:?} is there twice; a device has one limit")]
    LimitTwice {
        /// The device.
        key: String,
    },
    /// A map leaves tensors without a device.
    #[error(
        "device_map: no device for {}; add an entry for each, for a module around it, or for \"\"",
        .tensors.join(", ")
    )]
    Uncovered {
        /// The tensors, in the model's order.
        tensors: Vec<String>,
    },
    /// A module or tensor has a name that can't be part of a path.
    #[error("{parent:?} has a part named {name:?}; a name is not empty and has no dot")]
    PartName {
        /// The module's path.
        parent: String,
        /// The name.
        name: String,
    },
    /// Two parts of a module have one name.
    #[error("the model has two parts named {name:?}")]
    PartTwice {
        /// The path.
        name: String,
    },
    /// Modules are nested beyond all use.
    #[error("{name:?}: modules are nested deeper than {most}")]
    TooDeep {
        /// The path of the first module that is too deep.
        name: String,
        /// How deep they may be.
        most: usize,
    },
    /// A tied name is no parameter of the model.
    #[error("{name:?} is tied to others, and is no parameter of the model")]
    TiedUnknown {
        /// The name.
        name: String,
    },
    /// A parameter is tied twice.
    #[error("{name:?} is in two groups of tied parameters; groups with a common name are one")]
    TiedTwice {
        /// The parameter.
        name: String,
    },
    /// Tied parameters have different numbers of elements.
    #[error("{name:?} has {found} elements and is tied to {first:?}, which has {expected}")]
    TiedUnlike {
        /// The parameter.
        name: String,
        /// Its elements.
        found: u64,
        /// Another one of its group.
        first: String,
        /// That one's elements.
        expected: u64,
    },
}
