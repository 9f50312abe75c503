//! From a request's parameters and the model's defaults to [`Generate`].

mod grammar;
mod names;
mod rules;
mod search;
mod value;

use std::sync::Arc;

use drivetrain_engine::TokenId;

use self::search::Plan;
pub(crate) use self::value::Params;
use crate::HostError;
use crate::constraint::Grammar;
use crate::logits::{EarlyStopping, Rules};
use crate::scheduler::{Generate, Report, Search};

/// New tokens where neither the request nor the model says how many.
const DEFAULT_NEW_TOKENS: usize = 20;

/// Most stop strings, and most words in words that are not said.
const MAX_STOPS: usize = 64;
const MAX_BAD_WORDS: usize = 1024;

/// Most characters of one of them.
const MAX_CHARS: usize = 1024;

/// Most tokens proposed at once, and the longest run that is looked up for them.
const MAX_LOOKUP: usize = 64;
const MAX_LOOKUP_NGRAM: usize = 16;

/// The longest run that is looked up unless something else is said: transformers' default.
const LOOKUP_NGRAM: u32 = 2;

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
    pub(crate) do_sample: Option<bool>,
    pub(crate) temperature: Option<f64>,
    /// 0 keeps all.
    pub(crate) top_k: Option<u32>,
    pub(crate) top_p: Option<f64>,
    pub(crate) min_p: Option<f64>,
    pub(crate) typical_p: Option<f64>,
    pub(crate) epsilon_cutoff: Option<f64>,
    pub(crate) eta_cutoff: Option<f64>,
    pub(crate) num_beams: Option<u32>,
    pub(crate) num_beam_groups: Option<u32>,
    pub(crate) num_return_sequences: Option<u32>,
    pub(crate) diversity_penalty: Option<f64>,
    pub(crate) length_penalty: Option<f64>,
    pub(crate) early_stopping: EarlyStopping,
    pub(crate) repetition_penalty: Option<f64>,
    pub(crate) encoder_repetition_penalty: Option<f64>,
    pub(crate) no_repeat_ngram_size: Option<u32>,
    pub(crate) encoder_no_repeat_ngram_size: Option<u32>,
    pub(crate) bad_words_ids: Arc<[Vec<TokenId>]>,
    pub(crate) sequence_bias: Arc<[(Vec<TokenId>, f32)]>,
    pub(crate) suppress_tokens: Arc<[TokenId]>,
    pub(crate) begin_suppress_tokens: Arc<[TokenId]>,
    pub(crate) exponential_decay_length_penalty: Option<(u32, f64)>,
    pub(crate) remove_invalid_values: Option<bool>,
    /// Tokens proposed at once by looking the last ones up in the text so far; none without it.
    pub(crate) n_lookup: Option<u32>,
    /// Longest run of last tokens that is looked up.
    pub(crate) lookup_ngram: Option<u32>,
    /// Whether the model is an encoder-decoder model, whose lengths start at the start token.
    pub(crate) is_encoder_decoder: bool,
    /// Columns of a row of logits.
    pub(crate) n_logits: u32,
    /// The longest sequence the decoder takes.
    pub(crate) max_positions: u32,
}

/// A request's parameters over the model's defaults; lengths not yet settled, since they depend on
/// each input's.
#[derive(Clone, Debug)]
pub(crate) struct GenerationParams {
    rules: Rules,
    plan: Plan,
    report: Report,
    lengths: Lengths,
    stop_strings: Arc<[String]>,
    keeps_stop: bool,
    bad_word_strings: Vec<String>,
    grammar: Option<(Grammar, String)>,
    n_lookup: usize,
    lookup_ngram: usize,
    max_positions: u32,
    is_encoder_decoder: bool,
}

/// How long a text may be and has to be.
#[derive(Clone, Debug)]
struct Lengths {
    max_length: Option<u32>,
    max_new_tokens: Option<u32>,
    min_length: Option<u32>,
    min_new_tokens: Option<u32>,
    /// What the client calls `max_length` and `max_new_tokens`.
    names: [String; 2],
    /// What the client calls `truncation`.
    truncation: String,
}

