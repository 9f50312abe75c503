//! The cases, in the order they run.

mod encoder;
mod engine;
mod errors;
mod limits;
mod plan;
mod request;
mod results;
mod sequences;

use drivetrain_engine::{ModelKind, RequestModel};

use crate::suite::{Context, Loader, Stop, Verdict};

type EngineCase = fn(&Loader<'_>) -> Verdict;
type TokenCase = fn(&mut Context<'_>) -> Verdict;
type RequestCase = fn(&Loader<'_>, &dyn RequestModel) -> Verdict;

/// The case that loads the model for all others.
pub(crate) const MODEL_LOADS: &str = "the model loads";

/// Cases that need no model.
pub(crate) const ENGINE: &[(&str, EngineCase)] = &[
    ("the engine's info is sane", engine::info_is_sane),
    ("a missing directory is refused", engine::missing_directory),
    ("an empty directory is refused", engine::empty_directory),
    ("a directory of damaged files is refused", engine::damaged_directory),
];

/// Cases of token models.
pub(crate) const TOKEN: &[(&str, TokenCase)] = &[
    ("the model's info is sane", engine::model_info_is_sane),
    ("loading can be cancelled", engine::loading_can_be_cancelled),
    ("a plan is of a model that loads", plan::figures),
    ("a plan keeps to the limits of memory", plan::limits),
    ("a sequence lives until it is released", sequences::lifecycle),
    ("rows are exactly those wanted", results::rows),
    ("the same calls give the same bits", results::determinism),
    ("a batch equals its segments one by one", results::batching),
    ("prompt chunks equal the whole prompt", results::chunking),
    ("a fork shares the past and nothing else", sequences::fork),
    ("a truncated sequence grows anew", sequences::truncate),
    ("an input is encoded the same in any batch", encoder::batching),
    ("only an encoded input can be decoded", encoder::order),
    ("an unknown sequence is refused", errors::unknown_sequence),
    ("a wrong position is refused", errors::wrong_position),
    ("a token outside the vocabulary is refused", errors::wrong_token),
    ("an output the model lacks is refused", errors::missing_output),
    ("a wrong fork is refused", errors::wrong_fork),
    ("a wrong truncation is refused", errors::wrong_truncation),
    ("an adapter that is not there is refused", errors::unknown_adapter),
    ("a sequence past max_positions is refused", limits::max_positions),
    ("max_sequences can live at once", limits::max_sequences),
    ("the stated capacity can be filled", limits::capacity),
    ("sequences leak nothing", limits::sequence_cycles),
    ("loading leaks nothing", limits::load_cycles),
];

/// Cases of request models.
pub(crate) const REQUEST: &[(&str, RequestCase)] = &[
    ("the model's info is sane", request::info_is_sane),
    ("a request is answered", request::answers),
    ("requests at once get their own answers", request::concurrency),
    ("a batch of requests equals its requests one by one", request::batching),
    ("a reply nobody waits for ends", request::early_stop),
    ("an empty request is no panic", request::empty),
    ("requests leak nothing", request::request_cycles),
    ("loading leaks nothing", request::load_cycles),
];

/// Skips a case for encoders, which cache nothing.
fn needs_cache(context: &Context<'_>) -> Result<(), Stop> {
    match context.driver.info.kind {
        ModelKind::Encoder => Err(Stop::Skip("an encoder caches nothing".to_owned())),
        ModelKind::Decoder | ModelKind::EncoderDecoder => Ok(()),
    }
}

/// Skips a case unless `n` sequences of the case's size may live at once.
fn needs_sequences(context: &Context<'_>, n: u32) -> Result<(), Stop> {
    let info = &context.driver.info;
    let fits = info.max_sequences >= n
        && (info.kind == ModelKind::Encoder || info.kv_capacity_tokens >= u64::from(n));
    if fits {
        return Ok(());
    }
    let most = u64::from(info.max_sequences).min(info.kv_capacity_tokens);
    Err(Stop::Skip(format!("needs {n} sequences at once, the model takes {most}")))
}
