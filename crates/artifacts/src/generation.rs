//! `generation_config.json`: what a model's makers wish for when it generates.
//!
//! Meaning and defaults are those of transformers 5.23.0, `generation/configuration_utils.py`. An
//! absent key stays absent here; what it then means is the sampler's affair.

use serde_json::{Map, Value};

use crate::error::ArtifactError;
use crate::json::JsonFile;
use crate::model_config::{MAX_CONFIG_BYTES, ModelConfig};
use crate::model_dir::ModelDir;

const TOKEN: &str = "a token id from 0 to 4294967295";

/// When beam search stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlyStopping {
    /// `false`: when it is unlikely that a better candidate comes.
    Heuristic,
    /// `true`: as soon as there are as many finished candidates as beams.
    Immediate,
    /// `"never"`: when there can be no better candidate.
    Never,
}

/// How a model generates unless a request says otherwise.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// The token that starts a text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text; empty if none does.
    pub eos_token_id: Vec<u32>,
    /// The token that fills a batch.
    pub pad_token_id: Option<u32>,
    /// The token a decoder starts with.
    pub decoder_start_token_id: Option<u32>,
    /// The token forced to be the first that a decoder says.
    pub forced_bos_token_id: Option<u32>,
    /// The tokens forced to be the last when the longest length is reached.
    pub forced_eos_token_id: Vec<u32>,
    /// Longest text in tokens, prompt or decoder start included.
    pub max_length: Option<u32>,
    /// Most tokens to generate; wins over `max_length`.
    pub max_new_tokens: Option<u32>,
    /// Shortest text in tokens, prompt or decoder start included.
    pub min_length: Option<u32>,
    /// Fewest tokens to generate.
    pub min_new_tokens: Option<u32>,
    /// Beams of beam search; 1 is greedy search or sampling.
    pub num_beams: Option<u32>,
    /// Groups that the beams are divided into.
    pub num_beam_groups: Option<u32>,
    /// What a token loses for each beam of an earlier group that chose it; 0 or more.
    pub diversity_penalty: Option<f64>,
    /// Answers to give for one prompt.
    pub num_return_sequences: Option<u32>,
    /// When beam search stops.
    pub early_stopping: Option<EarlyStopping>,
    /// Whether tokens are drawn instead of taking the likeliest.
    pub do_sample: Option<bool>,
    /// What logits are divided by; above 0.
    pub temperature: Option<f64>,
    /// How many of the likeliest tokens are kept; 0 keeps all.
    pub top_k: Option<u32>,
    /// Probability mass of the tokens that are kept, 0 to 1.
    pub top_p: Option<f64>,
    /// Least probability that is kept, as a part of the largest, 0 to 1.
    pub min_p: Option<f64>,
    /// Mass of typical tokens that are kept, 0 to 1.
    pub typical_p: Option<f64>,
    /// Least probability that is kept, 0 to 1.
    pub epsilon_cutoff: Option<f64>,
    /// Least probability that is kept, relative to the entropy, 0 to 1.
    pub eta_cutoff: Option<f64>,
    /// What tokens are penalised with that occurred before; above 0, 1 is neutral.
    pub repetition_penalty: Option<f64>,
    /// What tokens are favoured with that occur in the encoder's input; above 0, 1 is neutral.
    pub encoder_repetition_penalty: Option<f64>,
    /// Exponent of the length that a beam's score is divided by.
    pub length_penalty: Option<f64>,
    /// Where the boost of the end token starts, in tokens, and its factor.
    pub exponential_decay_length_penalty: Option<(u32, f64)>,
    /// Length of token sequences that may not occur twice; 0 allows all.
    pub no_repeat_ngram_size: Option<u32>,
    /// Length of token sequences of the encoder's input that may not occur; 0 allows all.
    pub encoder_no_repeat_ngram_size: Option<u32>,
    /// Token sequences that may not occur.
    pub bad_words_ids: Vec<Vec<u32>>,
    /// What is added to the score of a token that would complete one of these sequences.
    pub sequence_bias: Vec<(Vec<u32>, f32)>,
    /// Tokens that may not occur.
    pub suppress_tokens: Vec<u32>,
    /// Tokens that may not come first.
    pub begin_suppress_tokens: Vec<u32>,
    /// Whether logits are normalised again after all else.
    pub renormalize_logits: Option<bool>,
    /// Whether infinite logits and those that are no number are replaced.
    pub remove_invalid_values: Option<bool>,
    /// Tokens proposed at once by looking the last ones up in the text so far; 0 for none.
    pub prompt_lookup_num_tokens: Option<u32>,
    /// The longest run of last tokens that is looked up.
    pub max_matching_ngram_size: Option<u32>,
}