impl Lengths {
    fn read(params: Params<'_>, defaults: &Defaults) -> Result<Self, HostError> {
        let max_new = params.named(&["max_new_tokens", "max_tokens"])?;
        let min_new = params.named(&["min_new_tokens", "min_tokens"])?;
        let max_new_tokens = params.whole(max_new, 1)?;
        let max_length = params.whole("max_length", 1)?;
        let min_new_tokens = params.whole(min_new, 0)?;
        let min_length = params.whole("min_length", 0)?;
        let why = "the least can't be above the most";
        if let (Some(min), Some(max)) = (min_new_tokens, max_new_tokens)
            && min > max
        {
            return Err(params.conflict((min_new, &min), (max_new, &max), why));
        }
        if let (Some(min), Some(max), None, None) =
            (min_length, max_length, max_new_tokens, min_new_tokens)
            && min > max
        {
            return Err(params.conflict(("min_length", &min), ("max_length", &max), why));
        }
        Ok(Self {
            max_length: max_length.or(defaults.max_length),
            max_new_tokens: max_new_tokens.or(defaults.max_new_tokens),
            min_length: min_length.or(defaults.min_length),
            min_new_tokens: min_new_tokens.or(defaults.min_new_tokens),
            names: ["max_length", max_new].map(|name| params.shown(name).into_owned()),
            truncation: params.shown("truncation").into_owned(),
        })
    }
}

impl GenerationParams {
    /// Reads what generation needs of `params`; `is_streamed` says that tokens are wanted as they
    /// come.
    ///
    /// # Errors
    /// `BadRequest` that names the first parameter of a wrong type or range, two that do not go
    /// together, or one that asks for what can't be done.
    pub(crate) fn read(
        params: Params<'_>,
        defaults: &Defaults,
        is_streamed: bool,
    ) -> Result<Self, HostError> {
        params.refuse_unavailable()?;
        let rules = rules::read(params, defaults)?;
        let plan = Plan::read(params, defaults, is_streamed, rules.eos.len())?;
        let mut report = rules::report(params)?;
        let grammar = grammar::read(params)?;
        let n_lookup = params.whole_in("prompt_lookup_num_tokens", 0..=MAX_LOOKUP)?;
        let default = defaults.n_lookup.unwrap_or(0) as usize;
        let mut n_lookup = n_lookup.unwrap_or(default.min(MAX_LOOKUP));
        let lookup_ngram = params.whole_in("max_matching_ngram_size", 1..=MAX_LOOKUP_NGRAM)?;
        let default = defaults.lookup_ngram.unwrap_or(LOOKUP_NGRAM) as usize;
        if let Some((name, n_beams)) = plan.beams {
            if let Some((_, field)) = &grammar {
                let (name, field) = (params.shown(name), params.shown(field));
                return Err(HostError::bad_request(format!(
                    "{field} and {name}={n_beams}: beams follow no grammar; set {name} to 1"
                )));
            }
            n_lookup = 0;
            report = Report { prompt: report.prompt, ..Report::default() };
        }
        if let Search::Sample { n, .. } = plan.search
            && n > plan.n_kept
        {
            // The likeliest are given.
            report.logprobs = true;
        }
        Ok(Self {
            rules,
            plan,
            report,
            lengths: Lengths::read(params, defaults)?,
            stop_strings: stop_strings(params)?,
            keeps_stop: params.flag("include_stop_str_in_output")?.unwrap_or(false),
            bad_word_strings: params
                .texts("bad_words", MAX_BAD_WORDS, MAX_CHARS)?
                .unwrap_or_default(),
            grammar: grammar.map(|(grammar, name)| (grammar, params.shown(name).into_owned())),
            n_lookup,
            lookup_ngram: lookup_ngram.unwrap_or(default.clamp(1, MAX_LOOKUP_NGRAM)),
            max_positions: defaults.max_positions,
            is_encoder_decoder: defaults.is_encoder_decoder,
        })
    }

