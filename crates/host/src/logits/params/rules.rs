//! The logits processors that a request and its model ask for, and what is told of the tokens.

use std::sync::Arc;

use drivetrain_engine::TokenId;

use super::{Defaults, Params};
use crate::HostError;
use crate::logits::Rules;
use crate::scheduler::Report;

/// Most tokens that end a text.
const MAX_ENDS: usize = 64;

/// Most of the likeliest tokens that are told at one place.
const MAX_TOP: usize = 20;

/// What scores may be divided and multiplied by.
const MIN_PENALTY: f64 = 0.001;
const MAX_PENALTY: f64 = 1000.0;

/// Reads all but lengths and the encoder's ids.
///
/// # Errors
/// `BadRequest` that names the parameter that is wrong.
pub(super) fn read(params: Params<'_>, defaults: &Defaults) -> Result<Rules, HostError> {
    let n_logits = defaults.n_logits;
    let list = |name: &str, default: &Arc<[TokenId]>| {
        Ok::<_, HostError>(params.ids(name, n_logits)?.map_or_else(|| default.clone(), Arc::from))
    };
    let ngram = |name: &str, default: Option<u32>| {
        Ok::<_, HostError>(params.whole(name, 0)?.or(default).unwrap_or(0) as usize)
    };
    let penalty = |name: &str, default: Option<f64>| {
        let default = default.map(|p| p.clamp(MIN_PENALTY, MAX_PENALTY));
        let penalty = params.number(name, MIN_PENALTY..=MAX_PENALTY)?.or(default);
        Ok::<_, HostError>(penalty.filter(|p| *p != 1.0).map(|p| p as f32))
    };
    let loss =
        |name: &str| Ok::<_, HostError>(params.number(name, -2.0..=2.0)?.unwrap_or(0.0) as f32);
    let forced_bos = params.ids_up_to("forced_bos_token_id", n_logits, 1)?;
    let forced_eos = params.ids_up_to("forced_eos_token_id", n_logits, MAX_ENDS)?;
    let decay = params
        .decay("exponential_decay_length_penalty")?
        .or(defaults.exponential_decay_length_penalty);
    let removes_invalid = params.flag("remove_invalid_values")?;
    Ok(Rules {
        eos: ends(params, defaults)?,
        logit_bias: params.biases("logit_bias", n_logits)?.unwrap_or_default().into(),
        sequence_bias: match params.biased_runs("sequence_bias", n_logits)? {
            Some(runs) => runs.into(),
            None => defaults.sequence_bias.clone(),
        },
        encoder_repetition_penalty: penalty(
            "encoder_repetition_penalty",
            defaults.encoder_repetition_penalty,
        )?,
        repetition_penalty: penalty("repetition_penalty", defaults.repetition_penalty)?,
        frequency_penalty: loss("frequency_penalty")?,
        presence_penalty: loss("presence_penalty")?,
        no_repeat_ngram: ngram("no_repeat_ngram_size", defaults.no_repeat_ngram_size)?,
        encoder_no_repeat_ngram: ngram(
            "encoder_no_repeat_ngram_size",
            defaults.encoder_no_repeat_ngram_size,
        )?,
        bad_words: match params.runs("bad_words_ids", n_logits)? {
            Some(words) => words.into(),
            None => defaults.bad_words_ids.clone(),
        },
        forced_bos: match forced_bos {
            Some(ids) => ids.first().copied(),
            None => defaults.forced_bos_token_id,
        },
        forced_eos: forced_eos.map_or_else(|| defaults.forced_eos_token_id.clone(), Arc::from),
        removes_invalid: removes_invalid.or(defaults.remove_invalid_values).unwrap_or(false),
        decay: decay.map(|(start, factor)| (start as usize, factor)),
        suppress: list("suppress_tokens", &defaults.suppress_tokens)?,
        begin_suppress: list("begin_suppress_tokens", &defaults.begin_suppress_tokens)?,
        ..Rules::default()
    })
}

/// The tokens that end a text: end tokens, unless they are to be ignored, and `stop_token_ids`.
fn ends(params: Params<'_>, defaults: &Defaults) -> Result<Arc<[TokenId]>, HostError> {
    let n_logits = defaults.n_logits;
    let ends = params.ids_up_to("eos_token_id", n_logits, MAX_ENDS)?;
    let stops = params.ids_up_to("stop_token_ids", n_logits, MAX_ENDS)?.unwrap_or_default();
    let ignores = params.flag(params.named(&["ignore_eos", "ignore_eos_token"])?)?;
    let mut ends = match (ignores, ends) {
        (Some(true), _) => Vec::new(),
        (_, None) if stops.is_empty() => return Ok(defaults.eos_token_id.clone()),
        (_, None) => defaults.eos_token_id.to_vec(),
        (_, Some(ends)) => ends,
    };
    for stop in stops {
        if !ends.contains(&stop) {
            ends.push(stop);
        }
    }
    Ok(ends.into())
}

/// What is told of the tokens: OpenAI's `logprobs` with `top_logprobs`, vLLM's number under the
/// first name, text-generation-inference's `details` and `top_n_tokens`.
///
/// # Errors
/// `BadRequest` that names the parameters that are wrong or do not go together.
pub(super) fn report(params: Params<'_>) -> Result<Report, HostError> {
    // A truth value, or a number of likeliest tokens.
    let counted = |name: &str| match params.get(name).map(|value| value.as_bool()) {
        None | Some(Some(false)) => Ok(None),
        Some(Some(true)) => Ok(Some(0)),
        Some(None) => params.whole_in(name, 0..=MAX_TOP),
    };
    let logprobs = counted("logprobs")?;
    let top = params.whole_in("top_logprobs", 0..=MAX_TOP)?.unwrap_or(0);
    if top > 0 && params.get("logprobs").and_then(|value| value.as_bool()) == Some(false) {
        let why = "the likeliest tokens come with the log-probabilities; set logprobs to true";
        return Err(params.conflict(("top_logprobs", &top), ("logprobs", &false), why));
    }
    let n_top = params.whole_in("top_n_tokens", 0..=MAX_TOP)?.unwrap_or(0);
    let n_top = n_top.max(top).max(logprobs.unwrap_or(0));
    let details = params.flag("details")?.unwrap_or(false);
    let prompt = counted("prompt_logprobs")?;
    let prefill = params.flag("decoder_input_details")?.unwrap_or(false).then_some(0);
    Ok(Report {
        logprobs: logprobs.is_some() || details || n_top > 0,
        n_top,
        prompt: prompt.or(prefill),
    })
}
