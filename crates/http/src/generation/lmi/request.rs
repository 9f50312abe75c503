//! A request in the LMI schema.

use drivetrain_host::{Naming, Prompt};
use serde_json::{Map, Value};

use super::Dialect;
use crate::generation::schema::{
    Field, Fields, Invalid, Kind, MAX_CHOICES, MAX_STOPS, here, host, ignore_unknown, nobody, read,
};

/// New tokens where the request does not say how many.
const DEFAULT_NEW_TOKENS: u64 = 30;
/// Most prompts in one request.
const MAX_PROMPTS: usize = 1024;

/// The request's own fields.
pub(crate) const REQUEST: &[Field] = &[
    here("inputs", Kind::Any, "The prompt, or a list of prompts; none may be empty."),
    here("parameters", Kind::Object, "How to generate."),
    here("stream", Kind::Flag, "Whether the answer comes token by token."),
    here(
        "output_formatter",
        Kind::Text,
        "`json`, `jsonlines`, `sse`, their `_chat` forms, or `none`.",
    ),
    nobody(
        "adapters",
        "The name of an adapter, or a list of them, one for each input; with option.enable_lora.",
    ),
    nobody("model", "Accepted; the route or model_name says which model."),
    nobody("cached_prompt", "Accepted; prefixes are reused by themselves."),
];

/// The fields of `parameters`. Others go to the host under their own names: transformers' and
/// vLLM's are known there.
pub(crate) const PARAMETERS: &[Field] = &[
    host(
        "max_new_tokens",
        "max_new_tokens",
        Kind::Whole(1, i32::MAX as i64),
        "New tokens at most; 30 unless set.",
    ),
    host("do_sample", "do_sample", Kind::Flag, "Whether to sample; greedy unless set."),
    host("temperature", "temperature", Kind::Number(0.0, 100.0), "0 is greedy."),
    host(
        "top_k",
        "top_k",
        Kind::Whole(-1, i64::MAX),
        "The likeliest tokens that are sampled from; 0 or -1 for all.",
    ),
    host(
        "top_p",
        "top_p",
        Kind::Number(0.0, 1.0),
        "The share of probability that is sampled from.",
    ),
    host("repetition_penalty", "repetition_penalty", Kind::Any, "1 for none."),
    host("seed", "seed", Kind::Whole(i64::MIN, i64::MAX), "What sampling follows from."),
    here("details", Kind::Flag, "Whether the reply says more than the text."),
    here(
        "decoder_input_details",
        Kind::Flag,
        "Whether details have the prompt's tokens; needs details.",
    ),
    host(
        "return_full_text",
        "return_full_text",
        Kind::Flag,
        "Whether the text begins with the prompt.",
    ),
    host("stop_sequences", "stop", Kind::Stops(MAX_STOPS), "Where to stop."),
    host("stop", "stop", Kind::Stops(MAX_STOPS), "The same as stop_sequences."),
    host(
        "truncate",
        "truncate_prompt_tokens",
        Kind::Whole(1, i64::MAX),
        "Last tokens of the prompt to keep.",
    ),
    here("top_n_tokens", Kind::Whole(0, 20), "Likeliest tokens to list at each place."),
    host("n", "n", Kind::Whole(1, MAX_CHOICES as i64), "Choices."),
    host(
        "best_of",
        "best_of",
        Kind::Whole(1, MAX_CHOICES as i64),
        "Choices made, of which the best are given.",
    ),
    host("num_beams", "num_beams", Kind::Whole(1, MAX_CHOICES as i64), "Beams of beam search."),
    host("ignore_eos_token", "ignore_eos", Kind::Flag, "Whether to go on past the end token."),
    host("ignore_eos", "ignore_eos", Kind::Flag, "The same as ignore_eos_token."),
    here("output_formatter", Kind::Text, "As the request's own."),
    nobody("cached_prompt", "Accepted; prefixes are reused by themselves."),
    nobody("watermark", "Accepted; nothing is marked."),
];

static NAMES: Naming = Naming {
    prefix: "parameters.",
    renamed: &[
        ("stop", "stop_sequences"),
        ("truncate_prompt_tokens", "truncate"),
        ("prompt_logprobs", "decoder_input_details"),
        ("logprobs", "top_n_tokens"),
    ],
};
static NAMES_WITH_STOP: Naming = Naming {
    prefix: "parameters.",
    renamed: &[
        ("truncate_prompt_tokens", "truncate"),
        ("prompt_logprobs", "decoder_input_details"),
        ("logprobs", "top_n_tokens"),
    ],
};

/// A request, read.
#[derive(Debug)]
pub(crate) struct LmiRequest {
    /// The prompts.
    pub(crate) prompts: Vec<Prompt>,
    /// Whether they came as a list, so that the answer is one.
    pub(crate) is_list: bool,
    /// For the host.
    pub(crate) parameters: Map<String, Value>,
    /// The client's names.
    pub(crate) naming: Naming,
    /// `stream`, where it is said.
    pub(crate) stream: bool,
    /// `output_formatter`, where it is said.
    pub(crate) formatter: Option<String>,
    /// Whether details are wanted.
    pub(crate) details: bool,
    /// Whether they have the prompt's tokens.
    pub(crate) prefill: bool,
    /// Likeliest tokens to list.
    pub(crate) top_n: u64,
    /// New tokens at most.
    pub(crate) max_new: u64,
}