    /// The rules for an input whose decoder starts with `n_prompt` ids, at least 1, and whose
    /// encoder reads `encoder`.
    ///
    /// The last id said is never fed back, so a decoder of `max_positions` says one more than
    /// fit; a limit beyond that is lowered to it.
    fn rules(&self, n_prompt: usize, encoder: &[TokenId]) -> Result<Rules, HostError> {
        let lengths = &self.lengths;
        let max_positions = self.max_positions as usize;
        let max_length = match (lengths.max_new_tokens, lengths.max_length) {
            (Some(n_new), _) => n_prompt.saturating_add(n_new as usize),
            (None, Some(max_length)) => max_length as usize,
            (None, None) => {
                let max_length = n_prompt + DEFAULT_NEW_TOKENS;
                if max_positions > n_prompt { max_length.min(max_positions) } else { max_length }
            }
        };
        if n_prompt >= max_length {
            let what = if self.is_encoder_decoder { "the decoder's start" } else { "the prompt" };
            let [name, new_name] = &lengths.names;
            return Err(HostError::bad_request(format!(
                "{name}={max_length} counts {what}, which has {n_prompt} tokens: raise it above \
                 that, or set {new_name} instead"
            )));
        }
        let capped = max_length.min(max_positions.saturating_add(1));
        if n_prompt >= capped {
            return Err(HostError::bad_request(format!(
                "the prompt has {n_prompt} tokens and the model takes {max_positions}: shorten it, \
                 or set {} to true",
                lengths.truncation
            )));
        }
        if capped < max_length {
            tracing::debug!(max_length, max_positions, "generation is limited by the positions");
        }
        let min_length = match lengths.min_new_tokens {
            Some(n_new) => n_prompt.saturating_add(n_new as usize),
            None => lengths.min_length.unwrap_or(0) as usize,
        };
        let min_new_tokens = lengths.min_new_tokens.unwrap_or(0) as usize;
        let mut rules = self.rules.clone();
        if rules.encoder_repetition_penalty.is_some() || rules.encoder_no_repeat_ngram > 0 {
            rules.encoder = encoder.into();
        }
        Ok(Rules { n_prompt, max_length: capped, min_length, min_new_tokens, ..rules })
    }

    /// How tokens are generated for an input whose decoder starts with `n_prompt` ids, at least 1;
    /// `encoder` is what the encoder reads, or the prompt of a model without one. Without stop
    /// strings and grammar, which need the tokenizer.
    ///
    /// Inputs without a seed of the request's take one each, so that the same text twice gets two
    /// answers.
    ///
    /// # Errors
    /// `BadRequest` if the lengths leave no room for a new token.
    pub(crate) fn generate(
        &self,
        n_prompt: usize,
        encoder: &[TokenId],
    ) -> Result<Generate, HostError> {
        let rules = self.rules(n_prompt, encoder)?;
        let fresh = || self.plan.seed.unwrap_or_else(search::fresh_seed);
        let mut search = self.plan.search.clone();
        match &mut search {
            Search::Greedy => {}
            Search::Sample { seed, .. } => *seed = fresh(),
            Search::Beams(beams) => beams.seed = fresh(),
        }
        Ok(Generate {
            rules,
            search,
            report: self.report,
            stops: None,
            constraint: None,
            n_lookup: self.n_lookup,
            lookup_ngram: self.lookup_ngram,
        })
    }

    /// The stop strings; none of them is empty.
    pub(crate) fn stop_strings(&self) -> Arc<[String]> {
        self.stop_strings.clone()
    }

    /// Words that are not said, as texts (`bad_words`); none of them is empty. Their tokens go to
    /// [`Self::ban`].
    pub(crate) fn bad_word_strings(&self) -> &[String] {
        &self.bad_word_strings
    }

    /// Bans further runs of tokens.
    pub(crate) fn ban(&mut self, words: impl IntoIterator<Item = Vec<TokenId>>) {
        let words = words.into_iter().filter(|word| !word.is_empty());
        self.rules.bad_words = self.rules.bad_words.iter().cloned().chain(words).collect();
    }

    /// What the text has to follow, and what the client calls that parameter.
    pub(crate) fn grammar(&self) -> Option<(&Grammar, &str)> {
        self.grammar.as_ref().map(|(grammar, field)| (grammar, field.as_str()))
    }

    /// How many choices are given of those that are generated: the likeliest, if they are fewer
    /// (`best_of` above `n`).
    pub(crate) fn n_kept(&self) -> usize {
        self.plan.n_kept
    }

    /// Whether a stop string stays in the text it ends (`include_stop_str_in_output`).
    pub(crate) fn keeps_stop(&self) -> bool {
        self.keeps_stop
    }
}

/// The stop strings under all their names, each once.
fn stop_strings(params: Params<'_>) -> Result<Arc<[String]>, HostError> {
    let mut all: Vec<String> = Vec::new();
    for name in ["stop", "stop_sequences", "stop_strings", "stop_sequence"] {
        for text in params.texts(name, MAX_STOPS, MAX_CHARS)?.unwrap_or_default() {
            if !all.contains(&text) {
                all.push(text);
            }
        }
    }
    Ok(all.into())
}

#[cfg(test)]
mod tests;
