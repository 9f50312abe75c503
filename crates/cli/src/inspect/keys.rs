//! Which keys of a model's config were read, were left to their defaults, or mean nothing here.

use drivetrain_artifacts::{GenerationConfig, JsonFile, KeyRecord, ModelConfig, ModelDir};
use serde_json::Value;

use super::sheet::Sheet;

/// A model's config, once for each of those who read it, with what each asked for.
pub(super) struct Readings {
    /// For the description of the model.
    pub(super) description: ModelConfig,
    description_keys: KeyRecord,
    /// For the task and the tokenizer, whose keys are of no concern where they are absent.
    pub(super) text: ModelConfig,
    text_keys: KeyRecord,
}

/// Keys that say how a model was trained or saved, how a program in Python is to handle it, or again
/// what another key says.
const WITHOUT_EFFECT: [&str; 55] = [
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_from_model_config",
    "_name_or_path",
    "add_final_layer_norm",
    "attention_layers",
    "attn_implementation",
    "auto_map",
    "cache_implementation",
    "chunk_size_feed_forward",
    "classif_dropout",
    "dense_act_fn",
    "dropout_rate",
    "dtype",
    "ffn_pdrop",
    "finetuning_task",
    "gradient_checkpointing",
    "init_std",
    "initializer_factor",
    "initializer_range",
    "is_gated_act",
    "layerdrop",
    "masked_softmax_fusion",
    "n_ctx",
    "normalize_before",
    "normalize_embedding",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_router_logits",
    "output_scores",
    "pretraining_tp",
    "pruned_heads",
    "reorder_and_upcast_attn",
    "return_dict",
    "return_dict_in_generate",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "seq_length",
    "sinusoidal_pos_embds",
    "slow_but_exact",
    "static_position_embeddings",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "tf_legacy_loss",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "use_bfloat16",
    "use_cache",
];

/// Ends of such names.
const WITHOUT_EFFECT_ENDS: [&str; 6] =
    ["dropout", "_dropout_prob", "_dropout_rate", "_pdrop", "_drop", "layerdrop"];

/// Keys that mean something only with another value than this, or that the classes which do not
/// read them all write.
const NEUTRAL: [(&str, bool); 6] = [
    ("add_cross_attention", false),
    ("is_decoder", false),
    ("legacy", true),
    ("remove_invalid_values", false),
    ("tie_encoder_decoder", false),
    ("tie_word_embeddings", true),
];

impl Readings {
    pub(super) fn new(config: &ModelConfig) -> Self {
        let recorded = || {
            let (json, keys) = config.json.recording();
            // The common keys were read ahead of the record; what follows has them by heart.
            for key in ["architectures", "is_encoder_decoder", "model_type"] {
                json.contains(key);
            }
            (ModelConfig { json, ..config.clone() }, keys)
        };
        let (description, description_keys) = recorded();
        let (text, text_keys) = recorded();
        Self { description, description_keys, text, text_keys }
    }

