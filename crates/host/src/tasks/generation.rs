//! From a request for generated text to work for the model.

use std::sync::Arc;

use drivetrain_artifacts::{DecodeSpecial, DecodeStream, SpecialTokens};
use drivetrain_engine::{AdapterId, HeadKind, ModelKind, TokenId};
use serde_json::Value;

use super::context::{Budget, TaskContext, decode_special};
use super::prompts::{Shared, check_prompts};
use super::text2text_generation;
use crate::HostError;
use crate::generate::{Answering, GenerateRequest, Naming, Plan, Prompt, PromptInfo};
use crate::logits::{GenerationParams, Params};
use crate::scheduler::{Generate, Goal, Search, Work};
use crate::text::StopWatch;

/// Most choices of one request, over all its prompts.
const MAX_CHOICES: usize = 4096;

/// Most bytes of all bad words.
const MAX_WORD_BYTES: usize = 64 << 10;

/// A request for generated text, ready for the model.
#[derive(Debug)]
pub(crate) struct PreparedGeneration {
    /// One for each prompt.
    pub(crate) works: Vec<Work>,
    /// One for each prompt.
    pub(crate) plans: Vec<Plan>,
    pub(crate) how: Answering,
}

impl TaskContext {
    /// Turns a request for generated text into work the model can do.
    ///
    /// # Errors
    /// `BadRequest` that names the prompt or the parameter, or what the tokenizer says.
    pub(crate) fn prepare_generation(
        &self,
        request: &GenerateRequest,
    ) -> Result<PreparedGeneration, HostError> {
        self.check_generates()?;
        check_prompts(&request.prompts)?;
        let params = Params::new(&request.parameters, request.naming);
        params.log_unknown(&request.id);
        let mut generation = GenerationParams::read(params, &self.defaults, request.is_streamed)?;
        generation.ban(bad_words(self, &generation, request.naming)?);
        let special = decode_special(params)?;
        let shared = self.shared(request, params)?;
        let extras = Extras::read(self, &generation, &shared, special)?;
        let is_answering = self.limits().info.kind == ModelKind::EncoderDecoder;
        let mut budget = Budget::new(0);
        let (mut works, mut plans) = (Vec::new(), Vec::new());
        for (idx, prompt) in request.prompts.iter().enumerate() {
            let PromptInfo { text, ids } = self.read_prompt(idx, prompt, &shared)?;
            budget.take(idx, ids.len())?;
            let (encoder, tokens) = if is_answering {
                (ids.clone(), vec![text2text_generation::start(self, params)?])
            } else {
                (Vec::new(), ids.clone())
            };
            let mut goal = generation.generate(tokens.len(), &ids)?;
            extras.add_to(&mut goal);
            let (n_choices, seed) = choices(&goal.search);
            plans.push(Plan { prompt: PromptInfo { text, ids }, n_choices, seed });
            let goal = Goal::Generate(Box::new(goal));
            works.push(Work {
                encoder,
                tokens,
                token_types: Vec::new(),
                goal,
                adapter: AdapterId::NONE,
            });
        }
        works.iter().try_for_each(|work| self.limits().check(work))?;
        let how = self.answering(request, &generation, &works, &extras)?;
        Ok(PreparedGeneration { works, plans, how })
    }

    fn check_generates(&self) -> Result<(), HostError> {
        let info = &self.limits().info;
        let model = self.model();
        if info.head != HeadKind::LanguageModel || info.kind == ModelKind::Encoder {
            return Err(HostError::bad_request(format!(
                "model {model} generates no text: it has no language-model head; it serves {}",
                self.task()
            )));
        }
        if !self.task().generates() {
            return Err(HostError::bad_request(format!(
                "model {model} serves {}: set option.task to text-generation or \
                 text2text-generation to generate text with it",
                self.task()
            )));
        }
        Ok(())
    }

