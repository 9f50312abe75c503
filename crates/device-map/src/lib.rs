//! Which device holds which part of a model: device maps as Hugging Face Accelerate makes them.
//!
//! Planning only: a tree of modules with sizes and the memory of each device go in, a map from names to
//! devices comes out. Nothing is read, no tensor is touched.
//!
//! | question | answer |
//! | --- | --- |
//! | what the model consists of | [`Module`], [`Tensor`], and a [`Model`] with its tied parameters |
//! | how large each part is once loaded | [`Sizes`], by [`Sizing`] |
//! | how much each device may hold | [`Limits`], from `max_memory` or measured |
//! | what the user asked for | [`DeviceMapSetting`], from `device_map` |
//! | limits that spread a model evenly | [`balanced`] |
//! | what goes where | [`infer`], or all of it at once, [`DeviceMapSetting::plan`] |
//! | where a tensor is, and whether a map fits a model | [`DeviceMap`] |
//!
//! # Accelerate's rules that one would not guess
//!
//! Maps and limits are those of Accelerate 1.15.0, which `tests/accelerate` holds them to. So:
//!
//! - A boolean counts an eighth of a byte.
//! - The size with ties adds a tied module once for each of its tied parameters.
//! - Whether a tied parameter is inside a module is asked of the text: module `0` is taken to hold
//!   `10.weight`.
//! - When a module is split, the buffers that are directly its own get no entry. Where the parts don't
//!   end up on one device, [`DeviceMap::check`] then lists them as not covered.
//! - The reserve is at first the largest part of the queue, bare parameters included; later only
//!   modules count. A module that had to wait for the next device no longer does.
//! - A model with one part gives a map of that part, not of `""`.
//! - `disk` in `max_memory` limits nothing.
//! - `balanced_low_0` subtracts the limits of accelerators 1 to n - 1, with n those that have memory,
//!   even where one in between has none.
//! - `10Gib` is 10 GiB: a lower-case `b` means bits only after `G`, `M` and `K`.
//!
//! # Where this crate goes on and Accelerate does not
//!
//! - A tied parameter that is in the queue by itself, because its module was split, moves with the part
//!   that it is tied to; one that has its device already is left there. Accelerate raises `IndexError`.
//! - `fallback_allocation` with fractions of bytes, and `balanced_low_0` without accelerator 0 or with gaps
//!   in the numbers, are errors there; here the first accelerator is the one that is spared.
//! - Several groups of tied parameters are taken in the order of their names. Accelerate takes them in
//!   that of a Python set, which changes from run to run.
//! - `fallback_allocation` takes no part twice without placing something in between, so it ends.
//! - A key that names a parameter, as inferred maps have them, gives no warning.
#![forbid(unsafe_code)]

mod balance;
mod collapse;
mod device;
mod error;
mod infer;
mod json;
mod limits;
mod map;
mod model;
mod module;
mod setting;
mod size_text;
mod sizes;
mod warning;

pub use balance::balanced;
pub use device::Device;
pub use error::DeviceMapError;
pub use infer::{Placement, Plan, infer};
pub use limits::Limits;
pub use map::DeviceMap;
pub use model::Model;
pub use module::{Dtype, Module, Tensor};
pub use setting::{DeviceMapSetting, Mode};
pub use sizes::{Sizes, Sizing};
pub use warning::Warning;
