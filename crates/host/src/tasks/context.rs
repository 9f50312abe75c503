//! A loaded model's task: what turns requests into work and outcomes into replies.

use std::sync::Arc;

use drivetrain_artifacts::EarlyStopping as Stopping;
use drivetrain_artifacts::{DecodeSpecial, JsonFile, SpecialTokens};
use drivetrain_engine::{EngineError, HeadKind, ModelKind, TokenModelInfo};
use serde_json::Value;

use super::facts::Facts;
use super::text::{self, Encoded, ModelText, Text};
use super::{Generated, Task, TaskReply, TaskRequest};
use super::{
    conversational, feature_extraction, fill_mask, question_answering, rerank, sentence_embedding,
    text_classification, text_generation, text2text_generation, token_classification, translation,
    zero_shot_classification,
};
use crate::HostError;
use crate::constraint::Grammars;
use crate::generate::{ChatRenderer, Naming};
use crate::logits::{Defaults, EarlyStopping, Params};
use crate::scheduler::{Choice, Limits, Outcome, Work};

/// Most tokens of one request's inputs, all together: a body of few bytes may hold many inputs.
const MAX_TOKENS: usize = 1 << 20;

/// Most values of one request's features, all together: 256 MiB, and several times that as text.
const MAX_VALUES: usize = 64 << 20;

/// What messages call the parameters of `tokenize_kwargs`.
pub(super) const INNER: Naming = Naming { prefix: "parameters.tokenize_kwargs.", renamed: &[] };

/// A loaded model's task, with all that its requests need.
pub(crate) struct TaskContext {
    pub(super) model: String,
    task: Task,
    pub(super) text: Box<dyn Text>,
    pub(super) chat: ChatRenderer,
    pub(super) grammars: Grammars,
    limits: Limits,
    pub(super) defaults: Defaults,
    /// What the model's class puts before a decoder's input that it makes itself.
    pub(super) shift_start: Option<u32>,
    /// What the model's files say of its task.
    pub(super) facts: Arc<Facts>,
    /// The languages that the task's name says: `translation_en_to_de`.
    pub(super) pair: Option<(String, String)>,
}

/// Makes the reply of a request's outcomes.
type Finish = Box<dyn FnOnce(&TaskContext, Vec<Outcome>) -> Result<TaskReply, HostError> + Send>;

/// What a request's outcomes need to become its reply.
pub(crate) enum Prepared {
    /// Each outcome is an input's text or features.
    Texts(Texts),
    /// The task knows itself what becomes of them.
    Own(Finish),
}

impl Prepared {
    /// A task that makes its reply of the outcomes alone.
    pub(super) fn finished_by(
        finish: impl FnOnce(Vec<Outcome>) -> Result<TaskReply, HostError> + Send + 'static,
    ) -> Self {
        Self::Own(Box::new(move |_, outcomes| finish(outcomes)))
    }

    /// A task that needs the model's tokenizer, too.
    pub(super) fn finished_with(
        finish: impl FnOnce(&TaskContext, Vec<Outcome>) -> Result<TaskReply, HostError> + Send + 'static,
    ) -> Self {
        Self::Own(Box::new(finish))
    }
}

/// What outcomes that are one an input need to become a reply.
pub(crate) struct Texts {
    pub(super) items: Vec<Item>,
    /// Whether replies keep special tokens.
    pub(super) special: DecodeSpecial,
    /// Whether `text-generation` puts the prompt before the new text.
    pub(super) is_full_text: bool,
}

/// What one outcome needs.
pub(crate) struct Item {
    pub(super) n_prompt_tokens: usize,
    /// The prompt, where the reply repeats it.
    pub(super) prompt: Option<Prompt>,
}

/// A prompt as text and as ids.
pub(crate) struct Prompt {
    pub(super) text: String,
    pub(super) ids: Vec<u32>,
}

