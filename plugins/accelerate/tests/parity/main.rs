//! The engine against transformers: recorded fixtures, unusual configs, the default model.

mod behaviour;
// default_model
mod fixtures;
mod refusals;
mod support;
mod variants;
