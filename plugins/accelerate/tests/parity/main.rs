//! The engine against transformers: recorded fixtures, unusual configs, the default model.

mod behaviour;
mod conformance;
// default_model
mod fixtures;
mod refusals;
mod support;
mod variants;
