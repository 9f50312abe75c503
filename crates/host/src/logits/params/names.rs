//! The parameters there are, and those that are refused.

use serde_json::Value;

use super::Params;
use crate::HostError;

/// Names of unknown parameters that one line of the log shows.
const MAX_SHOWN: usize = 16;

/// Parameters that are read here or by those who put requests together, or that change nothing that
/// is told.
const KNOWN: &[&str] = &[
    "add_special_tokens",
    "aggregation_strategy",
    "align_to_words",
    "bad_words",
    "bad_words_ids",
    "batch_size",
    "begin_suppress_tokens",
    "best_of",
    "cached_prompt",
    "candidate_labels",
    "clean_up_tokenization_spaces",
    "decoder_input_details",
    "decoder_start_token_id",
    "delimiter",
    "details",
    "dimensions",
    "diversity_penalty",
    "do_sample",
    "doc_stride",
    "early_stopping",
    "echo",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "eos_token_id",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "frequency_penalty",
    "function_to_apply",
    "grammar",
    "grouped_entities",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_json_object",
    "guided_regex",
    "handle_impossible_answer",
    "hypothesis_template",
    "ignore_eos",
    "ignore_eos_token",
    "ignore_labels",
    "ignore_subwords",
    "include_stop_str_in_output",
    "is_split_into_words",
    "length_penalty",
    "logit_bias",
    "logprobs",
    "manual_seed",
    "max_answer_len",
    "max_length",
    "max_matching_ngram_size",
    "max_new_tokens",
    "max_question_len",
    "max_seq_len",
    "max_tokens",
    "min_length",
    "min_new_tokens",
    "min_p",
    "min_tokens",
    "multi_class",
    "multi_label",
    "n",
    "no_repeat_ngram_size",
    "normalize",
    "normalize_embeddings",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_formatter",
    "pad_token_id",
    "padding",
    "presence_penalty",
    "prompt",
    "prompt_logprobs",
    "prompt_lookup_num_tokens",
    "prompt_name",
    "raw_scores",
    "remove_invalid_values",
    "renormalize_logits",
    "repetition_penalty",
    "response_format",
    "return_all_scores",
    "return_full_text",
    "return_text",
    "seed",
    "sequence_bias",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "src_lang",
    "stop",
    "stop_sequence",
    "stop_sequences",
    "stop_strings",
    "stop_token_ids",
    "stream",
    "stride",
    "structured_outputs",
    "suppress_tokens",
    "targets",
    "temperature",
    "tgt_lang",
    "tokenize_kwargs",
    "tokenizer_kwargs",
    "top_k",
    "top_logprobs",
    "top_n_tokens",
    "top_p",
    "topk",
    "truncate",
    "truncate_prompt_tokens",
    "truncation",
    "typical_p",
    "use_beam_search",
    "use_cache",
    "user",
];

/// What would change the answer if it were honoured, with the number that does not.
const NEUTRAL: [(&str, f64); 2] = [("guidance_scale", 1.0), ("penalty_alpha", 0.0)];

/// What is refused unless it is empty or false.
const UNAVAILABLE: [&str; 9] = [
    "constraints",
    "force_words_ids",
    "watermarking_config",
    "watermark",
    "prefix",
    "handle_long_generation",
    "decoder_input_ids",
    "max_time",
    "assistant_model",
];

/// What asks for more than text.
const TENSORS: [&str; 3] = ["return_tensors", "return_dict_in_generate", "output_scores"];

impl Params<'_> {
    /// Says which parameters mean nothing here, since nothing else will.
    pub(crate) fn log_unknown(self, request: &str) {
        let unknown = self.unknown();
        if !unknown.is_empty() {
            tracing::warn!(request, parameters = unknown, "unknown parameters go unused");
        }
    }

    /// The names of unknown parameters, the first of them if they are many.
    pub(super) fn unknown(self) -> String {
        let is_known = |name: &str| {
            KNOWN.contains(&name)
                || UNAVAILABLE.contains(&name)
                || TENSORS.contains(&name)
                || NEUTRAL.iter().any(|(known, _)| *known == name)
        };
        let unknown = self.names().filter(|name| !is_known(name));
        let shown = unknown.take(MAX_SHOWN).map(|name| {
            let end = name.char_indices().nth(40).map_or(name.len(), |(end, _)| end);
            name.get(..end).unwrap_or(name)
        });
        shown.collect::<Vec<_>>().join(", ")
    }

    /// # Errors
    /// `BadRequest` for a parameter that asks for what can't be done.
    pub(super) fn refuse_unavailable(self) -> Result<(), HostError> {
        let refuse = |name: &str, value: &Value, why: &str| {
            let value = if value.is_string() || value.is_array() || value.is_object() {
                String::new()
            } else {
                format!("={value}")
            };
            Err(HostError::bad_request(format!("{}{value}: {why}", self.shown(name))))
        };
        for (name, neutral) in NEUTRAL {
            if let Some(value) = self.get(name)
                && value.as_f64() != Some(neutral)
            {
                let why = format!("there is no such rule here; leave it out or set {neutral}");
                return refuse(name, value, &why);
            }
        }
        for name in UNAVAILABLE {
            if let Some(value) = self.get(name)
                && !matches!(value, Value::Array(list) if list.is_empty())
                && value.as_str() != Some("")
                && value.as_bool() != Some(false)
            {
                return refuse(name, value, "not available here; leave it out");
            }
        }
        for name in TENSORS {
            if let Some(value) = self.get(name)
                && value.as_bool() != Some(false)
            {
                return refuse(name, value, "replies hold text only; leave it out or set false");
            }
        }
        Ok(())
    }
}
