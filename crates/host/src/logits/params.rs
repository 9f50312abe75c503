//! From a request's parameters and the model's defaults to [`Rules`].

use std::sync::Arc;

use drivetrain_engine::TokenId;
use serde_json::{Map, Value};

use crate::HostError;
use crate::constraint::Grammar;
use crate::logits::Rules;
use crate::scheduler::Generate;

/// New tokens where neither the request nor the model says how many.
const DEFAULT_NEW_TOKENS: usize = 20;

/// Parameters that are read, or that greedy decoding has no use for whatever they say.
const KNOWN: [&str; 40] = [
    "add_special_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "clean_up_tokenization_spaces",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "guidance_scale",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "pad_token_id",
    "penalty_alpha",
    "repetition_penalty",
    "return_dict_in_generate",
    "return_full_text",
    "return_tensors",
    "seed",
    "skip_special_tokens",
    "suppress_tokens",
    "temperature",
    "tokenize_kwargs",
    "top_k",
    "top_p",
    "truncation",
    "use_cache",
];

/// Parameters that this version refuses unless they are empty.
const UNAVAILABLE: [&str; 11] = [
    "sequence_bias",
    "stop",
    "stop_sequence",
    "stop_strings",
    "constraints",
    "force_words_ids",
    "watermarking_config",
    "prefix",
    "handle_long_generation",
    "decoder_input_ids",
    "max_time",
];

/// The model's own defaults: what its generation configuration says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Defaults {
    pub(crate) bos_token_id: Option<TokenId>,
    pub(crate) eos_token_id: Arc<[TokenId]>,
    pub(crate) decoder_start_token_id: Option<TokenId>,
    pub(crate) forced_bos_token_id: Option<TokenId>,
    pub(crate) forced_eos_token_id: Arc<[TokenId]>,
    pub(crate) max_length: Option<u32>,
    pub(crate) max_new_tokens: Option<u32>,
    pub(crate) min_length: Option<u32>,
    pub(crate) min_new_tokens: Option<u32>,
    pub(crate) repetition_penalty: Option<f64>,
    pub(crate) no_repeat_ngram_size: Option<u32>,
    pub(crate) bad_words_ids: Arc<[Vec<TokenId>]>,
    pub(crate) suppress_tokens: Arc<[TokenId]>,
    pub(crate) begin_suppress_tokens: Arc<[TokenId]>,
    pub(crate) exponential_decay_length_penalty: Option<(u32, f64)>,
    /// Whether the model is an encoder-decoder model, whose lengths start at the start token.
    pub(crate) is_encoder_decoder: bool,
    /// Columns of a row of logits.
    pub(crate) n_logits: u32,
    /// The longest sequence the decoder takes.
    pub(crate) max_positions: u32,
}

/// A request's parameters, read one by one with errors that name them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Params<'a>(pub(crate) &'a Map<String, Value>);

