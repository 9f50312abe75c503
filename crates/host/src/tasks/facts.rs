//! What a model's files say of its task: labels, languages, and how its inputs are laid out.

use std::sync::Arc;

use drivetrain_artifacts::{ArtifactError, JsonFile, ModelDir};
use serde_json::{Map, Value};

use super::sentences::SentenceModules;
use crate::HostError;

/// Largest of the small JSON files, in bytes.
pub(super) const MAX_JSON_BYTES: u64 = 16 << 20;

/// What a model's files say of its task.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// The class that saved the weights, for messages.
    pub(super) class: Option<String>,
    /// Names of labels by number; those that the file does not name are `LABEL_n`.
    labels: Vec<(u32, String)>,
    /// The label that says that one text follows from the other (`label2id`).
    pub(super) entailment: Option<u32>,
    /// What turns logits into scores where nothing else is said.
    pub(super) problem: Problem,
    /// Whether all labels are told where nothing else is said: `return_all_scores`.
    pub(super) returns_all_scores: Option<bool>,
    /// Token types that the model knows; 0 if it is told none.
    pub(super) n_token_types: u32,
    /// Whether questions come before their contexts.
    pub(super) question_first: bool,
    /// The tokens that end a text.
    pub(super) eos: Vec<u32>,
    /// The token that fills a batch.
    pub(super) pad: Option<u32>,
    /// What the task puts before each text: `task_specific_params`.
    pub(super) prefix: String,
    /// sentence-transformers' modules, where there are any.
    pub(super) sentences: Option<Arc<SentenceModules>>,
}

/// `problem_type` of the config.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Problem {
    /// Nothing is said: the number of labels decides.
    #[default]
    Unsaid,
    /// Scores are the logits.
    Regression,
    /// One label counts.
    SingleLabel,
    /// Each label counts by itself.
    MultiLabel,
}

impl Facts {
    /// Reads them for a model that is to do `task`, if that is said.
    ///
    /// # Errors
    /// A file is broken, or a value in it is impossible.
    pub(super) fn read(
        files: &ModelDir,
        config: Option<&JsonFile>,
        task: Option<&str>,
    ) -> Result<Self, HostError> {
        let tokenizer = optional(files, "tokenizer_config.json")?;
        let mut facts = Self { question_first: true, ..Self::default() };
        if let Some(tokenizer) = &tokenizer {
            let class = tokenizer.opt_str("tokenizer_class")?.unwrap_or_default();
            let side = tokenizer.opt_str("padding_side")?;
            facts.question_first = match side {
                Some(side) => side != "left",
                None => !(class.starts_with("Llama") || class.starts_with("Gemma")),
            };
        }
        if let Some(config) = config {
            facts.read_config(config, task)?;
        }
        let inputs = tokenizer.as_ref().map(|t| t.opt_strings("model_input_names")).transpose()?;
        if inputs.flatten().is_some_and(|names| !names.iter().any(|n| n == "token_type_ids")) {
            facts.n_token_types = 0;
        }
        facts.sentences = SentenceModules::read(files)?.map(Arc::new);
        Ok(facts)
    }

    fn read_config(&mut self, config: &JsonFile, task: Option<&str>) -> Result<(), HostError> {
        self.class = config.opt_strings("architectures")?.unwrap_or_default().into_iter().next();
        self.labels = labels(config)?;
        self.entailment = match config.get("label2id")?.and_then(Value::as_object) {
            None => self.entailment_by_name(),
            Some(ids) => {
                let found = ids.iter().find(|(name, _)| is_entailment(name));
                found.and_then(|(_, id)| id.as_u64()).and_then(|id| u32::try_from(id).ok())
            }
        };
        self.problem = match config.opt_str("problem_type")? {
            None => Problem::Unsaid,
            Some("regression") => Problem::Regression,
            Some("single_label_classification") => Problem::SingleLabel,
            Some("multi_label_classification") => Problem::MultiLabel,
            Some(_) => {
                let wanted = "\"regression\", \"single_label_classification\" or \
                              \"multi_label_classification\"";
                return Err(config.invalid("problem_type", wanted).into());
            }
        };
        self.returns_all_scores = config.opt_bool("return_all_scores")?;
        let has_types = matches!(config.opt_str("model_type")?, Some("bert" | "electra"));
        let default_types = if has_types { 2 } else { 0 };
        self.n_token_types = config.opt_u32("type_vocab_size")?.unwrap_or(default_types);
        self.eos = config.opt_u32_list("eos_token_id")?.unwrap_or_default();
        self.pad = config.opt_u32("pad_token_id")?;
        self.prefix = config.opt_str("prefix")?.unwrap_or_default().to_owned();
        if let Some(own) = task_params(config, task)?
            && let Some(prefix) = own.get("prefix").and_then(Value::as_str)
        {
            prefix.clone_into(&mut self.prefix);
        }
        Ok(())
    }

    fn entailment_by_name(&self) -> Option<u32> {
        self.labels.iter().find(|(_, name)| is_entailment(name)).map(|(id, _)| *id)
    }

    /// The name of a label.
    pub(super) fn label(&self, idx: usize) -> String {
        let named = self.labels.iter().find(|(id, _)| *id as usize == idx);
        named.map_or_else(|| format!("LABEL_{idx}"), |(_, name)| name.clone())
    }

    /// The types of a text's tokens as the model knows them; empty when all are 0.
    pub(super) fn token_types(&self, types: Vec<u32>) -> Vec<u32> {
        let is_plain = types.iter().all(|kind| *kind == 0);
        let is_known = types.iter().all(|kind| *kind < self.n_token_types);
        if is_plain || !is_known { Vec::new() } else { types }
    }
}

/// What `task_specific_params` of the config says of a task.
pub(super) fn task_params<'a>(
    config: &'a JsonFile,
    task: Option<&str>,
) -> Result<Option<&'a Map<String, Value>>, ArtifactError> {
    let Some(task) = task else { return Ok(None) };
    let Some(all) = config.get("task_specific_params")? else { return Ok(None) };
    let wanted = "an object of tasks and their parameters";
    let all = all.as_object().ok_or_else(|| config.invalid("task_specific_params", wanted))?;
    Ok(all.get(task.trim()).and_then(Value::as_object))
}

fn is_entailment(name: &str) -> bool {
    name.to_lowercase().starts_with("entail")
}

fn labels(config: &JsonFile) -> Result<Vec<(u32, String)>, ArtifactError> {
    let wanted = "an object of label names by number";
    let Some(value) = config.get("id2label")? else { return Ok(Vec::new()) };
    let object = value.as_object().ok_or_else(|| config.invalid("id2label", wanted))?;
    let each = object.iter().map(|(id, name)| {
        let name = match name {
            Value::String(name) => name.clone(),
            other => other.to_string(),
        };
        Some((id.parse().ok()?, name))
    });
    let mut labels: Vec<(u32, String)> =
        each.collect::<Option<_>>().ok_or_else(|| config.invalid("id2label", wanted))?;
    labels.sort_by_key(|(id, _)| *id);
    Ok(labels)
}

/// A JSON file of a model's, if it is there.
pub(super) fn optional(files: &ModelDir, name: &str) -> Result<Option<JsonFile>, ArtifactError> {
    files.file(name)?.map(|path| JsonFile::read(&path, MAX_JSON_BYTES)).transpose()
}