impl TaskContext {
    /// The task of a model: `wanted`, or what its architecture says.
    ///
    /// # Errors
    /// No such task, none that follows from the model, one that the model can't do; a tokenizer
    /// that does not belong to the model; or files with impossible values.
    pub(crate) fn new(
        model: &str,
        wanted: Option<&str>,
        text: ModelText,
        limits: Limits,
    ) -> Result<Self, HostError> {
        let info = &limits.info;
        let n_ids = text.text.n_ids();
        if n_ids > info.vocab {
            return Err(HostError::TokenizerMismatch { dir: text.dir, n_ids, n_rows: info.vocab });
        }
        let task = choose(wanted, &text)?;
        check_kind(model, task, info, &text.facts)?;
        check_tokens(task, &text, info)?;
        let json = text.config.as_ref().map(|config| &config.json);
        let configured = json.map(|json: &JsonFile| json.opt_u32("decoder_start_token_id"));
        let shift_start =
            configured.transpose()?.flatten().or(text.generation.decoder_start_token_id);
        let mut defaults = defaults(&text, info);
        let policy = limits.policy;
        defaults.n_lookup = defaults.n_lookup.or_else(|| u32::try_from(policy.n_lookup).ok());
        defaults.lookup_ngram =
            defaults.lookup_ngram.or_else(|| u32::try_from(policy.lookup_ngram).ok());
        Ok(Self {
            model: model.to_owned(),
            task,
            text: text.text,
            chat: text.chat,
            grammars: text.grammars,
            limits,
            defaults,
            shift_start,
            facts: Arc::new(text.facts),
            pair: wanted.and_then(languages),
        })
    }

    pub(crate) fn task(&self) -> Task {
        self.task
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Turns a request into work the model can do.
    ///
    /// # Errors
    /// `BadRequest` that names the input or the parameter, or what the tokenizer says.
    pub(crate) fn prepare(
        &self,
        request: &TaskRequest,
    ) -> Result<(Vec<Work>, Prepared), HostError> {
        if request.inputs.is_empty() {
            return Err(HostError::bad_request("inputs is empty: give at least one text"));
        }
        let params = Params::new(&request.parameters, Naming::default());
        params.log_unknown(&request.id);
        let (works, prepared) = match self.task {
            Task::FeatureExtraction => feature_extraction::prepare(self, request, params)?,
            Task::SentenceEmbedding => sentence_embedding::prepare(self, request, params)?,
            Task::TextClassification => text_classification::prepare(self, request, params)?,
            Task::TokenClassification => token_classification::prepare(self, request, params)?,
            Task::QuestionAnswering => question_answering::prepare(self, request, params)?,
            Task::FillMask => fill_mask::prepare(self, request, params)?,
            Task::ZeroShotClassification => {
                zero_shot_classification::prepare(self, request, params)?
            }
            Task::Rerank => rerank::prepare(self, request, params)?,
            Task::Text2TextGeneration | Task::Summarization => {
                text2text_generation::prepare(self, request, params)?
            }
            Task::Translation => translation::prepare(self, request, params)?,
            Task::TextGeneration => text_generation::prepare(self, request, params)?,
            Task::Conversational => conversational::prepare(self, request, params)?,
        };
        works.iter().try_for_each(|work| self.limits.check(work))?;
        Ok((works, prepared))
    }

    /// The model's name.
    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    /// Turns outcomes, one an input in order, into the reply.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub(crate) fn reply(
        &self,
        prepared: Prepared,
        outcomes: Vec<Outcome>,
    ) -> Result<TaskReply, HostError> {
        let prepared = match prepared {
            Prepared::Own(finish) => return finish(self, outcomes),
            Prepared::Texts(texts) => texts,
        };
        if outcomes.len() != prepared.items.len() {
            let message =
                format!("{} outcomes for {} inputs", outcomes.len(), prepared.items.len());
            return Err(EngineError::internal(message).into());
        }
        match self.task {
            Task::FeatureExtraction => feature_extraction::reply(self.limits.info.dim, outcomes),
            Task::TextGeneration => text_generation::reply(self, &prepared, outcomes),
            task => text2text_generation::reply(task, self, &prepared, outcomes),
        }
    }