impl<'a> Params<'a> {
    /// The value of `name`; null is absent.
    pub(crate) fn get(self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// Says which parameters mean nothing here, since nothing else will.
    pub(crate) fn log_unknown(self, request: &str) {
        let is_known = |name: &str| KNOWN.contains(&name) || UNAVAILABLE.contains(&name);
        for name in self.0.keys().filter(|name| !is_known(name)) {
            tracing::debug!(request, parameter = name, "the parameter goes unused");
        }
    }

    fn wrong(name: &str, value: &Value, wanted: &str) -> HostError {
        let mut found = value.to_string();
        if let Some((cut, _)) = found.char_indices().nth(60) {
            found.truncate(cut);
            found.push_str("...");
        }
        HostError::bad_request(format!("parameters.{name}={found}: expected {wanted}"))
    }

    /// A truth value.
    pub(crate) fn flag(self, name: &str) -> Result<Option<bool>, HostError> {
        self.get(name)
            .map(|v| v.as_bool().ok_or_else(|| Self::wrong(name, v, "true or false")))
            .transpose()
    }

    /// A whole number, `low` or more.
    pub(crate) fn whole(self, name: &str, low: u32) -> Result<Option<u32>, HostError> {
        self.get(name)
            .map(|value| {
                let number = value.as_u64().or_else(|| {
                    let number = value.as_f64().filter(|f| f.fract() == 0.0 && *f >= 0.0)?;
                    (number <= f64::from(u32::MAX)).then_some(number as u64)
                });
                number.and_then(|n| u32::try_from(n).ok()).filter(|n| *n >= low).ok_or_else(|| {
                    Self::wrong(name, value, &format!("a whole number, {low} or more"))
                })
            })
            .transpose()
    }

    /// A finite number above 0.
    fn positive(self, name: &str) -> Result<Option<f64>, HostError> {
        self.get(name)
            .map(|value| {
                value
                    .as_f64()
                    .filter(|f| f.is_finite() && *f > 0.0)
                    .ok_or_else(|| Self::wrong(name, value, "a number above 0"))
            })
            .transpose()
    }

    /// A token id or a list of them; `n_logits` is how many there are.
    pub(crate) fn ids(self, name: &str, n_logits: u32) -> Result<Option<Vec<TokenId>>, HostError> {
        self.get(name)
            .map(|value| {
                let list = match value {
                    Value::Array(list) => list.iter().collect(),
                    one => vec![one],
                };
                list.into_iter()
                    .map(|id| token_id(id, n_logits))
                    .collect::<Option<Vec<_>>>()
                    .ok_or_else(|| Self::wrong(name, value, &ids_wanted("token ids", n_logits)))
            })
            .transpose()
    }

    fn words(self, name: &str, n_logits: u32) -> Result<Option<Arc<[Vec<TokenId>]>>, HostError> {
        self.get(name)
            .map(|value| {
                value
                    .as_array()
                    .and_then(|words| {
                        words
                            .iter()
                            .map(|word| {
                                let word = word.as_array().filter(|word| !word.is_empty())?;
                                word.iter().map(|id| token_id(id, n_logits)).collect()
                            })
                            .collect::<Option<_>>()
                    })
                    .ok_or_else(|| {
                        Self::wrong(
                            name,
                            value,
                            &ids_wanted("a list of lists of token ids", n_logits),
                        )
                    })
            })
            .transpose()
    }

    fn decay(self, name: &str) -> Result<Option<(u32, f64)>, HostError> {
        self.get(name)
            .map(|value| {
                let pair = value.as_array().filter(|pair| pair.len() == 2);
                pair.and_then(|pair| {
                    let start = u32::try_from(pair.first()?.as_u64()?).ok()?;
                    Some((start, pair.get(1)?.as_f64().filter(|f| f.is_finite() && *f > 0.0)?))
                })
                .ok_or_else(|| Self::wrong(name, value, "[start, factor], the factor above 0"))
            })
            .transpose()
    }
}

fn ids_wanted(what: &str, n_logits: u32) -> String {
    format!("{what}, each below {n_logits}")
}

fn token_id(value: &Value, n_logits: u32) -> Option<TokenId> {
    value.as_u64().and_then(|id| TokenId::try_from(id).ok()).filter(|id| *id < n_logits)
}

/// A request's parameters over the model's defaults; lengths not yet settled, since they depend on
/// each input's.
#[derive(Clone, Debug)]
pub(crate) struct GenerationParams {
    rules: Rules,
    max_length: Option<u32>,
    max_new_tokens: Option<u32>,
    min_length: Option<u32>,
    min_new_tokens: Option<u32>,
    max_positions: u32,
    is_encoder_decoder: bool,
}

impl GenerationParams {
    /// Reads what generation needs of `params`.
    ///
    /// # Errors
    /// `BadRequest` that names the first parameter of a wrong type or range, or one that asks for
    /// what this version can't do.
    pub(crate) fn read(params: Params<'_>, defaults: &Defaults) -> Result<Self, HostError> {
        refuse_unsupported(params)?;
        let n_logits = defaults.n_logits;
        let list = |name: &str, default: &Arc<[TokenId]>| {
            Ok::<_, HostError>(
                params.ids(name, n_logits)?.map_or_else(|| default.clone(), Arc::from),
            )
        };
        let forced_bos = params.ids("forced_bos_token_id", n_logits)?;
        let repetition_penalty =
            params.positive("repetition_penalty")?.or(defaults.repetition_penalty);
        let no_repeat =
            params.whole("no_repeat_ngram_size", 0)?.or(defaults.no_repeat_ngram_size).unwrap_or(0);
        let decay = params
            .decay("exponential_decay_length_penalty")?
            .or(defaults.exponential_decay_length_penalty);
        let rules = Rules {
            eos: list("eos_token_id", &defaults.eos_token_id)?,
            repetition_penalty: repetition_penalty.filter(|p| *p != 1.0).map(|p| p as f32),
            no_repeat_ngram: no_repeat as usize,
            bad_words: params
                .words("bad_words_ids", n_logits)?
                .unwrap_or_else(|| defaults.bad_words_ids.clone()),
            forced_bos: match forced_bos {
                Some(ids) => ids.first().copied(),
                None => defaults.forced_bos_token_id,
            },
            forced_eos: list("forced_eos_token_id", &defaults.forced_eos_token_id)?,
            decay: decay.map(|(start, factor)| (start as usize, factor)),
            suppress: list("suppress_tokens", &defaults.suppress_tokens)?,
            begin_suppress: list("begin_suppress_tokens", &defaults.begin_suppress_tokens)?,
            ..Rules::default()
        };
        Ok(Self {
            rules,
            max_length: params.whole("max_length", 1)?.or(defaults.max_length),
            max_new_tokens: params.whole("max_new_tokens", 1)?.or(defaults.max_new_tokens),
            min_length: params.whole("min_length", 0)?.or(defaults.min_length),
            min_new_tokens: params.whole("min_new_tokens", 0)?.or(defaults.min_new_tokens),
            max_positions: defaults.max_positions,
            is_encoder_decoder: defaults.is_encoder_decoder,
        })
    }