impl GenerationConfig {
    /// Reads `generation_config.json`; where there is none, the generation keys of `config.json`
    /// and of its text part, with the special tokens that the family's configuration class has by
    /// default.
    ///
    /// # Errors
    /// A file is no JSON object of at most 16 MiB, or a key has an impossible value.
    pub fn read(dir: &ModelDir, config: &ModelConfig) -> Result<Self, ArtifactError> {
        Self::read_with(dir, config, None)
    }

    /// `generation_config.json`, if there is one.
    ///
    /// # Errors
    /// The file is no JSON object of at most 16 MiB.
    pub fn file(dir: &ModelDir) -> Result<Option<JsonFile>, ArtifactError> {
        let path = dir.file("generation_config.json")?;
        path.map(|path| JsonFile::read(&path, MAX_CONFIG_BYTES)).transpose()
    }

    /// As [`Self::read`], with values that go before those of the files: what the
    /// `task_specific_params` of `config.json` say of a task.
    ///
    /// # Errors
    /// As [`Self::read`]; or one of these values is impossible.
    pub fn read_with(
        dir: &ModelDir,
        config: &ModelConfig,
        own: Option<&Map<String, Value>>,
    ) -> Result<Self, ArtifactError> {
        let file = Self::file(dir)?;
        let Some(own) = own else {
            return match &file {
                Some(json) => Self::from_json(json),
                None => Self::from_model_config(config),
            };
        };
        // Alone first, so that an error names the file that they stand in.
        Self::from_json(&JsonFile::from_value(config.json.path(), own.clone().into()))?;
        let over = |json: &JsonFile| {
            let mut value = json.value().clone();
            if let Some(object) = value.as_object_mut() {
                object.extend(own.clone());
            }
            JsonFile::from_value(json.path(), value)
        };
        match &file {
            Some(json) => Self::from_json(&over(json)),
            None => {
                Self::from_model_config(&ModelConfig { json: over(&config.json), ..config.clone() })
            }
        }
    }

    /// What the keys of a file say.
    ///
    /// # Errors
    /// A key has an impossible value; the error names it.
    pub fn from_json(json: &JsonFile) -> Result<Self, ArtifactError> {
        let probability =
            |key| ranged(json, key, "a number from 0 to 1", |p| (0.0..=1.0).contains(&p));
        let positive = |key| ranged(json, key, "a number above 0", |x| x > 0.0);
        Ok(Self {
            bos_token_id: token(json, "bos_token_id")?,
            eos_token_id: tokens(json, "eos_token_id")?,
            pad_token_id: token(json, "pad_token_id")?,
            decoder_start_token_id: token(json, "decoder_start_token_id")?,
            forced_bos_token_id: token(json, "forced_bos_token_id")?,
            forced_eos_token_id: tokens(json, "forced_eos_token_id")?,
            max_length: json.opt_u32("max_length")?,
            max_new_tokens: json.opt_u32("max_new_tokens")?,
            min_length: json.opt_u32("min_length")?,
            min_new_tokens: json.opt_u32("min_new_tokens")?,
            num_beams: at_least_one(json, "num_beams")?,
            num_beam_groups: at_least_one(json, "num_beam_groups")?,
            diversity_penalty: ranged(json, "diversity_penalty", "a number, 0 or more", |x| {
                x >= 0.0
            })?,
            num_return_sequences: at_least_one(json, "num_return_sequences")?,
            early_stopping: early_stopping(json)?,
            do_sample: json.opt_bool("do_sample")?,
            // Greedy checkpoints say temperature 0; it is not used without sampling.
            temperature: ranged(json, "temperature", "a number, 0 or more", |t| t >= 0.0)?,
            top_k: json.opt_u32("top_k")?,
            top_p: probability("top_p")?,
            min_p: probability("min_p")?,
            typical_p: probability("typical_p")?,
            epsilon_cutoff: probability("epsilon_cutoff")?,
            eta_cutoff: probability("eta_cutoff")?,
            repetition_penalty: positive("repetition_penalty")?,
            encoder_repetition_penalty: positive("encoder_repetition_penalty")?,
            length_penalty: json.opt_f64("length_penalty")?,
            exponential_decay_length_penalty: decay(json)?,
            no_repeat_ngram_size: json.opt_u32("no_repeat_ngram_size")?,
            encoder_no_repeat_ngram_size: json.opt_u32("encoder_no_repeat_ngram_size")?,
            bad_words_ids: bad_words(json)?,
            sequence_bias: sequence_bias(json)?,
            suppress_tokens: tokens(json, "suppress_tokens")?,
            begin_suppress_tokens: tokens(json, "begin_suppress_tokens")?,
            renormalize_logits: json.opt_bool("renormalize_logits")?,
            remove_invalid_values: json.opt_bool("remove_invalid_values")?,
            prompt_lookup_num_tokens: json.opt_u32("prompt_lookup_num_tokens")?,
            max_matching_ngram_size: at_least_one(json, "max_matching_ngram_size")?,
        })
    }

