//! From tokens to the texts of a request's choices.

use std::collections::VecDeque;
use std::sync::Arc;

use drivetrain_artifacts::{DecodeSpecial, DecodeStream};
use drivetrain_engine::{EngineError, TokenId};

use super::event::{Completion, Event, PromptInfo, StopCause, TokenDetail, TopToken};
use crate::scheduler::{Choice, Outcome, Scored};
use crate::tasks::TaskContext;
use crate::text::{Held, KeepStop};
use crate::{FinishReason, HostError};

/// How a request wants to be answered.
#[derive(Clone, Debug)]
pub(crate) struct Answering {
    pub(crate) special: DecodeSpecial,
    pub(crate) stops: Arc<[String]>,
    /// Whether a stop string or stop token stays in the text it ends.
    pub(crate) keeps_stop: bool,
    /// Tokens that end a choice and are no part of its text.
    pub(crate) stop_ids: Arc<[TokenId]>,
    /// Choices of each prompt that are given.
    pub(crate) n_kept: usize,
    /// Whether choices come token by token; otherwise all at the end.
    pub(crate) comes_by_token: bool,
    pub(crate) wants_tokens: bool,
    pub(crate) wants_logprobs: bool,
    pub(crate) wants_full_text: bool,
}

impl Answering {
    fn held(&self) -> Held {
        let keeps_stop = if self.keeps_stop { KeepStop::Yes } else { KeepStop::No };
        Held::new(Arc::clone(&self.stops), keeps_stop)
    }
}

/// What a prompt's choices are to become.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) prompt: PromptInfo,
    /// Choices that are generated.
    pub(crate) n_choices: usize,
    pub(crate) seed: Option<u64>,
}

/// The choices of a request on their way.
pub(crate) struct Answers {
    how: Answering,
    prompts: Vec<PromptInfo>,
    items: Vec<Item>,
    tasks: Arc<TaskContext>,
    n_open: usize,
    /// Tokens that came.
    n_tokens: usize,
}

struct Item {
    seed: Option<u64>,
    writers: Vec<Writer>,
    is_done: bool,
}

/// One choice.
struct Writer {
    stream: DecodeStream,
    held: Held,
    text: String,
    ids: Vec<TokenId>,
    tokens: Vec<TokenDetail>,
    logprob: f64,
    is_done: bool,
}

/// How a choice ended.
struct End {
    ids: Vec<TokenId>,
    finish: FinishReason,
    stop: Option<usize>,
    score: Option<f32>,
    logprob: f64,
}

impl Answers {
    pub(crate) fn new(how: Answering, plans: Vec<Plan>, tasks: Arc<TaskContext>) -> Self {
        let n_open = plans.len();
        let (mut prompts, mut items) = (Vec::new(), Vec::new());
        for plan in plans {
            let writer = || Writer {
                stream: tasks.stream(how.special),
                held: how.held(),
                text: String::new(),
                ids: Vec::new(),
                tokens: Vec::new(),
                logprob: 0.0,
                is_done: false,
            };
            let writers = std::iter::repeat_with(writer).take(plan.n_choices.max(1)).collect();
            items.push(Item { seed: plan.seed, writers, is_done: false });
            prompts.push(plan.prompt);
        }
        Self { how, prompts, items, tasks, n_open, n_tokens: 0 }
    }

    pub(crate) fn prompts(&self) -> &[PromptInfo] {
        &self.prompts
    }

    pub(crate) fn model(&self) -> &str {
        self.tasks.model()
    }

    /// Whether every prompt has its answers.
    pub(crate) fn are_done(&self) -> bool {
        self.n_open == 0
    }

    /// Tokens that came.
    pub(crate) fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// The log-probabilities of a prompt: of all its tokens but the first.
    pub(crate) fn prompt(&self, item: usize, scores: &[(Scored, Vec<Scored>)]) -> Option<Event> {
        let first = self.prompts.get(item)?.ids.first().copied();
        let first = first.map(|id| self.detail(Scored { id, logprob: f32::NAN }, &[]));
        let rest = scores.iter().map(|(token, top)| self.detail(*token, top));
        Some(Event::Prompt { prompt: item, tokens: first.into_iter().chain(rest).collect() })
    }

    /// A token of a choice; an event, unless choices come only at the end.
    pub(crate) fn token(
        &mut self,
        item: usize,
        choice: usize,
        token: Scored,
        top: &[Scored],
    ) -> Option<Event> {
        let how = &self.how;
        let is_shown = how.keeps_stop || !how.stop_ids.contains(&token.id);
        let needs_detail = how.comes_by_token || how.wants_tokens;
        let detail = needs_detail.then(|| self.detail(token, top));
        let (by_token, keeps_tokens) = (how.comes_by_token, how.wants_tokens);
        let writer = self.items.get_mut(item)?.writers.get_mut(choice)?;
        self.n_tokens += 1;
        writer.ids.push(token.id);
        if !token.logprob.is_nan() {
            writer.logprob += f64::from(token.logprob);
        }
        let news = if is_shown { writer.stream.push(token.id) } else { None };
        let text = news.map(|news| writer.held.push(&news)).unwrap_or_default();
        writer.text.push_str(&text);
        let token = detail?;
        if keeps_tokens {
            writer.tokens.push(token.clone());
        }
        by_token.then_some(Event::Token { prompt: item, choice, token, text })
    }