    /// The rules for an input whose decoder starts with `n_prompt` ids, at least 1.
    ///
    /// The last id said is never fed back, so a decoder of `max_positions` says one more than
    /// fit; a limit beyond that is lowered to it.
    ///
    /// # Errors
    /// `BadRequest` if the lengths leave no room for a new token.
    pub(crate) fn rules(&self, n_prompt: usize) -> Result<Rules, HostError> {
        let max_positions = self.max_positions as usize;
        let max_length = match (self.max_new_tokens, self.max_length) {
            (Some(n_new), _) => n_prompt.saturating_add(n_new as usize),
            (None, Some(max_length)) => max_length as usize,
            (None, None) => {
                let max_length = n_prompt + DEFAULT_NEW_TOKENS;
                if max_positions > n_prompt { max_length.min(max_positions) } else { max_length }
            }
        };
        if n_prompt >= max_length {
            let what = if self.is_encoder_decoder { "the decoder's start" } else { "the prompt" };
            return Err(HostError::bad_request(format!(
                "parameters.max_length={max_length} counts {what}, which has {n_prompt} tokens: \
                 raise it above that, or set max_new_tokens instead"
            )));
        }
        let capped = max_length.min(max_positions.saturating_add(1));
        if n_prompt >= capped {
            return Err(HostError::bad_request(format!(
                "the prompt has {n_prompt} tokens and the model takes {max_positions}: shorten it, \
                 or set parameters.truncation to true"
            )));
        }
        if capped < max_length {
            tracing::debug!(max_length, max_positions, "generation is limited by the positions");
        }
        let min_length = match self.min_new_tokens {
            Some(n_new) => n_prompt.saturating_add(n_new as usize),
            None => self.min_length.unwrap_or(0) as usize,
        };
        let min_new_tokens = self.min_new_tokens.unwrap_or(0) as usize;
        let rules = self.rules.clone();
        Ok(Rules { n_prompt, max_length: capped, min_length, min_new_tokens, ..rules })
    }
}

impl GenerationParams {
    /// How tokens are generated for an input whose decoder starts with `n_prompt` ids; without stop
    /// strings and grammar, which need the tokenizer.
    ///
    /// # Errors
    /// As [`Self::rules`].
    pub(crate) fn generate(&self, n_prompt: usize) -> Result<Generate, HostError> {
        Ok(Generate { rules: self.rules(n_prompt)?, ..Generate::default() })
    }

    /// The stop strings; none of them is empty.
    pub(crate) fn stop_strings(&self) -> Arc<[String]> {
        Arc::default()
    }

    /// What the text has to follow, and what the client calls that parameter.
    pub(crate) fn grammar(&self) -> Option<(&Grammar, &str)> {
        None
    }

    /// How many choices are given of those that are generated: the likeliest, if they are fewer
    /// (`best_of` above `n`).
    pub(crate) fn n_kept(&self) -> usize {
        1
    }

    /// Whether a stop string stays in the text it ends (`include_stop_str_in_output`).
    pub(crate) fn keeps_stop(&self) -> bool {
        false
    }
}

/// Parameters that would change the answer if they were honoured, with the values that do not.
fn refuse_unsupported(params: Params<'_>) -> Result<(), HostError> {
    let refuse = |name: &str, value: &Value, why: &str| {
        let value = if value.is_string() || value.is_array() || value.is_object() {
            String::new()
        } else {
            format!("={value}")
        };
        Err(HostError::bad_request(format!("parameters.{name}{value}: {why}")))
    };
    if let Some(value @ Value::Bool(true)) = params.get("do_sample") {
        let why = "this version decodes greedily; leave it out or set false";
        return refuse("do_sample", value, why);
    }
    params.flag("do_sample")?;
    for name in ["num_beams", "num_beam_groups", "num_return_sequences"] {
        if let Some(n) = params.whole(name, 1)?
            && n > 1
        {
            let why = "this version decodes greedily, one answer an input; leave it out or set 1";
            return refuse(name, &Value::from(n), why);
        }
    }
    for (name, neutral) in [
        ("encoder_repetition_penalty", 1.0),
        ("guidance_scale", 1.0),
        ("encoder_no_repeat_ngram_size", 0.0),
        ("diversity_penalty", 0.0),
        ("penalty_alpha", 0.0),
    ] {
        if let Some(value) = params.get(name)
            && value.as_f64() != Some(neutral)
        {
            let why = format!("this version has no such rule; leave it out or set {neutral}");
            return refuse(name, value, &why);
        }
    }
    for name in UNAVAILABLE {
        if let Some(value) = params.get(name)
            && !matches!(value, Value::Array(list) if list.is_empty())
            && value.as_str() != Some("")
        {
            return refuse(name, value, "not available in this version; leave it out");
        }
    }
    for name in ["return_tensors", "return_dict_in_generate", "output_scores"] {
        if let Some(value) = params.get(name)
            && value.as_bool() != Some(false)
        {
            return refuse(name, value, "replies hold text only; leave it out or set false");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