    /// The text of `ids`, as the request wants it.
    pub(super) fn decode(&self, prepared: &Texts, ids: &[u32]) -> Result<String, HostError> {
        self.text.decode(ids, prepared.special)
    }

    /// The choices of input `idx` as text.
    pub(super) fn generated(
        &self,
        prepared: &Texts,
        (idx, item): (usize, &Item),
        outcome: Outcome,
    ) -> Result<Vec<Generated>, HostError> {
        let Outcome::Generated(choices) = outcome else {
            return Err(EngineError::internal("a generation ended in hidden states").into());
        };
        let texts = choices.into_iter().map(|Choice { ids, finish, .. }| {
            Ok(Generated {
                input: idx,
                text: self.decode(prepared, &ids)?,
                full_text: None,
                finish,
                n_prompt_tokens: item.n_prompt_tokens,
                n_tokens: ids.len(),
                ids,
            })
        });
        texts.collect()
    }

    /// The tokens of input `idx`, no more than `limit`: cut if the request says `truncation`, to
    /// `cut_limit` where that is less, as the tokenizer's own length is.
    pub(super) fn encode(
        &self,
        idx: usize,
        text: &str,
        how: &Encoding,
    ) -> Result<Encoded, HostError> {
        self.encode_with(idx, text, how, &|text| self.text.encode(text, how.special))
    }

    /// The same, with the text made tokens by `encode`.
    pub(super) fn encode_with(
        &self,
        idx: usize,
        text: &str,
        how: &Encoding,
        encode: &dyn Fn(&str) -> Result<Encoded, HostError>,
    ) -> Result<Encoded, HostError> {
        let text = self.bounded_to(&format!("inputs[{idx}]"), text, how.limit, how.truncates)?;
        let mut encoded = encode(text)?;
        let found = encoded.ids.len();
        if how.truncates {
            if !encoded.cut(how.cut_limit.min(how.limit)) {
                return Err(HostError::bad_request(format!(
                    "inputs[{idx}]: {} tokens leave no room for the text beside the special ones",
                    how.cut_limit.min(how.limit)
                )));
            }
        } else if found > how.limit {
            return Err(HostError::bad_request(format!(
                "inputs[{idx}] has {found} tokens and model {} takes {}: shorten it, or set \
                 parameters.truncation to true",
                self.model, how.limit
            )));
        }
        Ok(encoded)
    }
}

impl TaskContext {
    /// `text`, called `place`, if tokenising it is worth the memory; cut to what is if it `truncates`.
    ///
    /// # Errors
    /// `BadRequest` for a text that is not to be cut and has far more bytes than `n_tokens` take.
    pub(super) fn bounded_to<'a>(
        &self,
        place: &str,
        text: &'a str,
        n_tokens: usize,
        truncates: bool,
    ) -> Result<&'a str, HostError> {
        text::bounded(text, n_tokens, truncates).map_err(|n_bytes| {
            HostError::bad_request(format!(
                "{place} has {} bytes and model {} takes {n_tokens} tokens, for which {n_bytes} \
                 bytes are more than enough: shorten it, or set parameters.truncation to true",
                text.len(),
                self.model
            ))
        })
    }

    /// [`Self::bounded_to`] for a text that is cut anyway.
    pub(super) fn bounded<'a>(
        &self,
        place: &str,
        text: &'a str,
        n_tokens: usize,
    ) -> Result<&'a str, HostError> {
        self.bounded_to(place, text, n_tokens, true)
    }
}

/// The languages that a task's name says.
fn languages(task: &str) -> Option<(String, String)> {
    let parts: Vec<&str> = task.trim().split('_').collect();
    match parts.as_slice() {
        ["translation", from, "to", to] => Some(((*from).to_owned(), (*to).to_owned())),
        _ => None,
    }
}

/// What one request's inputs may still take.
#[derive(Debug)]
pub(super) struct Budget {
    n_tokens: usize,
    /// Values that each token leaves in the reply.
    n_values_each: usize,
}