    /// How the request wants to be answered.
    fn answering(
        &self,
        request: &GenerateRequest,
        generation: &GenerationParams,
        works: &[Work],
        extras: &Extras,
    ) -> Result<Answering, HostError> {
        let goals = works.iter().filter_map(|work| match &work.goal {
            Goal::Generate(goal) => Some(goal),
            Goal::Hidden(_) | Goal::Logits { .. } => None,
        });
        let n_choices = goals.clone().map(|goal| choices(&goal.search).0).max().unwrap_or(1);
        let has_beams = goals.clone().any(|goal| matches!(goal.search, Search::Beams(_)));
        let report = goals.clone().next().map(|goal| goal.report).unwrap_or_default();
        let naming = &request.naming;
        if n_choices.saturating_mul(works.len()) > MAX_CHOICES {
            return Err(HostError::bad_request(format!(
                "{} prompts of {n_choices} choices each: expected {MAX_CHOICES} choices at most",
                works.len()
            )));
        }
        if report.prompt.is_some() && self.limits().info.kind == ModelKind::EncoderDecoder {
            return Err(HostError::bad_request(format!(
                "{}: what an encoder reads has no log-probabilities; leave it out",
                naming.shown("prompt_logprobs")
            )));
        }
        let n_kept = generation.n_kept().min(n_choices);
        let comes_by_token = !has_beams && n_kept == n_choices;
        let params = Params::new(&request.parameters, request.naming);
        let wants_logprobs = report.logprobs || report.n_top > 0;
        Ok(Answering {
            special: extras.special,
            stops: Arc::clone(&extras.stops),
            keeps_stop: generation.keeps_stop(),
            stop_ids: Arc::clone(&extras.stop_ids),
            n_kept,
            comes_by_token,
            // Beams have no log-probabilities of their tokens, and tokens all the same.
            wants_tokens: wants_logprobs
                || params.flag("details")?.unwrap_or(false)
                || params.get("logprobs").is_some_and(|value| *value != Value::Bool(false)),
            wants_logprobs,
            wants_full_text: self.limits().info.kind == ModelKind::Decoder
                && params.flag("return_full_text")?.unwrap_or(false),
        })
    }

    /// Decodes one token after another.
    pub(crate) fn stream(&self, special: DecodeSpecial) -> DecodeStream {
        self.text.stream(special)
    }

    /// The text of `ids`.
    pub(crate) fn decode_ids(
        &self,
        ids: &[TokenId],
        special: DecodeSpecial,
    ) -> Result<String, HostError> {
        self.text.decode(ids, special)
    }

    /// What the text of all tokens has beyond that of the prompt's: a tokenizer may write the first
    /// new token otherwise when nothing stands before it.
    pub(crate) fn continuation(
        &self,
        prompt: &[TokenId],
        ids: &[TokenId],
        special: DecodeSpecial,
    ) -> Result<String, HostError> {
        let n_known = self.text.decode(prompt, special)?.chars().count();
        let all = self.text.decode(&[prompt, ids].concat(), special)?;
        let start = all.char_indices().nth(n_known).map_or(all.len(), |(idx, _)| idx);
        Ok(all.get(start..).unwrap_or_default().to_owned())
    }

    /// The bytes of a token alone.
    pub(crate) fn token_bytes(&self, id: TokenId) -> Vec<u8> {
        self.text.token_bytes(id)
    }

    /// Whether a token is a special one.
    pub(crate) fn is_special(&self, id: TokenId) -> bool {
        self.text.is_special(id)
    }

    /// Whether a token is one of those that the model's files say end a text.
    pub(crate) fn is_end_token(&self, id: TokenId) -> bool {
        self.defaults.eos_token_id.contains(&id)
    }
}

/// What each prompt's generation is given beside its parameters: all that needs the tokenizer.
struct Extras {
    special: DecodeSpecial,
    stops: Arc<[String]>,
    stop_ids: Arc<[TokenId]>,
    watch: Option<StopWatch>,
    constraint: Option<crate::constraint::Constraint>,
    n_kept: usize,
}