    /// A choice has ended while others of its prompt go on.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub(crate) fn choice_finished(
        &mut self,
        item: usize,
        choice: usize,
        finish: FinishReason,
        stop: Option<usize>,
    ) -> Result<Option<Event>, HostError> {
        if !self.how.comes_by_token {
            return Ok(None);
        }
        let writer = self.items.get_mut(item).and_then(|item| item.writers.get_mut(choice));
        let Some(writer) = writer.filter(|writer| !writer.is_done) else { return Ok(None) };
        let (ids, logprob) = (std::mem::take(&mut writer.ids), writer.logprob);
        self.done((item, choice), choice, End { ids, finish, stop, score: None, logprob }).map(Some)
    }

    /// A prompt has all its choices.
    ///
    /// # Errors
    /// What the tokenizer says, or an outcome that is no generation.
    pub(crate) fn finished(
        &mut self,
        item: usize,
        outcome: Outcome,
        ready: &mut VecDeque<Event>,
    ) -> Result<(), HostError> {
        let Outcome::Generated(choices) = outcome else {
            return Err(EngineError::internal("a generation ended in hidden states").into());
        };
        if let Some(item) = self.items.get_mut(item)
            && !std::mem::replace(&mut item.is_done, true)
        {
            self.n_open -= 1;
        }
        for (shown_as, (choice, end)) in self.kept(choices).into_iter().enumerate() {
            let writer = self.items.get(item).and_then(|item| item.writers.get(choice));
            if writer.is_none_or(|writer| writer.is_done) {
                continue;
            }
            let shown_as = if self.how.comes_by_token { choice } else { shown_as };
            let Choice { ids, finish, stop, score, logprob } = end;
            let end = End { ids, finish, stop, score, logprob };
            ready.push_back(self.done((item, choice), shown_as, end)?);
        }
        Ok(())
    }

    /// The choices that are given, with their numbers: all, or the likeliest. Beams come best first.
    fn kept(&self, choices: Vec<Choice>) -> Vec<(usize, Choice)> {
        let mut numbered: Vec<(usize, Choice)> = choices.into_iter().enumerate().collect();
        if self.how.n_kept < numbered.len() {
            if numbered.iter().all(|(_, choice)| choice.score.is_none()) {
                numbered.sort_by(|(_, a), (_, b)| b.logprob.total_cmp(&a.logprob));
            }
            numbered.truncate(self.how.n_kept);
        }
        numbered
    }

    /// The last event of a choice, which the client knows as number `shown_as`.
    fn done(
        &mut self,
        (item_idx, choice): (usize, usize),
        shown_as: usize,
        end: End,
    ) -> Result<Event, HostError> {
        let lost = || EngineError::internal("a choice ended that nobody knows");
        let item = self.items.get_mut(item_idx).ok_or_else(lost)?;
        let seed = item.seed;
        let writer = item.writers.get_mut(choice).ok_or_else(lost)?;
        writer.is_done = true;
        let hides_last =
            !self.how.keeps_stop && end.ids.last().is_some_and(|id| self.how.stop_ids.contains(id));
        let shown = end.ids.len() - usize::from(hides_last);
        let shown_ids = end.ids.get(..shown).unwrap_or_default();
        let came_before = !writer.ids.is_empty() || end.ids.is_empty() || self.how.comes_by_token;
        let mut rest = if came_before {
            writer.stream.finish().unwrap_or_default()
        } else {
            self.tasks.decode_ids(shown_ids, self.how.special)?
        };
        rest = writer.held.push(&rest) + &writer.held.finish();
        let mut text = std::mem::take(&mut writer.text);
        text.push_str(&rest);
        let mut tokens = std::mem::take(&mut writer.tokens);
        if self.how.wants_tokens && tokens.is_empty() {
            let unscored = |id: &TokenId| Scored { id: *id, logprob: f32::NAN };
            tokens = end.ids.iter().map(|id| self.detail(unscored(id), &[])).collect();
        }
        if !came_before {
            self.n_tokens += end.ids.len();
        }
        let prompt = self.prompts.get(item_idx).ok_or_else(lost)?;
        let completion = Completion {
            prompt: item_idx,
            choice: shown_as,
            text,
            full_text: self.full_text(prompt, shown_ids)?,
            finish: end.finish,
            stop: self.cause(&end),
            n_prompt_tokens: prompt.ids.len(),
            ids: end.ids,
            tokens,
            logprob: self.how.wants_logprobs.then_some(end.logprob),
            score: end.score,
            seed,
        };
        Ok(Event::Done { text: rest, completion })
    }

    /// The prompt and its continuation, which ends where the text does.
    fn full_text(&self, prompt: &PromptInfo, ids: &[TokenId]) -> Result<Option<String>, HostError> {
        if !self.how.wants_full_text {
            return Ok(None);
        }
        let continuation = self.tasks.continuation(&prompt.ids, ids, self.how.special)?;
        let mut held = self.how.held();
        let continuation = held.push(&continuation) + &held.finish();
        Ok(Some(format!("{}{continuation}", prompt.text)))
    }

    fn cause(&self, end: &End) -> Option<StopCause> {
        match end.finish {
            FinishReason::Stop => {
                end.stop.and_then(|idx| self.how.stops.get(idx)).cloned().map(StopCause::Text)
            }
            FinishReason::EndToken => {
                let last = end.ids.last().copied();
                last.filter(|id| !self.tasks.is_end_token(*id)).map(StopCause::Token)
            }
            _ => None,
        }
    }

    fn detail(&self, token: Scored, top: &[Scored]) -> TokenDetail {
        let bytes = self.tasks.token_bytes(token.id);
        let top = top.iter().map(|one| TopToken {
            id: one.id,
            text: String::from_utf8_lossy(&self.tasks.token_bytes(one.id)).into_owned(),
            logprob: one.logprob,
        });
        TokenDetail {
            id: token.id,
            text: String::from_utf8_lossy(&bytes).into_owned(),
            bytes,
            logprob: (!token.logprob.is_nan()).then_some(token.logprob),
            is_special: self.tasks.is_special(token.id),
            top: top.collect(),
        }
    }
}