    /// Adds the lists of keys, those of generation apart. Without a description the config's own
    /// are not told: nobody knows what they mean.
    pub(super) fn report(
        &self,
        sheet: &mut Sheet,
        dir: &ModelDir,
        config: &ModelConfig,
        is_described: bool,
    ) {
        let generation = match GenerationConfig::file(dir) {
            Ok(file) => file,
            Err(error) => return sheet.text("generation", super::chain(&error)),
        };
        let keys = KeyRecord::default();
        keys.absorb(&self.description_keys);
        keys.absorb(&self.text_keys);
        let (json, own_keys, parsed) = match &generation {
            Some(file) => {
                let (json, own_keys) = file.recording();
                let parsed = GenerationConfig::from_json(&json);
                (json, own_keys, parsed)
            }
            None => {
                let (json, own_keys) = config.json.recording();
                let config = ModelConfig { json: json.clone(), ..config.clone() };
                let parsed = GenerationConfig::read(dir, &config);
                keys.absorb(&own_keys);
                (json, own_keys, parsed)
            }
        };
        if is_described {
            let absent = self.description_keys.defaulted(&config.json);
            let (unread, idle) = split(keys.unread(&config.json), &config.json);
            // What the one file would say if the other were not there.
            let is_generation = |key: &String| generation.is_some() && own_keys.asked(key);
            let (replaced, unread) = unread.into_iter().partition::<Vec<_>, _>(is_generation);
            sheet.list("read", keys.read(&config.json));
            sheet.list("default", absent.clone());
            unread_list(sheet, "not read", unread, &absent);
            sheet.list("no effect", idle);
            if let Ok(Some(unread)) = ModelConfig::unread_metadata(dir) {
                sheet.list("gguf not read", unread);
            }
            if !replaced.is_empty() {
                sheet.list("superseded", replaced);
            }
        }
        match parsed {
            Ok(_) => sheet.text("generation", json.path().display()),
            Err(error) => sheet.text("generation", super::chain(&error)),
        }
        sheet.list("gen. read", own_keys.read(&json));
        let absent = own_keys.defaulted(&json);
        if generation.is_some() {
            let (unread, idle) = split(own_keys.unread(&json), &json);
            unread_list(sheet, "gen. not read", unread, &absent);
            sheet.list("gen. no use", idle);
        }
        sheet.list("gen. default", absent);
    }
}

/// Those that may matter, and those without effect.
fn split(unread: Vec<String>, json: &JsonFile) -> (Vec<String>, Vec<String>) {
    unread.into_iter().partition(|key| !is_without_effect(key, json.value().get(key)))
}

fn is_without_effect(key: &str, value: Option<&Value>) -> bool {
    let is_neutral = || {
        NEUTRAL.iter().any(|(name, neutral)| *name == key && value == Some(&Value::Bool(*neutral)))
    };
    value.is_some_and(Value::is_null)
        || WITHOUT_EFFECT.contains(&key)
        || WITHOUT_EFFECT_ENDS.iter().any(|end| key.ends_with(end))
        || is_neutral()
}

/// Each with the absent key that it may be a misspelling of.
fn unread_list(sheet: &mut Sheet, name: &'static str, unread: Vec<String>, absent: &[String]) {
    let said: Vec<String> = unread
        .iter()
        .map(|key| match nearest(key, absent) {
            Some(near) => format!("{key} (absent: {near})"),
            None => key.clone(),
        })
        .collect();
    sheet.list(name, said);
}

fn nearest<'a>(key: &str, absent: &'a [String]) -> Option<&'a str> {
    const LIKE: f64 = 0.92;
    let key: String = key.chars().take(80).collect();
    let spellings = absent.iter().flat_map(|names| names.split(" or "));
    let likeness = |name: &str| strsim::jaro_winkler(name, &key);
    let near = spellings.max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(near) >= LIKE).then_some(near)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_has_no_effect_is_told_from_what_may_have() {
        let check = |key: &str, value: Value, expect: bool| {
            assert_eq!(is_without_effect(key, Some(&value)), expect, "{key}");
        };
        check("transformers_version", json!("5.0"), true);
        check("attention_dropout", json!(0.1), true);
        check("hidden_dropout_prob", json!(0.1), true);
        check("is_decoder", json!(false), true);
        check("is_decoder", json!(true), false);
        check("rope_interleave", json!(null), true);
        check("rope_interleave", json!(true), false);
    }

    #[test]
    fn a_misspelt_key_finds_its_name() {
        let absent = ["hidden_size".to_owned(), "n_head or num_attention_heads".to_owned()];
        assert_eq!(nearest("hiden_size", &absent), Some("hidden_size"));
        assert_eq!(nearest("num_atention_heads", &absent), Some("num_attention_heads"));
        assert_eq!(nearest("moe_layer_freq", &absent), None);
    }
}