impl Budget {
    /// For a reply of `n_values_each` numbers a token; 0 for a reply of text.
    pub(super) fn new(n_values_each: u32) -> Self {
        Self { n_tokens: 0, n_values_each: n_values_each as usize }
    }

    /// Takes the tokens of input `idx`.
    ///
    /// # Errors
    /// `BadRequest` if they are too many, with those before.
    pub(super) fn take(&mut self, idx: usize, n_tokens: usize) -> Result<(), HostError> {
        self.n_tokens = self.n_tokens.saturating_add(n_tokens);
        let n_values = self.n_tokens.saturating_mul(self.n_values_each);
        if self.n_tokens <= MAX_TOKENS && n_values <= MAX_VALUES {
            return Ok(());
        }
        let (found, wanted) = if self.n_tokens > MAX_TOKENS {
            (format!("{} tokens", self.n_tokens), format!("{MAX_TOKENS} tokens"))
        } else {
            let each = self.n_values_each;
            let found = format!("{} tokens of {each} values, {n_values} in all", self.n_tokens);
            (found, format!("{MAX_VALUES} values"))
        };
        Err(HostError::bad_request(format!(
            "the inputs up to inputs[{idx}] make {found}, and one request may make {wanted}: send \
             fewer inputs in one request"
        )))
    }
}

/// How inputs become tokens.
#[derive(Clone, Debug)]
pub(super) struct Encoding {
    /// The model's own limit.
    pub(super) limit: usize,
    /// What texts are cut to, where they are.
    pub(super) cut_limit: usize,
    pub(super) truncates: bool,
    pub(super) special: SpecialTokens,
}

impl Encoding {
    /// Reads `truncation` and `add_special_tokens`, here or in `tokenize_kwargs`.
    pub(super) fn read(
        context: &TaskContext,
        params: Params<'_>,
        limit: usize,
    ) -> Result<Self, HostError> {
        let inner = match params.get("tokenize_kwargs") {
            None => None,
            Some(Value::Object(map)) => Some(Params::new(map, INNER)),
            Some(value) => {
                return Err(HostError::bad_request(format!(
                    "parameters.tokenize_kwargs={value}: expected an object"
                )));
            }
        };
        let either = |read: &dyn Fn(Params<'_>) -> Result<Option<bool>, HostError>| {
            let own = read(params)?;
            let inner = inner.map(read).transpose()?.flatten();
            Ok::<_, HostError>(own.or(inner))
        };
        let own_limit = inner.map(|p| p.whole("max_length", 1)).transpose()?.flatten();
        let known = own_limit.map(|n| n as usize).or_else(|| context.text.max_length());
        Ok(Self {
            limit,
            cut_limit: known.unwrap_or(limit),
            truncates: either(&truncation)?.unwrap_or(false),
            special: match either(&|p| p.flag("add_special_tokens"))? {
                Some(false) => SpecialTokens::None,
                _ => SpecialTokens::Add,
            },
        })
    }
}

/// Whether the reply keeps special tokens: `skip_special_tokens`.
pub(super) fn decode_special(params: Params<'_>) -> Result<DecodeSpecial, HostError> {
    Ok(match params.flag("skip_special_tokens")? {
        Some(false) => DecodeSpecial::Keep,
        _ => DecodeSpecial::Skip,
    })
}

/// `truncation`: a truth value, or one of the tokenizer's strategies.
pub(super) fn truncation(params: Params<'_>) -> Result<Option<bool>, HostError> {
    match params.get("truncation") {
        None => Ok(None),
        Some(Value::Bool(truncates)) => Ok(Some(*truncates)),
        Some(Value::String(name)) if matches!(name.as_str(), "longest_first" | "only_first") => {
            Ok(Some(true))
        }
        Some(Value::String(name)) if name == "do_not_truncate" => Ok(Some(false)),
        Some(value) => Err(HostError::bad_request(format!(
            "parameters.truncation={value}: expected true, false, \"longest_first\", \
             \"only_first\" or \"do_not_truncate\""
        ))),
    }
}