impl LmiRequest {
    /// Reads the document of a request.
    ///
    /// # Errors
    /// The first field of a wrong type or out of range.
    pub(crate) fn read(object: Map<String, Value>, dialect: Dialect) -> Result<Self, Invalid> {
        let mut own = read(object, &[REQUEST], "", ignore_unknown)?;
        let (prompts, is_list) = prompts(own.take("inputs"))?;
        let parameters = match own.take("parameters") {
            Some(Value::Object(map)) => map,
            _ => Map::new(),
        };
        let has_stop = parameters.contains_key("stop");
        let mut fields = read(parameters, &[PARAMETERS], "parameters.", pass_on)?;
        let formatter = own.text("output_formatter").or(fields.text("output_formatter"));
        let formatter = formatter.map(str::to_owned);
        let details = match fields.take("details") {
            Some(said) => said == Value::Bool(true),
            None => dialect == Dialect::Tgi,
        };
        let top_n = fields.whole("top_n_tokens").unwrap_or(0);
        let prefill = details && fields.flag("decoder_input_details");
        let max_new = fields.host.get("max_new_tokens").and_then(Value::as_u64);
        let mut request = Self {
            prompts,
            is_list,
            parameters: fields.host,
            naming: if has_stop { NAMES_WITH_STOP } else { NAMES },
            stream: own.flag("stream"),
            formatter,
            details,
            prefill,
            top_n,
            max_new: max_new.unwrap_or(DEFAULT_NEW_TOKENS),
        };
        request.settle(dialect);
        Ok(request)
    }

    /// Fills in what LMI fills in.
    fn settle(&mut self, dialect: Dialect) {
        let parameters = &mut self.parameters;
        let mut default = |name: &str, value: Value| {
            parameters.entry(name.to_owned()).or_insert(value);
        };
        default("max_new_tokens", self.max_new.into());
        default("return_full_text", false.into());
        if dialect != Dialect::Async {
            default("do_sample", false.into());
        }
        if is_zero(parameters.get("temperature")) {
            parameters.remove("temperature");
            parameters.insert("do_sample".to_owned(), false.into());
        }
    }

    /// Asks the host for what the reply shows; `is_streamed` replies show a log-probability with
    /// each token.
    pub(crate) fn ask_for_details(&mut self, is_streamed: bool) {
        if self.details || is_streamed || self.top_n > 0 {
            self.parameters.insert("logprobs".to_owned(), self.top_n.into());
        }
        if self.prefill {
            self.parameters.insert("prompt_logprobs".to_owned(), 0.into());
        }
    }

    /// Whether nothing can be said before the end: several choices, or beams.
    pub(crate) fn is_held_back(&self) -> bool {
        ["n", "best_of", "num_beams", "num_return_sequences"].iter().any(|name| {
            self.parameters.get(*name).and_then(Value::as_u64).is_some_and(|count| count > 1)
        })
    }

    /// Whether a choice may end at a token that does not look like its last.
    pub(crate) fn may_stop_anywhere(&self) -> bool {
        const CAUSES: [&str; 9] = [
            "stop",
            "stop_strings",
            "stop_token_ids",
            "eos_token_id",
            "guided_json",
            "guided_regex",
            "guided_choice",
            "guided_grammar",
            "response_format",
        ];
        CAUSES.iter().any(|name| self.parameters.contains_key(*name))
    }
}

/// Whether a number is given and is 0.
pub(crate) fn is_zero(value: Option<&Value>) -> bool {
    value.and_then(Value::as_f64).is_some_and(|number| number == 0.0)
}

fn pass_on(fields: &mut Fields, name: String, value: Value) {
    fields.host.insert(name, value);
}

fn prompts(inputs: Option<Value>) -> Result<(Vec<Prompt>, bool), Invalid> {
    let wanted = "a string that is not empty, or a list of them";
    let text = |value: Value, place: &dyn Fn() -> String| match value {
        Value::String(text) if !text.is_empty() => Ok(Prompt::Text(text)),
        other => Err(Invalid::value(place(), &other, "a string that is not empty")),
    };
    match inputs {
        None => Err(Invalid::new("inputs", format!("missing: give {wanted}"))),
        Some(Value::Array(list)) if list.is_empty() || list.len() > MAX_PROMPTS => Err(
            Invalid::new("inputs", format!("has {} prompts: give 1 to {MAX_PROMPTS}", list.len())),
        ),
        Some(Value::Array(list)) => {
            let prompts = list
                .into_iter()
                .enumerate()
                .map(|(idx, value)| text(value, &|| format!("inputs[{idx}]")));
            Ok((prompts.collect::<Result<_, _>>()?, true))
        }
        Some(one) => Ok((vec![text(one, &|| "inputs".to_owned())?], false)),
    }
}
