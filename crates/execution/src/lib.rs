//! What engines that compute a model's description have in common, whatever they compute it with.
//!
//! | question | answer |
//! | --- | --- |
//! | which files, which architecture, which weights | [`ModelFiles`] |
//! | what the host has to know | [`figures`], [`Capacity`] |
//! | whether it fits | [`available_bytes`], [`resident_bytes`], [`check_memory`] |
//! | which head there is, and what it reads | [`HeadPlan`] |
//! | whether a batch can be run, and where its rows are | [`plan`], [`Planned`] |
//! | which rows go through which adapter | [`Runs`] |
//! | which expert a row takes | [`pick_experts`] |
//! | where a sequence's keys and values are | [`BlockTables`] |
#![forbid(unsafe_code)]

mod blocks;
mod error;
mod experts;
mod figures;
mod files;
mod head;
mod memory;
mod plan;
mod runs;

pub use blocks::{BlockTables, Copied};
pub use error::model_error;
pub use experts::{Pick, pick_experts};
pub use figures::{CacheRoom, Capacity, KvForm, figures};
pub use files::{ModelFiles, is_packed_form};
pub use head::HeadPlan;
pub use memory::{available_bytes, check_memory, resident_bytes};
pub use plan::{Call, Held, Planned, Sequences, Tables, plan, plan_into};
pub use runs::{Run, Runs};