    fn from_model_config(config: &ModelConfig) -> Result<Self, ArtifactError> {
        let mut keys = serde_json::Map::new();
        for &(key, id) in family_defaults(&config.model_type) {
            keys.insert(key.to_owned(), id.into());
        }
        let nested = ["decoder", "generator", "text_config"]
            .into_iter()
            .find_map(|part| Some((part, config.json.value().get(part)?.as_object()?)));
        let outer = config.json.value().as_object();
        for (key, value) in outer.into_iter().flatten() {
            keys.insert(key.clone(), value.clone());
        }
        let mut own_names = Vec::new();
        if let Some((part, map)) = nested {
            for (key, value) in map {
                if keys.get(key).is_none_or(Value::is_null) {
                    keys.insert(key.clone(), value.clone());
                    own_names.push((key.as_str(), format!("{part}.{key}")));
                }
            }
        }
        let names = own_names.iter().map(|(key, own)| (*key, own.as_str()));
        Self::from_json(&config.json.renamed(Value::Object(keys), names))
    }
}

/// Special tokens that transformers 5.23.0 assumes where `config.json` does not mention them (an
/// explicit `null` is none).
fn family_defaults(model_type: &str) -> &'static [(&'static str, u32)] {
    const BART: &[(&str, u32)] = &[
        ("bos_token_id", 0),
        ("eos_token_id", 2),
        ("pad_token_id", 1),
        ("decoder_start_token_id", 2),
        ("forced_eos_token_id", 2),
    ];
    const MBART: &[(&str, u32)] = &[
        ("bos_token_id", 0),
        ("eos_token_id", 2),
        ("pad_token_id", 1),
        ("forced_eos_token_id", 2),
    ];
    const PEGASUS: &[(&str, u32)] = &[
        ("eos_token_id", 1),
        ("pad_token_id", 0),
        ("decoder_start_token_id", 0),
        ("forced_eos_token_id", 1),
    ];
    match model_type {
        "bart" => BART,
        "mbart" | "plbart" => MBART,
        "pegasus" | "pegasus_x" => PEGASUS,
        "led" | "m2m_100" | "mvp" => &[
            ("bos_token_id", 0),
            ("eos_token_id", 2),
            ("pad_token_id", 1),
            ("decoder_start_token_id", 2),
        ],
        "marian" => &[
            ("eos_token_id", 0),
            ("pad_token_id", 58100),
            ("decoder_start_token_id", 58100),
            ("forced_eos_token_id", 0),
        ],
        "blenderbot" => &[
            ("bos_token_id", 1),
            ("eos_token_id", 2),
            ("pad_token_id", 0),
            ("decoder_start_token_id", 1),
            ("encoder_no_repeat_ngram_size", 3),
            ("forced_eos_token_id", 2),
        ],
        "t5" => &[("eos_token_id", 1), ("pad_token_id", 0)],
        "mt5" | "umt5" => {
            &[("eos_token_id", 1), ("pad_token_id", 0), ("decoder_start_token_id", 0)]
        }
        "codegen" | "gpt2" | "gpt_bigcode" | "gpt_neo" | "gptj" | "starcoder2" => {
            &[("bos_token_id", 50256), ("eos_token_id", 50256)]
        }
        "bloom" | "granite" | "llama" | "mistral" | "mixtral" | "phi" => {
            &[("bos_token_id", 1), ("eos_token_id", 2)]
        }
        "phi3" => &[("bos_token_id", 1), ("eos_token_id", 32000), ("pad_token_id", 32000)],
        "falcon" => &[("bos_token_id", 11), ("eos_token_id", 11)],
        "gemma" | "gemma2" | "gemma3_text" => {
            &[("bos_token_id", 2), ("eos_token_id", 1), ("pad_token_id", 0)]
        }
        "gpt_neox" => &[("bos_token_id", 0), ("eos_token_id", 2)],
        "opt" => &[("bos_token_id", 2), ("eos_token_id", 2), ("pad_token_id", 1)],
        "stablelm" => &[("bos_token_id", 0), ("eos_token_id", 0)],
        "olmo" | "olmo2" => &[("eos_token_id", 50279), ("pad_token_id", 1)],
        _ => &[],
    }
}

