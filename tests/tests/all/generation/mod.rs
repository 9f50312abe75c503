//! Generation with the real engine, in this process, against what transformers recorded.

mod company;
mod default_model;
mod logprobs;
mod recorded;
mod sampling;
mod served;
mod watched;

use served::{Configuration, Served};