/// The task of a model, from the setting or from its class.
fn choose(wanted: Option<&str>, text: &ModelText) -> Result<Task, HostError> {
    if let Some(wanted) = wanted {
        return wanted.parse().map_err(HostError::UnknownTask);
    }
    let architectures = text.config.as_ref().map_or(&[][..], |config| &config.architectures);
    usual(&text.facts, architectures).ok_or_else(|| HostError::NoTask {
        file: text.config_path(),
        architectures: architectures.to_vec(),
        allowed: super::task_names(),
    })
}

/// The task of a model for which none is set.
pub(super) fn usual(facts: &Facts, architectures: &[String]) -> Option<Task> {
    match facts.sentences {
        Some(_) => Some(Task::SentenceEmbedding),
        None => Task::of_architectures(architectures),
    }
}

/// What a task needs of a model, in words, and whether one with a `head` and hidden states of size
/// `dim` has it.
pub(super) fn needs(task: Task, kind: ModelKind, head: HeadKind, dim: u32) -> (&'static str, bool) {
    let has_language_model = head == HeadKind::LanguageModel;
    let is_decoder = kind == ModelKind::Decoder && has_language_model;
    let is_answering = kind == ModelKind::EncoderDecoder && has_language_model;
    match task {
        Task::FeatureExtraction => ("a model with hidden states", dim > 0),
        Task::SentenceEmbedding => (
            "an encoder-only or decoder-only model with hidden states",
            dim > 0 && kind != ModelKind::EncoderDecoder,
        ),
        Task::TextClassification | Task::ZeroShotClassification | Task::Rerank => (
            "a head for sequence classification (a class ForSequenceClassification)",
            head == HeadKind::SequenceClassification,
        ),
        Task::TokenClassification => (
            "a head for token classification (a class ForTokenClassification)",
            head == HeadKind::TokenClassification,
        ),
        Task::QuestionAnswering => (
            "a head for question answering (a class ForQuestionAnswering)",
            head == HeadKind::QuestionAnswering,
        ),
        Task::FillMask => (
            "a head for masked tokens (a class ForMaskedLM)",
            head == HeadKind::MaskedLanguageModel,
        ),
        Task::TextGeneration => ("a decoder-only model with a language-model head", is_decoder),
        Task::Conversational => ("a model with a language-model head", is_decoder || is_answering),
        Task::Text2TextGeneration | Task::Summarization | Task::Translation => {
            ("an encoder-decoder model with a language-model head", is_answering)
        }
    }
}

/// Whether a model of this shape can do the task.
fn check_kind(
    model: &str,
    task: Task,
    info: &TokenModelInfo,
    facts: &Facts,
) -> Result<(), HostError> {
    let (needs_words, has) = needs(task, info.kind, info.head, info.dim);
    if has {
        return Ok(());
    }
    let kind = match info.kind {
        ModelKind::Encoder => "an encoder-only one",
        ModelKind::Decoder => "a decoder-only one",
        ModelKind::EncoderDecoder => "an encoder-decoder one",
    };
    let head = match info.head {
        HeadKind::None => "without a head",
        HeadKind::LanguageModel => "with a language-model head",
        HeadKind::MaskedLanguageModel => "with a head for masked tokens",
        HeadKind::SequenceClassification => "with a head for sequence classification",
        HeadKind::TokenClassification => "with a head for token classification",
        HeadKind::QuestionAnswering => "with a head for question answering",
    };
    let class = facts.class.as_deref().map(|class| format!(" ({class})")).unwrap_or_default();
    let allowed = Task::ALL.into_iter().filter(|task| needs_of(*task, info)).map(Task::name);
    Err(HostError::TaskModel {
        model: model.to_owned(),
        task: task.name().to_owned(),
        needs: needs_words,
        is: format!("{kind} {head}{class}"),
        allowed: allowed.collect::<Vec<_>>().join(", "),
    })
}

fn needs_of(task: Task, info: &TokenModelInfo) -> bool {
    needs(task, info.kind, info.head, info.dim).1
}