/// One token id; some checkpoints write it as a list of one.
fn token(json: &JsonFile, key: &str) -> Result<Option<u32>, ArtifactError> {
    match json.opt_u32_list(key).map_err(|_| json.invalid(key, TOKEN))?.as_deref() {
        None => Ok(None),
        Some([id]) => Ok(Some(*id)),
        Some(_) => Err(json.invalid(key, TOKEN)),
    }
}

fn tokens(json: &JsonFile, key: &str) -> Result<Vec<u32>, ArtifactError> {
    let wanted = "a token id from 0 to 4294967295, or a list of them";
    Ok(json.opt_u32_list(key).map_err(|_| json.invalid(key, wanted))?.unwrap_or_default())
}

fn ranged(
    json: &JsonFile,
    key: &str,
    wanted: &str,
    allowed: impl Fn(f64) -> bool,
) -> Result<Option<f64>, ArtifactError> {
    match json.opt_f64(key).map_err(|_| json.invalid(key, wanted))? {
        Some(value) if !allowed(value) => Err(json.invalid(key, wanted)),
        value => Ok(value),
    }
}

fn at_least_one(json: &JsonFile, key: &str) -> Result<Option<u32>, ArtifactError> {
    match json.opt_u32(key)? {
        Some(0) => Err(json.invalid(key, "a whole number, 1 or more")),
        value => Ok(value),
    }
}

fn early_stopping(json: &JsonFile) -> Result<Option<EarlyStopping>, ArtifactError> {
    const KEY: &str = "early_stopping";
    Ok(Some(match json.get(KEY)? {
        None => return Ok(None),
        Some(Value::Bool(false)) => EarlyStopping::Heuristic,
        Some(Value::Bool(true)) => EarlyStopping::Immediate,
        Some(Value::String(text)) if text == "never" => EarlyStopping::Never,
        Some(_) => return Err(json.invalid(KEY, "true, false or \"never\"")),
    }))
}

fn decay(json: &JsonFile) -> Result<Option<(u32, f64)>, ArtifactError> {
    const KEY: &str = "exponential_decay_length_penalty";
    let Some(value) = json.get(KEY)? else { return Ok(None) };
    let pair = match value.as_array().map(Vec::as_slice) {
        Some([start, factor]) => {
            start.as_u64().and_then(|start| u32::try_from(start).ok()).zip(factor.as_f64())
        }
        _ => None,
    };
    pair.map(Some).ok_or_else(|| json.invalid(KEY, "a list of a start, in tokens, and a factor"))
}

fn bad_words(json: &JsonFile) -> Result<Vec<Vec<u32>>, ArtifactError> {
    const KEY: &str = "bad_words_ids";
    let invalid = || json.invalid(KEY, "a list of non-empty lists of token ids");
    let Some(value) = json.get(KEY)? else { return Ok(Vec::new()) };
    value.as_array().ok_or_else(invalid)?.iter().map(|w| run(w).ok_or_else(invalid)).collect()
}

fn sequence_bias(json: &JsonFile) -> Result<Vec<(Vec<u32>, f32)>, ArtifactError> {
    const KEY: &str = "sequence_bias";
    let invalid = || json.invalid(KEY, "a list of pairs of a list of token ids and a number");
    let Some(value) = json.get(KEY)? else { return Ok(Vec::new()) };
    let pair = |value: &Value| match value.as_array()?.as_slice() {
        [ids, bias] => Some((run(ids)?, bias.as_f64()? as f32)),
        _ => None,
    };
    value.as_array().ok_or_else(invalid)?.iter().map(|v| pair(v).ok_or_else(invalid)).collect()
}