impl Extras {
    fn read(
        context: &TaskContext,
        generation: &GenerationParams,
        shared: &Shared<'_>,
        special: DecodeSpecial,
    ) -> Result<Self, HostError> {
        let stops = generation.stop_strings();
        let watch = (!stops.is_empty())
            .then(|| StopWatch::new(Arc::clone(&stops), context.text.stream(special)));
        let constraint = generation
            .grammar()
            .map(|(grammar, field)| context.grammars.constraint(grammar, field))
            .transpose()?;
        let n_logits = context.limits().info.n_logits;
        let stop_ids = shared.params.ids("stop_token_ids", n_logits)?.unwrap_or_default();
        Ok(Self {
            special,
            stops,
            stop_ids: stop_ids.into(),
            watch,
            constraint,
            n_kept: generation.n_kept(),
        })
    }

    fn add_to(&self, goal: &mut Generate) {
        goal.stops.clone_from(&self.watch);
        goal.constraint.clone_from(&self.constraint);
        // Where not all choices are given, they are compared by their log-probabilities.
        goal.report.logprobs |= self.n_kept < choices(&goal.search).0;
    }
}

/// The tokens of `bad_words`: of each as it stands at the start of a text and, if only its first
/// token differs there, as it stands behind a space: what vLLM's `sampling_params.py` does.
fn bad_words(
    context: &TaskContext,
    generation: &GenerationParams,
    naming: Naming,
) -> Result<Vec<Vec<TokenId>>, HostError> {
    let words = generation.bad_word_strings();
    let n_bytes: usize = words.iter().map(String::len).sum();
    if n_bytes > MAX_WORD_BYTES {
        return Err(HostError::bad_request(format!(
            "{}: {n_bytes} bytes in all: expected {MAX_WORD_BYTES} at most",
            naming.shown("bad_words")
        )));
    }
    let n_logits = context.limits().info.n_logits;
    let mut all = Vec::new();
    for word in words.iter().map(|word| word.trim_start()).filter(|word| !word.is_empty()) {
        let alone = context.text.encode(word, SpecialTokens::None)?.ids;
        let inside = context.text.encode(&format!(" {word}"), SpecialTokens::None)?.ids;
        let differs = inside.len() == alone.len() && inside.first() != alone.first();
        let each = std::iter::once(alone).chain(differs.then_some(inside));
        all.extend(each.filter(|ids| !ids.is_empty() && ids.iter().all(|id| *id < n_logits)));
    }
    Ok(all)
}

/// The choices that a search makes, and what its draws follow from.
fn choices(search: &Search) -> (usize, Option<u64>) {
    match search {
        Search::Greedy => (1, None),
        Search::Sample { seed, n, .. } => (*n, Some(*seed)),
        Search::Beams(beams) => (beams.n_return, beams.sampling.is_some().then_some(beams.seed)),
    }
}

/// Whether preparing a request is the work of a moment. A conversation goes through a template, and
/// a parameter of more than one value may be a grammar.
pub(crate) fn is_quick(request: &GenerateRequest, n_bytes: usize) -> bool {
    let size = |prompt: &Prompt| match prompt {
        Prompt::Text(text) => text.len(),
        Prompt::Tokens(ids) => ids.len().saturating_mul(4),
        Prompt::Chat(_) => usize::MAX,
    };
    let is_plain = |value: &Value| {
        matches!(value, Value::Null | Value::Bool(_) | Value::Number(_))
            || value.as_str().is_some_and(|text| text.len() <= 16)
    };
    let n_prompt_bytes =
        request.prompts.iter().fold(0, |sum: usize, p| sum.saturating_add(size(p)));
    n_prompt_bytes <= n_bytes && request.parameters.values().all(is_plain)
}