/// Whether the tokens that generation puts in by itself are the model's.
fn check_tokens(task: Task, text: &ModelText, info: &TokenModelInfo) -> Result<(), HostError> {
    let generation = &text.generation;
    let forced_eos = generation.forced_eos_token_id.iter().copied().max();
    let tokens = [
        ("decoder_start_token_id", generation.decoder_start_token_id, info.vocab),
        ("forced_bos_token_id", generation.forced_bos_token_id, info.n_logits),
        ("forced_eos_token_id", forced_eos, info.n_logits),
    ];
    for (key, id, n_ids) in tokens {
        if let Some(id) = id.filter(|id| *id >= n_ids && task.generates()) {
            return Err(HostError::TokenOutOfRange { dir: text.dir.clone(), key, id, n_ids });
        }
    }
    Ok(())
}

/// What the model's files say of generation.
fn defaults(text: &ModelText, info: &TokenModelInfo) -> Defaults {
    let generation = &text.generation;
    Defaults {
        bos_token_id: generation.bos_token_id,
        eos_token_id: generation.eos_token_id.clone().into(),
        decoder_start_token_id: generation.decoder_start_token_id,
        forced_bos_token_id: generation.forced_bos_token_id,
        forced_eos_token_id: generation.forced_eos_token_id.clone().into(),
        max_length: generation.max_length,
        max_new_tokens: generation.max_new_tokens,
        min_length: generation.min_length,
        min_new_tokens: generation.min_new_tokens,
        do_sample: generation.do_sample,
        temperature: generation.temperature,
        top_k: generation.top_k,
        top_p: generation.top_p,
        min_p: generation.min_p,
        typical_p: generation.typical_p,
        epsilon_cutoff: generation.epsilon_cutoff,
        eta_cutoff: generation.eta_cutoff,
        num_beams: generation.num_beams,
        num_beam_groups: generation.num_beam_groups,
        num_return_sequences: generation.num_return_sequences,
        diversity_penalty: generation.diversity_penalty,
        length_penalty: generation.length_penalty,
        early_stopping: match generation.early_stopping {
            None | Some(Stopping::Heuristic) => EarlyStopping::Heuristic,
            Some(Stopping::Immediate) => EarlyStopping::Immediate,
            Some(Stopping::Never) => EarlyStopping::Never,
        },
        repetition_penalty: generation.repetition_penalty,
        encoder_repetition_penalty: generation.encoder_repetition_penalty,
        no_repeat_ngram_size: generation.no_repeat_ngram_size,
        encoder_no_repeat_ngram_size: generation.encoder_no_repeat_ngram_size,
        bad_words_ids: generation.bad_words_ids.clone().into(),
        sequence_bias: generation.sequence_bias.clone().into(),
        suppress_tokens: generation.suppress_tokens.clone().into(),
        begin_suppress_tokens: generation.begin_suppress_tokens.clone().into(),
        exponential_decay_length_penalty: generation.exponential_decay_length_penalty,
        remove_invalid_values: generation.remove_invalid_values,
        n_lookup: generation.prompt_lookup_num_tokens,
        lookup_ngram: generation.max_matching_ngram_size,
        is_encoder_decoder: info.kind == ModelKind::EncoderDecoder,
        n_logits: info.n_logits,
        max_positions: info.max_positions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_an_end() {
        let check = |n_values_each: u32, n_inputs: usize, expect: Option<&str>| {
            let mut budget = Budget::new(n_values_each);
            let taken = (0..n_inputs).try_for_each(|idx| budget.take(idx, 512));
            let found = taken.err().map(|error| error.to_string());
            let is_same = match (&found, expect) {
                (Some(found), Some(part)) => {
                    found.contains(part) && found.contains("send fewer inputs")
                }
                (found, expect) => found.is_none() && expect.is_none(),
            };
            assert!(is_same, "{n_values_each} {n_inputs}: {found:?}");
        };
        check(0, 2048, None);
        check(0, 2049, Some("inputs[2048] make 1049088 tokens, and one request may make 1048576"));
        check(4096, 32, None);
        check(4096, 33, Some("inputs[32] make 16896 tokens of 4096 values, 69206016 in all"));
    }
}