/// A non-empty list of token ids.
fn run(value: &Value) -> Option<Vec<u32>> {
    let ids = value.as_array().filter(|ids| !ids.is_empty())?;
    ids.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<GenerationConfig, ArtifactError> {
        GenerationConfig::from_json(&JsonFile::from_value("generation_config.json", value))
    }

    fn from_config(value: Value) -> GenerationConfig {
        let config = ModelConfig::from_json(JsonFile::from_value("config.json", value)).unwrap();
        GenerationConfig::from_model_config(&config).unwrap()
    }

    #[test]
    fn keys_are_read() {
        let config = read(json!({
            "eos_token_id": [1, 2], "bos_token_id": 0, "forced_eos_token_id": 2, "temperature": 0.7,
            "early_stopping": "never", "bad_words_ids": [[3], [4, 5]], "top_k": null,
            "exponential_decay_length_penalty": [10, 1.5], "do_sample": true,
            "num_beam_groups": 2, "diversity_penalty": 0.5, "prompt_lookup_num_tokens": 8,
            "max_matching_ngram_size": 3, "sequence_bias": [[[4, 5], -1.5], [[6], 2]],
        }))
        .unwrap();
        assert_eq!(config.eos_token_id, [1, 2]);
        assert_eq!(config.forced_eos_token_id, [2]);
        assert_eq!(config.early_stopping, Some(EarlyStopping::Never));
        assert_eq!(config.bad_words_ids, [vec![3], vec![4, 5]]);
        assert_eq!(config.exponential_decay_length_penalty, Some((10, 1.5)));
        assert_eq!(config.top_k, None);
        assert_eq!((config.num_beam_groups, config.diversity_penalty), (Some(2), Some(0.5)));
        assert_eq!(config.prompt_lookup_num_tokens, Some(8));
        assert_eq!(config.max_matching_ngram_size, Some(3));
        assert_eq!(config.sequence_bias, [(vec![4, 5], -1.5), (vec![6], 2.0)]);
    }

    #[test]
    fn impossible_values_name_their_key() {
        let check = |value: Value, expect: &str| {
            let message = read(value).unwrap_err().to_string();
            assert_eq!(message, format!("generation_config.json: {expect}"));
        };
        check(json!({"temperature": "abc"}), "temperature = \"abc\": expected a number, 0 or more");
        check(json!({"top_p": 1.5}), "top_p = 1.5: expected a number from 0 to 1");
        check(json!({"bos_token_id": -1}), &format!("bos_token_id = -1: expected {TOKEN}"));
        check(
            json!({"pad_token_id": 5e9}),
            &format!("pad_token_id = 5000000000.0: expected {TOKEN}"),
        );
        check(
            json!({"eos_token_id": [1, "x"]}),
            &format!("eos_token_id = [1,\"x\"]: expected {TOKEN}, or a list of them"),
        );
        check(
            json!({"sequence_bias": [[[], 1.0]]}),
            "sequence_bias = [[[],1.0]]: expected a list of pairs of a list of token ids and a number",
        );
        check(json!({"num_beams": 0}), "num_beams = 0: expected a whole number, 1 or more");
        check(
            json!({"bad_words_ids": [[]]}),
            "bad_words_ids = [[]]: expected a list of non-empty lists of token ids",
        );
        check(
            json!({"early_stopping": 3}),
            "early_stopping = 3: expected true, false or \"never\"",
        );
    }

    #[test]
    fn without_a_file_config_json_and_the_family_speak() {
        let bart = from_config(json!({"model_type": "bart", "num_beams": 4, "bos_token_id": 7}));
        assert_eq!(bart.bos_token_id, Some(7));
        assert_eq!(bart.num_beams, Some(4));
        assert_eq!(bart.forced_eos_token_id, [2]);
        assert_eq!(bart.decoder_start_token_id, Some(2));
        let quiet = from_config(json!({"model_type": "bart", "forced_eos_token_id": null}));
        assert!(quiet.forced_eos_token_id.is_empty());
        let nested = from_config(
            json!({"model_type": "x", "text_config": {"eos_token_id": 9, "bos_token_id": 1}, "bos_token_id": 3}),
        );
        assert_eq!((nested.eos_token_id, nested.bos_token_id), (vec![9], Some(3)));
    }
}
